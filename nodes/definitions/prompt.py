"""What the user asks: DuoGen Prompt in a conversation, DuoGen Encode Prompt (Cosmos) without one.

Encode Prompt gives CONDITIONING exactly as Cosmos-Predict2.5 was published, with the states of diffusers' pipeline
(`duogen_core.mllm.prompt_states`). In a loop it draws what the caption of an image says.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..host import images as image_conversion
from . import sockets

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from duogen_core.document import Document, Picture

TRAINED_TOKENS = 512


class DuoGenPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenPrompt",
            display_name="DuoGen Prompt",
            category="DuoGen",
            description="Your request, in words and, if you like, with images: to edit one, to continue one, or to ask "
            "about one. With an earlier context it is the next request of the same conversation.",
            search_aliases=["request", "question", "chat", "interleaved prompt"],
            inputs=[
                io.String.Input(
                    "text",
                    multiline=True,
                    default="How do I draw a house with a red roof?",
                    tooltip="What you want to know or to have drawn, in your own words. <image1> stands for the first "
                    "image connected below; images without such a marker come before the text.",
                ),
                io.Autogrow.Input(
                    "images",
                    optional=True,
                    tooltip="Images that the request is about, in order; another input appears as you connect one.",
                    template=io.Autogrow.TemplateNames(
                        io.Image.Input(
                            "image",
                            optional=True,
                            tooltip="An image the request is about. A batch counts as several images.",
                        ),
                        names=[f"image{number}" for number in range(1, 17)],
                        min=0,
                    ),
                ),
                io.String.Input(
                    "system",
                    multiline=True,
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Instructions for the whole conversation. Leave this empty for the bundled model, which "
                    "was trained without any.",
                ),
                sockets.Context.Input(
                    "context", optional=True, tooltip="An earlier conversation that this request continues."
                ),
            ],
            outputs=[sockets.Context.Output("context", tooltip="The conversation, ready to be answered.")],
        )

    @classmethod
    def execute(
        cls, text: str, images: dict[str, Any] | None = None, system: str = "", context: Document | None = None
    ) -> io.NodeOutput:
        from duogen_core.document import Document
        from duogen_core.errors import DuoGenError

        pictures = {
            name: image_conversion.pictures_from_image(image)
            for name, image in (images or {}).items()
            if image is not None
        }
        parts = request_parts(text, pictures)
        if not text.strip() and not pictures:
            raise DuoGenError("The request is empty; write in DuoGen Prompt what the answer should be about.")
        if context is not None and system.strip():
            raise DuoGenError("The system text belongs to the beginning of a conversation; clear it, or the context.")
        document = context if context is not None else Document()
        if system.strip():
            from duogen_core.document import Text

            document = document.begin_turn("system", [Text(system)])
        return io.NodeOutput(document.begin_turn("user", parts))


def request_parts(text: str, pictures: Mapping[str, Sequence[Picture]]) -> list[Any]:
    """Text and images in the order of the markers; {"image1": images}. Images without a marker come first."""
    from duogen_core.document import Text
    from duogen_core.errors import DuoGenError

    left = dict(pictures)
    pieces: list[Any] = []
    for index, piece in enumerate(re.split(r"<(image\d+)>", text)):
        if index % 2 == 0:
            pieces += [Text(piece)] if piece else []
        elif piece not in pictures:
            there = ", ".join(sorted(pictures)) or "none"
            raise DuoGenError(f"The request speaks of <{piece}>, but no image is connected there; connected: {there}.")
        else:
            left.pop(piece, None)
            pieces += pictures[piece]
    return [picture for batch in left.values() for picture in batch] + pieces


class DuoGenEncodePrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenEncodePrompt",
            display_name="DuoGen Encode Prompt (Cosmos)",
            category="DuoGen/advanced/stages",
            description="Turns a prompt into CONDITIONING exactly as published for Cosmos-Predict2.5: the prompt "
            "alone, filled up to 512 tokens, and a negative prompt. For weights that were not trained to read a "
            "conversation.",
            search_aliases=["clip text encode", "text to image", "cosmos prompt", "negative prompt"],
            inputs=[
                sockets.Mllm.Input("mllm", tooltip="The language model that reads the prompt, such as Qwen2.5-VL-7B."),
                sockets.Connector.Input("connector", tooltip="The connector of the MODEL that draws."),
                io.String.Input("prompt", multiline=True, default="", tooltip="What the image shows."),
                io.String.Input(
                    "negative_prompt",
                    multiline=True,
                    default="",
                    tooltip="What the image should not show. Empty: the long negative prompt of Cosmos-Predict2.5's "
                    "own pipeline.",
                ),
                io.Int.Input(
                    "tokens",
                    default=TRAINED_TOKENS,
                    min=0,
                    max=32768,
                    advanced=True,
                    tooltip="Shorter prompts are filled up to this many tokens, longer ones are cut. Cosmos-Predict2.5 "
                    "was trained on 512. 0: as many as the prompt has.",
                ),
            ],
            outputs=[
                io.Conditioning.Output("positive", tooltip="The prompt."),
                io.Conditioning.Output("negative", tooltip="The negative prompt."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def execute(
        cls, mllm: Any, connector: Any, prompt: str, negative_prompt: str = "", tokens: int = TRAINED_TOKENS
    ) -> io.NodeOutput:
        from ..host import display
        from ..steps import stages

        say = lambda text: display.say(cls.hidden, text)  # noqa: E731
        return io.NodeOutput(*stages.encode_prompt(mllm, connector, prompt, negative_prompt, tokens or None, say))
