"""DuoGen Interleave: a whole answer in one node.

It puts nodes into the running graph (steps/loop.py): one writes, others draw, and DuoGen Interleave Step decides what
follows, until the answer ends. Each is an ordinary node with inputs of its own, so ComfyUI's cache keeps what a change
does not concern. DuoGenInterleaveStep is put in at run time and shown to developers only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..host import display
from ..host.expansion import add_values, new_graph
from ..host.images import image_list
from ..steps import AS_IT_GOES, unfinished
from ..steps import loop as steps_loop
from . import sockets

if TYPE_CHECKING:
    from duogen_core.document import Document


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
                "illustrated guide",
                "text and images",
                "story",
                "storyboard",
                "guide",
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
                sockets.steps(advanced=True),
                sockets.cfg(advanced=True),
                sockets.sampler_name(advanced=True),
                sockets.scheduler(advanced=True),
                sockets.max_images(),
                sockets.max_tokens(advanced=True),
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
                    tooltip="Which earlier images each new one looks at: all, none, last 2, planned (those that a plan "
                    "names), or numbers such as 1, 3-4.",
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
                sockets.given(),
                io.ControlNet.Input(
                    "control_net",
                    optional=True,
                    tooltip="A ControlNet from DuoGen Load ControlNet: each image is drawn in the outlines that "
                    "control_images has for it.",
                ),
                io.Image.Input(
                    "control_images",
                    optional=True,
                    tooltip="Outlines, white lines on black, as a batch: the first for the first image of the answer, "
                    "and so on. Images after the last one are drawn freely.",
                ),
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
        given: str = "",
        control_net: Any = None,
        control_images: Any = None,
    ) -> io.NodeOutput:
        from duogen_core.errors import DuoGenError
        from duogen_core.settings import Settings

        from ..host import compatibility
        from ..steps import answer

        compatibility.check_connector(mllm, connector)
        compatibility.check_model(model, connector)
        compatibility.check_vae(vae, model)
        control = steps_loop.control_of(control_net, control_images)
        if (width == 0) != (height == 0):
            raise DuoGenError(
                f"The size is {width} x {height}: set both sides, or both to 0 to let the context decide."
            )
        settings = Settings(seed=seed, steps=steps or None, guidance=cfg or None)
        settings = settings.resolved(compatibility.config_of(mllm, model))
        answer.choose(references, 0)  # so that a mistake in it is reported now, not after the first paragraph
        step = answer.begin(
            context, seed=seed, max_images=max_images, tokens_left=max_tokens, steps=settings.steps,
            cfg=settings.guidance, shift=settings.shift, sampler_name=sampler_name, scheduler=scheduler, width=width,
            height=height, size_like=size_like, temperature=temperature, references=references, seeds=seeds,
            top_p=top_p, top_k=top_k, min_p=min_p, repetition_penalty=repetition_penalty, given=given,
        )  # fmt: skip
        graph = new_graph(cls.hidden)
        links = add_values(
            graph, "values", mllm=mllm, connector=connector, model=model, vae=vae, context=context
        )  # fmt: skip
        return steps_loop.start_writing(graph, mllm, links, links["context"], step, mode, control)


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
                io.ControlNet.Input("control_net", optional=True, tooltip="As DuoGen Interleave has it."),
                io.Image.Input("control_images", optional=True, tooltip="As DuoGen Interleave has it."),
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
        control_net: Any = None,
        control_images: Any = None,
    ) -> io.NodeOutput:
        from duogen_core.document import pending

        from ..steps import answer

        before = answer.Step.from_text(duogen_step).after_text(tokens).continuing(context)
        ending = before.ending(stop)
        if ending is not None:
            limit = unfinished.limit(ending, context)
            context = before.finished(context, mllm.config.name, ending)
            display.say(cls.hidden, limit, answer.whole_answer(context), phase="end", notice=limit)
            drawn = image_list(context.pictures[before.first_picture :])
            ui = unfinished.show_end(cls.hidden, context, drawn=before.drawn)
            return io.NodeOutput(context, before.written(context), drawn, ui=ui)
        if before.drawn:  # what was written since the last image; images that came from a cache
            unfinished.keep(cls.hidden, context, before.record(mllm.config.name, "interrupted"))
        else:
            unfinished.warn_of_limit(cls.hidden, context, before.max_images)
        graph = new_graph(cls.hidden)
        links = add_values(graph, "values", mllm=mllm, connector=connector, model=model, vae=vae, context=context)
        due = links
        if pending.pending_index(context) is not None:
            part = answer.due_part(context)
            due = add_values(graph, "due", mllm=mllm, connector=connector, model=model, vae=vae, context=part)
        control = steps_loop.control_of(control_net, control_images)
        drawn = steps_loop.draw_next(graph, due, links["context"], before, control)
        return steps_loop.start_writing(graph, mllm, links, drawn, before.after_picture(), control=control)
