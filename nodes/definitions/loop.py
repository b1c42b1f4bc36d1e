"""Whole answers: DuoGen Interleave in one node, or DuoGen Loop Open and Loop Close around nodes of the user's own.

    Loop Open -> (context, text, seed, number) -> whatever draws an image -> Loop Close -> the finished answer

Both put nodes into the running graph (steps/loop.py). Interleave writes, draws, looks at what it drew, and writes on.
Of the loop, Open writes up to the first image. Close appends what was drawn, lets the model write on, and while it
wants another image puts in a copy of everything between Open and Close, with a Round in the place of Open. Close asks
for its image only when one is due (a lazy input), so an answer without images draws none. Close holds the settings of
single images (their seeds, the limit), because everything after Open runs again when an input of Open changes.

The nodes in DuoGen/internal are put in at run time and shown to developers only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..host import display
from ..host.expansion import add_values, list_index, new_graph, values_of
from ..host.images import image_list
from ..steps import AS_IT_GOES, PLAN_FIRST, unfinished
from ..steps import loop as steps_loop
from . import sockets

if TYPE_CHECKING:
    from duogen_core.document import Document

    from ..steps.loop import Round

CATEGORY = "DuoGen/loop"


class DuoGenInterleave(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenInterleave",
            display_name="DuoGen Interleave",
            category="DuoGen",
            description="Answers a request with text and images in turn. The language model writes; where it wants an "
            "image, the diffusion transformer draws it with every earlier image in view; the image joins the context "
            "and the writing goes on, until the answer ends.",
            search_aliases=[
                "interleaved generation",
                "illustrated answer",
                "text and images",
                "storyboard",
                "how-to guide",
            ],
            inputs=[
                sockets.Mllm.Input("mllm", tooltip="The language model that writes, from DuoGen Load Checkpoint."),
                sockets.Connector.Input("connector", tooltip="The connector of the same checkpoint."),
                io.Model.Input(
                    "model",
                    tooltip="The diffusion transformer that draws. LoRAs and patches of the whole model (shift, "
                    "RescaleCFG, EasyCache) apply.",
                ),
                io.Vae.Input("vae", tooltip="The VAE of the same checkpoint."),
                sockets.Context.Input("context", tooltip="The request, from DuoGen Prompt, or an answer to continue."),
                sockets.seed(
                    "The seed of the answer and of its first image; the seeds of later images are derived from it. "
                    "The same seed gives the same answer."
                ),
                sockets.steps(),
                sockets.cfg(),
                sockets.sampler_name(),
                sockets.scheduler(),
                sockets.max_images(),
                sockets.max_tokens(),
                io.Int.Input(
                    "width",
                    default=0,
                    min=0,
                    max=16384,
                    step=16,
                    tooltip="Width of every image in pixels. 0: like the last image of the context, or the "
                    "checkpoint's own size when there is none.",
                ),
                io.Int.Input(
                    "height",
                    default=0,
                    min=0,
                    max=16384,
                    step=16,
                    tooltip="Height of every image in pixels. 0: see width.",
                ),
                sockets.picture_seeds(
                    "Seeds for single images of this answer, such as 3: 1234, 5: 99. Images before the first one "
                    "named are not drawn again.",
                    optional=True,
                ),
                sockets.mode(optional=True),
                io.String.Input(
                    "references",
                    default="all",
                    optional=True,
                    advanced=True,
                    tooltip="Which earlier images each new one looks at: all, none, last 2, or numbers such as 1, 3-4.",
                ),
                io.Int.Input(
                    "size_like",
                    default=0,
                    min=0,
                    max=1000,
                    optional=True,
                    advanced=True,
                    tooltip="With width and height 0: the size of this image of the conversation, counted from 1. "
                    "0: of the last one.",
                ),
                sockets.temperature(optional=True, advanced=True),
                sockets.top_p(optional=True),
                *sockets.token_filters(),
            ],
            outputs=[
                sockets.Context.Output("context", tooltip="The conversation with the answer at its end."),
                io.String.Output("text", tooltip="The text of the answer, without its images."),
                io.Image.Output(
                    "images", is_output_list=True, tooltip="The images of the answer, each in its own size."
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
            enable_expand=True,
        )

    @classmethod
    def execute(
        cls,
        mllm: Any,
        connector: Any,
        model: Any,
        vae: Any,
        context: Document,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        max_images: int,
        max_tokens: int,
        width: int,
        height: int,
        seeds: str = "",
        mode: str = AS_IT_GOES,
        references: str = "all",
        size_like: int = 0,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
    ) -> io.NodeOutput:
        from duogen_core import pipeline
        from duogen_core.errors import DuoGenError

        from ..host import compatibility
        from ..steps import answer

        compatibility.check_connector(mllm, connector)
        compatibility.check_model(model, connector)
        compatibility.check_vae(vae, model)
        if (width == 0) != (height == 0):
            raise DuoGenError(
                f"The size is {width} x {height}: set both sides, or both to 0 to let the context decide."
            )
        settings = pipeline.Settings(seed=seed, steps=steps or None, guidance=cfg or None)
        settings = settings.resolved(compatibility.config_of(mllm, model))
        answer.choose(references, 0)  # so that a mistake in it is reported now, not after the first paragraph
        step = answer.begin(
            context, seed=seed, max_images=max_images, tokens_left=max_tokens, steps=settings.steps,
            cfg=settings.guidance, shift=settings.shift, sampler_name=sampler_name, scheduler=scheduler, width=width,
            height=height, size_like=size_like, temperature=temperature, references=references, seeds=seeds,
            top_p=top_p, top_k=top_k, min_p=min_p, repetition_penalty=repetition_penalty,
        )  # fmt: skip
        graph = new_graph(cls.hidden)
        links = add_values(
            graph, "values", mllm=mllm, connector=connector, model=model, vae=vae, context=context
        )  # fmt: skip
        return steps_loop.start_writing(graph, mllm, links, links["context"], step, mode)


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
                sockets.Mllm.Input("mllm", tooltip="The language model that writes."),
                sockets.Context.Input("context", tooltip="The request, or an answer to continue."),
                sockets.Connector.Input(
                    "connector",
                    optional=True,
                    tooltip="The connector for the images. Not needed when another model draws.",
                ),
                sockets.seed(
                    "The seed of the answer and of its first image; the seeds of later images are derived from it."
                ),
                sockets.max_tokens(),
                sockets.mode(),
                sockets.temperature(advanced=True),
                sockets.top_p(optional=True),
                *sockets.token_filters(),
            ],
            outputs=round_outputs(),
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def execute(
        cls,
        mllm: Any,
        context: Document,
        seed: int,
        max_tokens: int,
        mode: str,
        temperature: float,
        connector: Any = None,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
    ) -> io.NodeOutput:
        from ..steps import answer, stages

        step = answer.begin(
            context, seed=seed, tokens_left=max_tokens, max_images=0, temperature=temperature, top_p=top_p,
            top_k=top_k, min_p=min_p, repetition_penalty=repetition_penalty,
        )  # fmt: skip
        paragraph = display.TextStream(cls.hidden)
        write = stages.write_whole if mode == PLAN_FIRST else stages.write
        written = write(
            mllm, connector, context, max_new_tokens=max_tokens, seed=step.write_seed, **step.sampling(),
            on_token=paragraph.on_token,
        )  # fmt: skip
        display.say(cls.hidden, "Image 1" if written.stop == "picture" else "", written.text.strip())
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
    def check_lazy_status(cls, loop: Round, max_images: int, seeds: str, image: Any = None) -> list[str]:
        return steps_loop.missing_image(loop, max_images, image)

    @classmethod
    def execute(cls, loop: Round, max_images: int, seeds: str, image: Any = None) -> io.NodeOutput:
        return steps_loop.close(cls.hidden, loop, max_images, seeds, image)


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


class DuoGenInterleaveStep(io.ComfyNode):
    """Put in by DuoGen Interleave. Its third output is one value that holds a list: an output marked as a list does not
    survive an expansion; the outermost node makes its list output of that value."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenInterleaveStep",
            display_name="DuoGen Interleave Step",
            category="DuoGen/internal",
            description="DuoGen Interleave puts this node in while it runs. It is not meant to be used by hand.",
            inputs=[
                sockets.Mllm.Input("mllm", tooltip="As DuoGen Interleave has it."),
                sockets.Connector.Input("connector", tooltip="As DuoGen Interleave has it."),
                io.Model.Input("model", tooltip="As DuoGen Interleave has it."),
                io.Vae.Input("vae", tooltip="As DuoGen Interleave has it."),
                sockets.Context.Input("context", tooltip="The answer so far."),
                io.String.Input("stop", tooltip="Why the writing stopped."),
                io.Int.Input("tokens", tooltip="How many tokens were written."),
                io.String.Input("duogen_step", tooltip="Settings and progress, as JSON."),
            ],
            outputs=[
                sockets.Context.Output("context", tooltip="The finished conversation."),
                io.String.Output("text", tooltip="The text of the answer."),
                io.Image.Output("images", tooltip="The images of the answer, as one list."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            enable_expand=True,
            is_dev_only=True,
        )

    @classmethod
    def execute(
        cls,
        mllm: Any,
        connector: Any,
        model: Any,
        vae: Any,
        context: Document,
        stop: str,
        tokens: int,
        duogen_step: str,
    ) -> io.NodeOutput:
        from ..steps import answer

        before = answer.Step.from_text(duogen_step).after_text(tokens)
        ending = before.ending(stop)
        if ending is not None:
            context = before.finished(context, mllm.config.name, ending)
            display.say(cls.hidden, unfinished.LIMITS.get(ending, ""), answer.whole_answer(context))
            drawn = image_list(context.pictures[before.first_picture :])
            ui = unfinished.show_end(cls.hidden, context, drawn=before.drawn)
            return io.NodeOutput(context, before.written(context), drawn, ui=ui)
        if before.drawn:  # what was written since the last image; images that came from a cache
            unfinished.keep(cls.hidden, context, before.record(mllm.config.name, "interrupted"))
        graph = new_graph(cls.hidden)
        links = add_values(graph, "values", mllm=mllm, connector=connector, model=model, vae=vae, context=context)
        return steps_loop.start_writing(
            graph, mllm, links, steps_loop.draw_next(graph, links, before), before.after_picture()
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
                sockets.Mllm.Input("mllm", tooltip="As DuoGen Loop Open has it."),
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
        cls, mllm: Any, context: Document, stop: str, tokens: int, duogen_step: str, connector: Any = None
    ) -> io.NodeOutput:
        from duogen_core import pipeline

        from ..steps import answer

        step = answer.Step.from_text(duogen_step).after_text(tokens)
        state = steps_loop.Round(context, step.ending(stop) or "picture", step, mllm, connector)
        if state.stop == "picture":
            close = cls.hidden.dynprompt.get_parent_node_id(cls.hidden.unique_id)
            limit = cls.hidden.dynprompt.get_node(close)["inputs"].get("max_images")
            title = f"Image {step.drawn + 1}" + (f" of at most {limit}" if isinstance(limit, int) else "")
            display.say(cls.hidden, title, pipeline.step_text(answer.before_next_picture(context)))
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
    def check_lazy_status(cls, loop: Round, max_images: int, seeds: str, image: Any = None) -> list[str]:
        return steps_loop.missing_image(loop, max_images, image)

    @classmethod
    def execute(cls, loop: Round, max_images: int, seeds: str, image: Any = None) -> io.NodeOutput:
        from duogen_core.errors import DuoGenError

        if list_index():
            raise DuoGenError(
                "One image is due in each round of the loop, but the nodes between DuoGen Loop Open and Loop Close "
                "output a list of several; choose one of them first."
            )
        return steps_loop.close(cls.hidden, loop, max_images, seeds, image)


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
