"""DuoGen Loop Open and Loop Close: a whole answer around nodes of the user's own.

    Loop Open -> (context, text, seed, number) -> whatever draws an image -> Loop Close -> the finished answer

Both put nodes into the running graph (steps/loop.py). Open writes up to the first image. Close appends what was drawn,
lets the model write on, and while it wants another image puts in a copy of everything between Open and Close, with a
Round in the place of Open. Close asks for its image only when one is due (a lazy input), so an answer without images
draws none. Close holds the settings of single images (their seeds, the limit), because everything after Open runs again
when an input of Open changes.

The nodes in DuoGen/internal are put in at run time, the last two by DuoGen Interleave as well, and shown to developers
only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..host import display
from ..host.expansion import list_index, values_of
from ..steps import PLAN_FIRST
from ..steps import loop as steps_loop
from . import sockets

if TYPE_CHECKING:
    from duogen_core.document import Document

    from ..steps.loop import Round

CATEGORY = "DuoGen/loop"


class DuoGenLoopOpen(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenLoopOpen",
            display_name="DuoGen Loop Open",
            category=CATEGORY,
            description="Begins an answer and stops where an image is due. The nodes between this one and DuoGen Loop "
            "Close draw that image, and run again for each further one: put any nodes there.",
            search_aliases=["for each image", "while loop", "interleave loop", "begin loop"],
            inputs=[
                sockets.Mllm.Input(
                    "mllm",
                    optional=True,
                    tooltip="The language model that writes. Not needed for an answer that is planned already.",
                ),
                sockets.Context.Input("context", tooltip="The request, an answer to continue, or a planned answer."),
                sockets.Connector.Input(
                    "connector",
                    optional=True,
                    tooltip="The connector for the images. Not needed when another model draws.",
                ),
                sockets.seed(
                    "The seed of the answer and of its first image; the seeds of later images are derived from it."
                ),
                sockets.max_tokens(advanced=True),
                sockets.mode(),
                sockets.temperature(advanced=True),
                sockets.top_p(optional=True),
                *sockets.token_filters(),
                sockets.given(),
            ],
            outputs=round_outputs(),
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def execute(
        cls,
        context: Document,
        seed: int,
        max_tokens: int,
        mode: str,
        temperature: float,
        mllm: Any = None,
        connector: Any = None,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        given: str = "",
    ) -> io.NodeOutput:
        from duogen_core import picture_sampling
        from duogen_core.document import pending
        from duogen_core.errors import DuoGenError

        from ..steps import answer, stages

        step = answer.begin(
            context, seed=seed, tokens_left=max_tokens, max_images=0, temperature=temperature, top_p=top_p,
            top_k=top_k, min_p=min_p, repetition_penalty=repetition_penalty, given=given,
        )  # fmt: skip
        written = stages.take_planned(context)
        if written is None:
            if mllm is None:
                raise DuoGenError(
                    "There is nothing to draw yet: the answer is not planned, and no language model is connected that "
                    "could write it. Connect the mllm, or plan the answer first, with DuoGen Plan Answer, Plan with "
                    "Endpoint or Plan from Text."
                )
            paragraph = display.TextStream(cls.hidden)
            write = stages.write_whole if mode == PLAN_FIRST else stages.write
            written = write(
                mllm, connector, context, max_new_tokens=max_tokens, seed=step.write_seed, **step.sampling(),
                given=given, on_token=paragraph.on_token,
            )  # fmt: skip
            if written.trouble:
                from ..steps import planning

                written = planning.plan_instead(cls.hidden, mllm, context, written, step.write_seed)
                step = step.continuing(written.context)
        text = written.text or picture_sampling.step_text(pending.before_next_picture(written.context))
        numbers = {"image": 1} if written.stop == "picture" else {}
        title, phase = (display.image_title(**numbers), "drawing") if numbers else ("", "writing")
        display.say(cls.hidden, title, text.strip(), phase=phase, text=text.strip(), **numbers)
        step = step.after_text(written.tokens)
        state = steps_loop.Round(
            written.context, written.stop, step, mllm, connector, steps_loop.due_in_list(written.stop)
        )
        return io.NodeOutput(*steps_loop.round_values(state))


def round_outputs() -> list[io.Output]:
    return [
        sockets.Loop.Output("loop", tooltip="To DuoGen Loop Close."),
        sockets.Context.Output("context", tooltip="The answer up to the place where an image is due."),
        io.String.Output(
            "text",
            tooltip="What the image should show: the paragraph before it, or the caption of a language model that was "
            "asked for one. Use it as the prompt of any other image model.",
        ),
        io.Int.Output(
            "seed", tooltip="The seed of this image, derived from the answer's seed or set in DuoGen Loop Close."
        ),
        io.Int.Output("number", tooltip="Which image of the answer is due, counted from 1."),
    ]


class DuoGenLoopClose(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return _close_schema(
            node_id="DuoGenLoopClose",
            display_name="DuoGen Loop Close",
            category=CATEGORY,
            description="Takes the image that was drawn since DuoGen Loop Open, shows it to the language model, and "
            "repeats until the answer ends.",
            search_aliases=["end loop", "loop end"],
        )

    @classmethod
    def check_lazy_status(
        cls, loop: Round, max_images: int, seeds: str, image: Any = None, given: str = ""
    ) -> list[str]:
        return steps_loop.missing_image(loop, max_images, image)

    @classmethod
    def execute(cls, loop: Round, max_images: int, seeds: str, image: Any = None, given: str = "") -> io.NodeOutput:
        return steps_loop.close(cls.hidden, loop, max_images, seeds, given, image)


def _close_schema(**kwargs: Any) -> io.Schema:
    images = io.Image.Output(
        "images",
        is_output_list=kwargs["node_id"] == "DuoGenLoopClose",
        tooltip="The images of the answer, each in its own size.",
    )
    return io.Schema(
        inputs=[
            sockets.Loop.Input("loop", tooltip="From DuoGen Loop Open, or from DuoGen Any Writer Answer."),
            io.Image.Input("image", lazy=True, tooltip="The image for this place of the answer."),
            sockets.max_images(),
            sockets.picture_seeds(
                "Seeds for single images of this answer, such as 3: 1234, 5: 99. Images before the first one named are "
                "not drawn again. The first image has the seed of DuoGen Loop Open."
            ),
            sockets.given(),
        ],
        outputs=[
            sockets.Context.Output("context", tooltip="The conversation with the answer at its end."),
            io.String.Output("text", tooltip="The text of the answer, without its images."),
            images,
        ],
        hidden=[io.Hidden.unique_id, io.Hidden.dynprompt, io.Hidden.prompt, io.Hidden.extra_pnginfo],
        enable_expand=True,
        **kwargs,
    )


class DuoGenLoopRound(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenLoopRound",
            display_name="DuoGen Loop Round",
            category="DuoGen/internal",
            description="DuoGen Loop Close puts this node in while it runs. It is not meant to be used by hand.",
            inputs=[
                sockets.Mllm.Input("mllm", optional=True, tooltip="As DuoGen Loop Open has it."),
                sockets.Connector.Input("connector", optional=True, tooltip="As DuoGen Loop Open has it."),
                sockets.Context.Input("context", tooltip="The answer so far."),
                io.String.Input("stop", tooltip="Why the writing stopped."),
                io.Int.Input("tokens", tooltip="How many tokens were written."),
                io.String.Input("duogen_step", tooltip="Settings and progress, as JSON."),
            ],
            outputs=round_outputs(),
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
            is_dev_only=True,
        )

    @classmethod
    def execute(
        cls, context: Document, stop: str, tokens: int, duogen_step: str, mllm: Any = None, connector: Any = None
    ) -> io.NodeOutput:
        from duogen_core import picture_sampling
        from duogen_core.document import pending

        from ..steps import answer, stages

        if stop == steps_loop.PLANNED:
            written = stages.take_planned(context)
            context, stop = written.context, written.stop
        step = answer.Step.from_text(duogen_step).after_text(tokens).continuing(context)
        state = steps_loop.Round(context, step.ending(stop) or "picture", step, mllm, connector)
        if state.stop == "picture":
            close = cls.hidden.dynprompt.get_parent_node_id(cls.hidden.unique_id)
            limit = cls.hidden.dynprompt.get_node(close)["inputs"].get("max_images")
            numbers = {"image": step.drawn + 1} | ({"of": limit} if isinstance(limit, int) else {})
            text = picture_sampling.step_text(pending.before_next_picture(context))
            display.say(cls.hidden, display.image_title(**numbers), text, phase="drawing", text=text, **numbers)
        return io.NodeOutput(*steps_loop.round_values(state))


class DuoGenLoopNext(io.ComfyNode):
    """DuoGen Loop Close in the rounds after the first. Its images are one value, a list (see DuoGenInterleaveStep)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _close_schema(
            node_id="DuoGenLoopNext",
            display_name="DuoGen Loop Next",
            category="DuoGen/internal",
            description="DuoGen Loop Close puts this node in while it runs. It is not meant to be used by hand.",
            is_dev_only=True,
        )

    @classmethod
    def check_lazy_status(
        cls, loop: Round, max_images: int, seeds: str, image: Any = None, given: str = ""
    ) -> list[str]:
        return steps_loop.missing_image(loop, max_images, image)

    @classmethod
    def execute(cls, loop: Round, max_images: int, seeds: str, image: Any = None, given: str = "") -> io.NodeOutput:
        from duogen_core.errors import DuoGenError

        if list_index():
            raise DuoGenError(
                "One image is due in each round of the loop, but the nodes between DuoGen Loop Open and Loop Close "
                "output a list of several; choose one of them first."
            )
        return steps_loop.close(cls.hidden, loop, max_images, seeds, given, image)


