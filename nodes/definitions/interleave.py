"""DuoGen Interleave: the whole loop in one node. It writes, draws, looks at what it drew, and writes on.

It does none of that itself: it puts the stage nodes into the running graph (ComfyUI's node expansion), one picture at a
time, because only DuoGen Write finds out whether there is another one:

    Write -> Step -> (Encode Context -> Connector -> Reference Images -> Sampler -> VAEDecode -> Append Image -> Write
    -> Step -> (…)), and the Step after the last picture gives out the finished answer.

So each stage is cached by its inputs, as any node is. A Step is cheap and runs again whenever a setting changed; the
stages it puts in have changed only where the setting concerns them. A new seed for picture 3 leaves 1 and 2 alone.
What a Step puts in hangs on values (given.py), not on nodes that have run; what it gives out is kept (kept.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..host.expansion import expand, new_graph
from . import given, inputs, sockets
from .conditioning import FIXED, LIKE_LAST, LIKE_NUMBER
from .inputs import AS_IT_GOES

if TYPE_CHECKING:
    from comfy_execution.graph_utils import GraphBuilder

    from duogen_core.document import Document

    from ..steps.answer import Step


class DuoGenInterleave(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenInterleave",
            display_name="DuoGen Interleave",
            category="DuoGen",
            description="Answers a request with text and pictures in turn. The language model writes; where it wants a "
            "picture, the diffusion transformer draws it while looking at every earlier picture; the picture joins the "
            "context and the writing goes on, until the answer ends.",
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
                    tooltip="The diffusion transformer that draws; LoRAs and patches around the whole model (shift, "
                    "RescaleCFG, EasyCache) apply.",
                ),
                io.Vae.Input("vae", tooltip="The VAE of the same checkpoint."),
                sockets.Context.Input(
                    "context", tooltip="The request, from DuoGen Prompt, or an answer to go on with."
                ),
                inputs.seed(
                    "The seed of the answer and of its first picture; later ones get seeds of their own, "
                    "made of it. The same seed gives the same answer."
                ),
                inputs.steps(),
                inputs.cfg(),
                inputs.sampler_name(),
                inputs.scheduler(),
                inputs.max_images(),
                inputs.max_tokens(),
                io.Int.Input(
                    "width",
                    default=0,
                    min=0,
                    max=16384,
                    step=16,
                    tooltip="Width of every picture in pixels. 0: like the last picture of the context, or the "
                    "checkpoint's own size when there is none.",
                ),
                io.Int.Input(
                    "height",
                    default=0,
                    min=0,
                    max=16384,
                    step=16,
                    tooltip="Height of every picture in pixels. 0: see width.",
                ),
                inputs.picture_seeds(
                    "Other seeds for single pictures of this answer, such as 3: 1234, 5: 99. The pictures "
                    "before the first one named stay as they are, and are not drawn again.",
                    optional=True,
                ),
                inputs.mode(optional=True),
                io.String.Input(
                    "references",
                    default="all",
                    optional=True,
                    advanced=True,
                    tooltip="Which earlier pictures each new one looks at: all, none, last 2, or numbers such as "
                    "1, 3-4.",
                ),
                io.Int.Input(
                    "size_like",
                    default=0,
                    min=0,
                    max=1000,
                    optional=True,
                    advanced=True,
                    tooltip="With width and height 0: the size of this picture of the conversation, counted from 1. "
                    "0: of the last one.",
                ),
                inputs.temperature(optional=True, advanced=True),
            ],
            outputs=[
                sockets.Context.Output("context", tooltip="The conversation with the answer at its end."),
                io.String.Output("text", tooltip="The text of the answer, without its pictures."),
                io.Image.Output(
                    "images", is_output_list=True, tooltip="The pictures of the answer, each in its own size."
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
    ) -> io.NodeOutput:
        from duogen_core import pipeline
        from duogen_core.errors import DuoGenError

        from ..host import part_check as fit
        from ..steps import answer

        fit.check_connector(mllm, connector)
        fit.check_model(model, connector)
        fit.check_vae(vae, model)
        if (width == 0) != (height == 0):
            raise DuoGenError(
                f"The size is {width} x {height}: set both sides, or both to 0 to let the context decide."
            )
        settings = pipeline.Settings(seed=seed, steps=steps or None, guidance=cfg or None)
        settings = settings.resolved(fit.config_of(mllm, model))
        answer.choose(references, 0)  # says now what is wrong with it, not after the first paragraph
        step = answer.begin(
            context, seed=seed, max_images=max_images, tokens_left=max_tokens, steps=settings.steps,
            cfg=settings.guidance, shift=settings.shift, sampler_name=sampler_name, scheduler=scheduler, width=width,
            height=height, size_like=size_like, temperature=temperature, references=references, seeds=seeds,
        )  # fmt: skip
        graph = new_graph(cls.hidden)
        links = given.put_in(
            graph, "given", mllm=mllm, connector=connector, model=model, vae=vae, context=context
        )  # fmt: skip
        return write_on(graph, mllm, links, links["context"], step, mode)


def write_on(
    graph: GraphBuilder, mllm: Any, links: dict[str, list], context: list, step: Step, mode: str = AS_IT_GOES
) -> io.NodeOutput:
    """Put in DuoGen Write and the Step that goes by what was written; the Step's outputs are ours."""
    write = graph.node(
        "DuoGenWrite", "write", mllm=links["mllm"], context=context, connector=links["connector"],
        max_tokens=step.tokens_left, seed=step.write_seed, temperature=step.temperature, top_p=1.0, mode=mode,
    )  # fmt: skip
    following = graph.node(
        "DuoGenInterleaveStep", "step", **{**links, "context": write.out(0)}, stop=write.out(3), tokens=write.out(4),
        duogen_step=step.to_text(),
    )  # fmt: skip
    return expand(graph, mllm, following)


