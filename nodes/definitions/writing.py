"""The stages that make a context longer or change it: DuoGen Write, DuoGen Append Image, DuoGen Edit Context.

A context is a Document; each node returns a new one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from . import inputs, sockets
from .inputs import AS_IT_GOES, PLAN_FIRST

if TYPE_CHECKING:
    from duogen_core.document import Document

CATEGORY = "DuoGen/stages"


class DuoGenWrite(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenWrite",
            display_name="DuoGen Write",
            category=CATEGORY,
            description="Lets the language model write on: until it wants a picture, or until its answer ends. What it "
            "wrote is at the end of the context that comes out.",
            search_aliases=["generate text", "continue", "llm", "until picture"],
            inputs=[
                sockets.Mllm.Input("mllm", tooltip="The language model that writes."),
                sockets.Context.Input("context", tooltip="A request, or an answer to go on with."),
                sockets.Connector.Input(
                    "connector",
                    optional=True,
                    tooltip="The connector that the next picture is made with. With it, its part of the work is done "
                    "while the text is written; without it, DuoGen Encode Context reads the context once more.",
                ),
                inputs.max_tokens("The text ends after this many tokens."),
                inputs.seed("Decides which words are drawn by lot; with temperature 0 it changes nothing."),
                inputs.temperature(),
                io.Float.Input(
                    "top_p",
                    default=1.0,
                    min=0.001,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Only the likeliest words that together have this probability are drawn from.",
                ),
                inputs.mode(optional=True),
            ],
            outputs=[
                sockets.Context.Output("context", tooltip="The context with what was written."),
                io.String.Output("text", tooltip="What was written, alone."),
                io.Boolean.Output("wants_image", tooltip="Whether a picture is due now."),
                io.String.Output("stop", tooltip="Why the writing stopped: picture, end or max_tokens."),
                io.Int.Output("tokens", tooltip="How many tokens were written."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def execute(
        cls,
        mllm: Any,
        context: Document,
        max_tokens: int,
        seed: int,
        temperature: float,
        top_p: float,
        connector: Any = None,
        mode: str = AS_IT_GOES,
    ) -> io.NodeOutput:
        from ..steps import live, stages

        paragraph = live.LiveText(cls.hidden)
        write = stages.write_whole if mode == PLAN_FIRST else stages.write
        written = write(
            mllm, connector, context, max_new_tokens=max_tokens, seed=seed, temperature=temperature, top_p=top_p,
            on_token=paragraph.on_token,
        )  # fmt: skip
        live.say(cls.hidden, written.text.strip())
        return io.NodeOutput(written.context, written.text, written.stop == "picture", written.stop, written.tokens)


class DuoGenAppendImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenAppendImage",
            display_name="DuoGen Append Image",
            category=CATEGORY,
            description="Puts a picture where the answer wants one. It may come from anywhere: the diffusion "
            "transformer of DuoGen, another model, an upscaler, your own hand. The language model looks at it and "
            "writes on with DuoGen Write.",
            search_aliases=["add picture", "add image to context"],
            inputs=[
                sockets.Context.Input("context", tooltip="The answer, as far as it is written."),
                io.Image.Input("image", tooltip="One picture of any size; transparency is laid on white."),
                io.Int.Input(
                    "seed",
                    optional=True,
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    force_input=True,
                    tooltip="The seed the picture was drawn with; it is written into the saved picture.",
                ),
            ],
            outputs=[sockets.Context.Output("context", tooltip="The context with the picture.")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(cls, context: Document, image: Any, seed: int | None = None) -> io.NodeOutput:
        from ..steps import stages, unfinished

        context = stages.append(context, image, seed)
        return io.NodeOutput(context, ui=unfinished.show(cls.hidden, context))


REPLACE_AND_CUT, REPLACE, CUT = "replace it, cut what follows", "replace it, keep what follows", "cut from it on"


class DuoGenEditContext(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenEditContext",
            display_name="DuoGen Edit Context",
            category=CATEGORY,
            description="Changes one part of an answer: puts another text or picture in its place, or cuts the answer "
            "off before it. What comes out can be written on and drawn on; everything before it is kept as it is.",
            search_aliases=["edit answer", "replace paragraph", "truncate", "redo from here"],
            inputs=[
                sockets.Context.Input("context", tooltip="An answered conversation."),
                io.Int.Input(
                    "part",
                    default=1,
                    min=1,
                    max=10000,
                    tooltip="Which part of the last answer, counted from 1: texts and pictures count alike, in order.",
                ),
                io.Combo.Input(
                    "action",
                    options=[REPLACE_AND_CUT, REPLACE, CUT],
                    default=REPLACE_AND_CUT,
                    tooltip="What to do at this part. Cut what follows to have the answer go on from here.",
                ),
                io.String.Input(
                    "text", multiline=True, default="", tooltip="The new text, unless a picture is connected."
                ),
                io.Image.Input("image", optional=True, tooltip="The new picture, instead of a text."),
            ],
            outputs=[sockets.Context.Output("context", tooltip="The changed context.")],
        )

    @classmethod
    def execute(cls, context: Document, part: int, action: str, text: str = "", image: Any = None) -> io.NodeOutput:
        from duogen_core.document import Picture, Text
        from duogen_core.errors import DuoGenError

        from ..steps import planned_answer as plan
        from ..steps import stages

        stages.check_answering(context)
        parts = context.last_turn.parts
        if part > len(parts):
            raise DuoGenError(f"The answer has {len(parts)} parts, so there is no part {part} to change.")
        before, after = parts[: part - 1], parts[part:]
        new: tuple = ()
        if action != CUT:
            if image is None and not text:
                raise DuoGenError("There is nothing to put in the place of the part; write a text or connect an image.")
            pictures = [] if image is None else sockets.pictures_from_image(image)
            if len(pictures) > 1:
                raise DuoGenError(f"One picture is to be put in, but the IMAGE is a batch of {len(pictures)}.")
            new = (Picture(pictures[0].pixels),) if pictures else (Text(text),)
        kept = after if action == REPLACE else ()
        changed = plan.with_last_turn(context, replace(context.last_turn, parts=(*before, *new, *kept)))
        changed = replace(changed, generation={})  # how the unchanged answer was made no longer holds
        return io.NodeOutput(changed if action == REPLACE else plan.with_planned_stop(changed, None))