class DuoGenGiven(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenGiven",
            display_name="DuoGen Values",
            category="DuoGen/internal",
            description="DuoGen Interleave and the loop put this node in while they run, to pass values on.",
            inputs=[io.String.Input("names", tooltip="Which value goes where, as JSON.")],
            outputs=[
                sockets.Mllm.Output("mllm", tooltip="The language model."),
                sockets.Connector.Output("connector", tooltip="The connector."),
                io.Model.Output("model", tooltip="The diffusion transformer."),
                io.Vae.Output("vae", tooltip="The VAE."),
                sockets.Context.Output("context", tooltip="The answer so far."),
                io.Image.Output("image", tooltip="The image that was drawn."),
                sockets.Tries.Output("tries", tooltip="What was drawn before for this image."),
                io.ControlNet.Output("control_net", tooltip="The ControlNet."),
                io.Image.Output("control_images", tooltip="Its images, one for each image of the answer."),
            ],
            is_dev_only=True,
        )

    @classmethod
    def execute(cls, names: str) -> io.NodeOutput:
        return io.NodeOutput(*values_of(names))


class DuoGenListEntry(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenListEntry",
            display_name="DuoGen List Entry",
            category="DuoGen/internal",
            description="DuoGen Loop Close puts this node in while it runs. It takes one entry out of a list.",
            inputs=[
                io.AnyType.Input("values", tooltip="The list."),
                io.Int.Input("index", tooltip="Which entry, counted from 0; of a shorter list, the last."),
            ],
            outputs=[io.AnyType.Output("value", tooltip="The entry.")],
            is_input_list=True,
            is_dev_only=True,
        )

    @classmethod
    def execute(cls, values: list[Any], index: list[int]) -> io.NodeOutput:
        return io.NodeOutput(values[min(index[0], len(values) - 1)])
