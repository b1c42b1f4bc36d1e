"""DuoGen Encode Prompt: one prompt -> CONDITIONING, exactly as Cosmos-Predict2.5 was published. No conversation.

In: the language model and the connector of a Cosmos-Predict2.5, a prompt. Out: positive and negative, whose states are
those of diffusers' pipeline (`duogen_core.text_to_picture`). Of a picture in the loop it draws what the caption says.
"""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import sockets
from .writing import CATEGORY

TRAINED_TOKENS = 512


class DuoGenEncodePrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenEncodePrompt",
            display_name="DuoGen Encode Prompt",
            category=CATEGORY,
            description="Text to picture as Cosmos-Predict2.5 was published: the prompt alone, filled up to 512 "
            "tokens, with a negative prompt of its own. For weights that were never taught to read a conversation.",
            search_aliases=["clip text encode", "text to image", "cosmos prompt", "negative prompt"],
            inputs=[
                sockets.Mllm.Input("mllm", tooltip="The language model that reads the prompt, such as Qwen2.5-VL-7B."),
                sockets.Connector.Input("connector", tooltip="The connector of the MODEL that draws."),
                io.String.Input("prompt", multiline=True, default="", tooltip="What the picture shows."),
                io.String.Input(
                    "negative_prompt",
                    multiline=True,
                    default="",
                    tooltip="What it shall not show. Empty: the long negative prompt of Cosmos-Predict2.5's own "
                    "pipeline.",
                ),
                io.Int.Input(
                    "tokens",
                    default=TRAINED_TOKENS,
                    min=0,
                    max=32768,
                    advanced=True,
                    tooltip="Shorter prompts are filled up to this many tokens, longer ones are cut: Cosmos-Predict2.5 "
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
        from ..steps import live, prompts

        say = lambda text: live.say(cls.hidden, text)  # noqa: E731
        return io.NodeOutput(*prompts.encode(mllm, connector, prompt, negative_prompt, tokens or None, say))
