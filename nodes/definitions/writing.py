"""The nodes that make a context longer or change it: a language model of ours writes, an image is appended, a part is
edited; or any other model writes, between DuoGen Any Writer Prompt and DuoGen Any Writer Answer.

A context is a Document; each node returns a new one. Ask puts the conversation into a prompt; Read finds in the written
text what belongs to the answer and whether an image is due (`duogen_core.writer`). Between them goes ComfyUI's Generate
Text with any CLIP that can write, or a node of another pack. In a loop, Read stands where Loop Open stands otherwise.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..host import display
from ..host.images import one_batch, pictures_from_image
from ..steps import AS_IT_GOES, PLAN_FIRST, unfinished
from . import sockets
from .loop import round_outputs

if TYPE_CHECKING:
    from duogen_core.document import Document

    from ..steps.answer import Step

CATEGORY = "DuoGen/advanced/stages"
LOOP_CATEGORY = "DuoGen/loop"
PLAIN, QWEN = "plain text", "Qwen chat"  # duogen_core.writer.FORMATS, which is imported when a node runs
REPLACE_AND_CUT, REPLACE, CUT = "replace it, cut what follows", "replace it, keep what follows", "cut from it on"


class DuoGenWrite(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenWrite",
            display_name="DuoGen Write Text",
            category=CATEGORY,
            description="Lets the language model continue the answer until it wants an image, or until the answer "
            "ends. The new text is at the end of the context that comes out.",
            search_aliases=["generate text", "continue", "llm", "until image"],
            inputs=[
                sockets.Mllm.Input("mllm", tooltip="The language model that writes."),
                sockets.Context.Input("context", tooltip="A request, or an answer to continue."),
                sockets.Connector.Input(
                    "connector",
                    optional=True,
                    tooltip="The connector for the next image. Connected, it does its work while the text is written; "
                    "otherwise the context has to be read once more when the image is due.",
                ),
                sockets.max_tokens("The text ends after this many tokens.", advanced=True),
                sockets.seed("The seed of the random choice of words; at temperature 0 it has no effect."),
                sockets.temperature(advanced=True),
                sockets.top_p(),
                sockets.mode(optional=True),
                *sockets.token_filters(),
                sockets.given(),
            ],
            outputs=[
                sockets.Context.Output("context", tooltip="The context with the new text."),
                io.String.Output("text", tooltip="The new text alone."),
                io.Boolean.Output("wants_image", tooltip="Whether an image is due now."),
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
        top_k: int = 0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        given: str = "",
    ) -> io.NodeOutput:
        from ..steps import stages

        paragraph = display.TextStream(cls.hidden)
        write = stages.write_whole if mode == PLAN_FIRST else stages.write
        written = write(
            mllm, connector, context, max_new_tokens=max_tokens, seed=seed, temperature=temperature, top_p=top_p,
            top_k=top_k, min_p=min_p, repetition_penalty=repetition_penalty, given=given,
            on_token=paragraph.on_token,
        )  # fmt: skip
        if written.trouble:
            from ..steps import planning

            written = planning.plan_instead(cls.hidden, mllm, context, written, seed)
        display.say(cls.hidden, written.text.strip(), phase="writing", text=written.text.strip())
        return io.NodeOutput(written.context, written.text, written.stop == "picture", written.stop, written.tokens)


class DuoGenAppendImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenAppendImage",
            display_name="DuoGen Append Image",
            category=CATEGORY,
            description="Appends an image to the answer, where one is due. It may come from DuoGen's diffusion "
            "transformer, another model, an upscaler, or your own drawing. The language model sees it when it writes "
            "on with DuoGen Write Text.",
            search_aliases=["add image", "add image to context"],
            inputs=[
                sockets.Context.Input("context", tooltip="The answer, as far as it is written."),
                io.Image.Input("image", tooltip="One image of any size; transparent parts become white."),
                io.Int.Input(
                    "seed",
                    optional=True,
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    force_input=True,
                    tooltip="The seed the image was drawn with; it is stored in the saved image.",
                ),
            ],
            outputs=[sockets.Context.Output("context", tooltip="The context with the image.")],
            hidden=[io.Hidden.prompt, io.Hidden.dynprompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(cls, context: Document, image: Any, seed: int | None = None) -> io.NodeOutput:
        from ..steps import stages

        context = stages.append(cls.hidden.dynprompt, context, image, seed)
        return io.NodeOutput(context, ui=unfinished.show(cls.hidden, context))


class DuoGenEditContext(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenEditContext",
            display_name="DuoGen Edit Answer",
            category=CATEGORY,
            description="Replaces one part of the last answer by another text or image, or cuts the answer off before "
            "it. The answer can go on from there; everything before the part stays as it is.",
            search_aliases=["edit answer", "replace paragraph", "truncate", "redo from here"],
            inputs=[
                sockets.Context.Input("context", tooltip="A conversation with an answer at its end."),
                io.Int.Input(
                    "part",
                    default=1,
                    min=1,
                    max=10000,
                    tooltip="Which part of the last answer, counted from 1: texts and images count alike, in order.",
                ),
                io.Combo.Input(
                    "action",
                    options=[REPLACE_AND_CUT, REPLACE, CUT],
                    default=REPLACE_AND_CUT,
                    tooltip="What to do at this part. Cut what follows to have the answer go on from here.",
                ),
                io.String.Input(
                    "text", multiline=True, default="", tooltip="The new text, unless an image is connected."
                ),
                io.Image.Input("image", optional=True, tooltip="The new image, instead of a text."),
            ],
            outputs=[sockets.Context.Output("context", tooltip="The changed context.")],
        )

    @classmethod
    def execute(cls, context: Document, part: int, action: str, text: str = "", image: Any = None) -> io.NodeOutput:
        from duogen_core.document import Picture, Text, pending
        from duogen_core.errors import DuoGenError

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
            pictures = [] if image is None else pictures_from_image(image)
            if len(pictures) > 1:
                raise DuoGenError(f"One image is to be put in, but the IMAGE is a batch of {len(pictures)}.")
            new = (Picture(pictures[0].pixels),) if pictures else (Text(text),)
        rest = after if action == REPLACE else ()
        changed = pending.with_last_turn(context, replace(context.last_turn, parts=(*before, *new, *rest)))
        changed = replace(changed, generation={})  # how the unchanged answer was made no longer holds
        return io.NodeOutput(changed if action == REPLACE else pending.with_planned_stop(changed, None))


class DuoGenAskWriter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenAskWriter",
            display_name="DuoGen Any Writer Prompt",
            category=LOOP_CATEGORY,
            description="Turns the conversation and the answer so far into a prompt for any model that writes: "
            "ComfyUI's Generate Text with a CLIP that can, or a node of another pack. The prompt tells the model how "
            "to ask for an image. Connect the text it writes to DuoGen Any Writer Answer.",
            search_aliases=["llm prompt", "generate text", "chat template", "any writer", "qwen3-vl"],
            inputs=[
                sockets.Context.Input("context", tooltip="A request, or an answer to continue."),
                io.Combo.Input(
                    "format",
                    options=[PLAIN, QWEN],
                    default=PLAIN,
                    tooltip="plain text: for any model; images appear as numbers only. Qwen chat: for Qwen3-VL, which "
                    "sees each image at its place and continues its own answer.",
                ),
                io.String.Input(
                    "which",
                    default="all",
                    advanced=True,
                    tooltip="Which images the writer looks at: all, none, last 2, or numbers such as 1, 3-4. Choose "
                    "none for a model that reads text only.",
                ),
                io.Boolean.Input(
                    "captions",
                    default=True,
                    advanced=True,
                    tooltip="Ask for a caption of each image, made for the painter. Otherwise the paragraph before an "
                    "image is what the painter gets.",
                ),
            ],
            outputs=[
                sockets.Context.Output("context", tooltip="The same context, for DuoGen Any Writer Answer."),
                io.String.Output("prompt", tooltip="The prompt, for the node that writes."),
                io.Image.Output(
                    "pictures",
                    tooltip="The images that go with the prompt, as one batch; smaller ones are centred on white. "
                    "Empty where there are none.",
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
        return io.NodeOutput(context, prompt, one_batch([pictures[index] for index in shown]))


class DuoGenReadWriter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenReadWriter",
            display_name="DuoGen Any Writer Answer",
            category=LOOP_CATEGORY,
            description="Adds what any writer wrote to the answer, up to the first image it asks for. The nodes "
            "between this one and DuoGen Loop Close draw that image; then the writer is asked again.",
            search_aliases=["llm answer", "parse text", "any writer", "begin loop"],
            inputs=[
                *_read_inputs(),
                sockets.seed(
                    "The seed of the answer and of its first image; the seeds of later images are derived from it."
                ),
                sockets.given(),
            ],
            outputs=_read_outputs(),
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def execute(cls, context: Document, text: str, seed: int, given: str = "") -> io.NodeOutput:
        from ..steps import answer

        step = answer.begin(context, seed=seed, tokens_left=0, max_images=0, given=given)
        return read(cls.hidden, context, text, step, first=True)


class DuoGenReadWriterNext(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenReadWriterNext",
            display_name="DuoGen Any Writer Answer Next",
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


def _read_inputs() -> list[io.Input]:
    return [
        sockets.Context.Input("context", tooltip="From DuoGen Any Writer Prompt."),
        io.String.Input("text", force_input=True, tooltip="What the writer wrote for that prompt."),
    ]


def _read_outputs() -> list[io.Output]:
    return [
        *round_outputs(),
        sockets.Context.Output(
            "written", tooltip="The conversation with the new text, whether an image is due or not."
        ),
        io.Boolean.Output("wants_image", tooltip="Whether an image is due now."),
    ]


def read(hidden: Any, context: Document, text: str, step: Step, *, first: bool) -> io.NodeOutput:
    """Returns the outputs of DuoGen Any Writer Answer; where no image is due, nodes that draw get none.

    first: the limit of images does not count yet, because it is DuoGen Loop Close's, which checks it itself.
    """
    from duogen_core import writer
    from duogen_core.document import pending

    from ..steps import answer, stages
    from ..steps.loop import Round, due_in_list, round_values

    given = stages.take_given(context, answer.parse_given(step.given).get(step.drawn + 1, {}))
    written = given or writer.read(context, text)
    longer = given.context if given else written.document
    stop = written.stop if first else step.ending(written.stop) or "picture"
    state = Round(longer, stop, step, due=due_in_list(stop) if first else ())
    due, said = stop == "picture", written.text.strip()
    numbers = {"image": step.drawn + 1} if due else {}
    caption = pending.due_caption(longer) if due else ""
    display.say(
        hidden, display.image_title(**numbers) if due else "", said, caption, phase="drawing" if due else "writing",
        text=said or caption, **numbers,
    )  # fmt: skip
    return io.NodeOutput(*round_values(state), longer, stop == "picture")
