"""Any writer in the loop: DuoGen Ask Writer -> whatever turns a prompt into a text -> DuoGen Read Writer -> Loop Close.

Ask puts the conversation into a prompt, Read finds out of the written text what belongs to the answer and whether a
picture is due (`duogen_core.writer`). Between them goes ComfyUI's Generate Text with any CLIP that can write, or a node
of another pack. Read stands where DuoGen Loop Open stands in the other loop: DuoGen Loop Close takes its picture, and
puts a copy of everything from Ask on into the running graph, with Read Writer Next in the place of Read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from . import inputs, sockets
from .loop import (
    CATEGORY,
    Round,
    due_in_list,
    given_out,
    round_outputs,
)

if TYPE_CHECKING:
    from duogen_core.document import Document

    from ..steps.answer import Step

PLAIN, QWEN = "plain text", "Qwen chat"  # duogen_core.writer.FORMATS, which is imported when a node runs


class DuoGenAskWriter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenAskWriter",
            display_name="DuoGen Ask Writer",
            category=CATEGORY,
            description="Puts the conversation, and the answer as far as it goes, into a prompt for any model that "
            "writes: ComfyUI's Generate Text with a CLIP that can, or a node of another pack. The prompt teaches the "
            "model how to say that a picture is due. What it writes goes into DuoGen Read Writer.",
            search_aliases=["llm prompt", "generate text", "chat template", "any writer", "qwen3-vl"],
            inputs=[
                sockets.Context.Input("context", tooltip="A request, or an answer to go on with."),
                io.Combo.Input(
                    "format",
                    options=[PLAIN, QWEN],
                    default=PLAIN,
                    tooltip="plain text: for any model, the pictures are only numbered in it. Qwen chat: for Qwen3-VL, "
                    "which then sees each picture at its place and writes on where its answer stops.",
                ),
                io.String.Input(
                    "which",
                    default="all",
                    tooltip="Which pictures the writer looks at: all, none, last 2, or numbers such as 1, 3-4. Choose "
                    "none for a model without eyes.",
                ),
                io.Boolean.Input(
                    "captions",
                    default=True,
                    tooltip="Ask for a caption of each picture, made for the painter. Otherwise the paragraph before a "
                    "picture is what the painter gets.",
                ),
            ],
            outputs=[
                sockets.Context.Output("context", tooltip="The same context, for DuoGen Read Writer."),
                io.String.Output("prompt", tooltip="For the node that writes."),
                io.Image.Output(
                    "pictures",
                    tooltip="The pictures that go with the prompt, as one batch; those of another shape are laid on "
                    "white. Nothing where there are none.",
                ),
            ],
        )

    @classmethod
    def execute(cls, context: Document, format: str, which: str, captions: bool) -> io.NodeOutput:
        from duogen_core import writer

        from ..steps import answer

        pictures = context.pictures
        shown = answer.choose(which, len(pictures))
        prompt = writer.ask(context, format, shown=shown, captions=captions)
        return io.NodeOutput(context, prompt, sockets.one_batch([pictures[index] for index in shown]))


def _read_outputs() -> list[io.Output]:
    return [
        *round_outputs(),
        sockets.Context.Output("written", tooltip="What was written, with all before it, picture due or not."),
        io.Boolean.Output("wants_image", tooltip="Whether a picture is due now."),
    ]


def _read_inputs() -> list[io.Input]:
    return [
        sockets.Context.Input("context", tooltip="From DuoGen Ask Writer."),
        io.String.Input("text", force_input=True, tooltip="What the writer wrote for the prompt of DuoGen Ask Writer."),
    ]


class DuoGenReadWriter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenReadWriter",
            display_name="DuoGen Read Writer",
            category=CATEGORY,
            description="Takes what a writer wrote up to its first wish for a picture, and adds it to the answer. "
            "Everything between this node and DuoGen Loop Close draws that picture; then the writer is asked again.",
            search_aliases=["llm answer", "parse text", "any writer", "begin loop"],
            inputs=[
                *_read_inputs(),
                inputs.seed(
                    "The seed of the answer and of its first picture; later ones get seeds of their own, made of it."
                ),
            ],
            outputs=_read_outputs(),
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def execute(cls, context: Document, text: str, seed: int) -> io.NodeOutput:
        from ..steps import answer

        step = answer.begin(context, seed=seed, tokens_left=0, max_images=0)
        return read(cls.hidden, context, text, step, first=True)


class DuoGenReadWriterNext(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenReadWriterNext",
            display_name="DuoGen Read Writer Next",
            category="DuoGen/internal",
            description="DuoGen Loop Close puts this node in while it runs. It is not meant to be used by hand.",
            inputs=[*_read_inputs(), io.String.Input("duogen_step", tooltip="Settings and progress, as JSON.")],
            outputs=_read_outputs(),
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
            is_dev_only=True,
        )

    @classmethod
    def execute(cls, context: Document, text: str, duogen_step: str) -> io.NodeOutput:
        from ..steps import answer

        return read(cls.hidden, context, text, answer.Step.from_text(duogen_step), first=False)


def read(hidden: Any, context: Document, text: str, step: Step, *, first: bool) -> io.NodeOutput:
    """What the loop and its body get; the body gets nothing where no picture is due. A first picture is always due:
    the limit is DuoGen Loop Close's, which looks at it before it asks for the picture."""
    from duogen_core import pipeline, writer

    from ..steps import live

    written = writer.read(context, text)
    stop = written.stop if first else step.ending(written.stop) or "picture"
    state = Round(written.document, stop, step, due=due_in_list(stop) if first else ())
    title = f"Picture {step.drawn + 1}" if stop == "picture" else ""
    caption = pipeline.pending_caption(written.document) if title else ""
    live.say(hidden, title, written.text.strip(), caption)
    return io.NodeOutput(*given_out(state), written.document, stop == "picture")