def draw_next(graph: GraphBuilder, links: dict[str, list], step: Step) -> list:
    """Put in the stages of one picture; returns the link to the context with it."""
    context = links["context"]
    encode = graph.node(
        "DuoGenEncodeContext", "encode", mllm=links["mllm"], connector=links["connector"], context=context
    )
    connect = graph.node("DuoGenConnector", "connect", states=encode.out(0))
    refer = graph.node(
        "DuoGenReferenceImages", "refer", positive=connect.out(0), negative=connect.out(1), vae=links["vae"],
        context=context, which=step.references,
    )  # fmt: skip
    kind = FIXED if step.width else LIKE_NUMBER if step.size_like else LIKE_LAST
    size = graph.node(
        "DuoGenPictureSize", "size", context=context, size=kind, picture=step.size_like or 1, width=step.width or 1024,
        height=step.height or 1024, mllm=links["mllm"],
    )  # fmt: skip
    sample = graph.node(
        "DuoGenSampler", "sample", model=links["model"], positive=refer.out(0), negative=refer.out(1),
        latent_image=size.out(0), seed=step.picture_seed, steps=step.steps, cfg=step.cfg,
        sampler_name=step.sampler_name, scheduler=step.scheduler, denoise=1.0,
    )  # fmt: skip
    decode = graph.node("VAEDecode", "decode", samples=sample.out(0), vae=links["vae"])
    append = graph.node("DuoGenAppendImage", "append", context=context, image=decode.out(0), seed=step.picture_seed)
    return append.out(0)


class DuoGenInterleaveStep(io.ComfyNode):
    """Put in by DuoGen Interleave. Its third output is one value, a list: outputs that are lists do not survive an
    expansion, except as the value that the outermost node makes its list of."""

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
                io.Image.Output("images", tooltip="The pictures of the answer, as one list."),
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
        from ..steps import answer, live, unfinished

        before = answer.Step.from_text(duogen_step).after_text(tokens)
        ending = before.ending(stop)
        if ending is not None:
            context = before.finished(context, mllm.config.name, ending)
            live.say(cls.hidden, live.LIMITS.get(ending, ""), live.whole_answer(context))
            drawn = sockets.image_list(context.pictures[before.first_picture :])
            ui = unfinished.show_end(cls.hidden, context, drawn=before.drawn)
            return io.NodeOutput(context, before.written(context), drawn, ui=ui)
        if before.drawn:  # what was written since the last picture; pictures that come from a cache
            unfinished.keep(cls.hidden, context, before.record(mllm.config.name, "interrupted"))
        graph = new_graph(cls.hidden)
        links = given.put_in(graph, "given", mllm=mllm, connector=connector, model=model, vae=vae, context=context)
        return write_on(graph, mllm, links, draw_next(graph, links, before), before.after_picture())
