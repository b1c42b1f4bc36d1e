"""DuoGen Loop Open and Loop Close: the loop of DuoGen Interleave with the user's own nodes where a picture is drawn.

    Loop Open -> (context, text, seed, number) -> whatever draws a picture -> Loop Close -> the finished answer

Open writes up to the first picture. Close appends what was drawn, lets the model write on, and while it wants another
picture puts a copy of everything between Open and Close into the running graph (ComfyUI's node expansion), with a Round
in the place of Open. Close asks for its picture only when one is due (a lazy input), so an answer without pictures
draws none. Each copy is cached by its inputs. Close holds the settings of single pictures (their seeds, the limit),
because everything after Open is computed again when an input of Open changes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker
from comfy_execution.utils import get_executing_context

from ..host.expansion import expand, list_index, new_graph
from ..steps.loop_body import copy_body, sampling_between
from . import given, inputs, sockets
from .inputs import AS_IT_GOES, PLAN_FIRST

if TYPE_CHECKING:
    from collections.abc import Sequence

    from comfy_execution.graph_utils import GraphBuilder

    from duogen_core.document import Document

    from ..steps.answer import Step

CATEGORY = "DuoGen/loop"


@dataclass(frozen=True, eq=False)
class Round:
    """DUOGEN_LOOP: the answer when its next picture is due, or when it ended."""

    context: Document
    stop: str  # why the writing stopped
    step: Step
    mllm: Any = None  # nothing where any writer writes (writer_nodes.py)
    connector: Any = None
    # Of a list of requests: whether a picture is due, entry by entry. All rounds of the list have the same one.
    due: Sequence[bool] = ()


_list_now: tuple[Any, list[bool]] = (None, [])


def due_in_list(stop: str) -> list[bool]:
    """Round.due. ComfyUI calls a node for one entry after the other, so it grows with every call."""
    global _list_now
    context, index = get_executing_context(), list_index()
    node = context and (context.prompt_id, context.node_id)
    if index == 0 or _list_now[0] != node:
        _list_now = (node, [])
    _list_now[1].append(stop == "picture")
    return _list_now[1]


def round_outputs() -> list[io.Output]:
    return [
        sockets.Loop.Output("loop", tooltip="To DuoGen Loop Close."),
        sockets.Context.Output("context", tooltip="The answer up to the place where a picture is due."),
        io.String.Output(
            "text",
            tooltip="What the picture is to show: the paragraph before it, or the caption of a language model that "
            "was asked for one. A prompt for any other model.",
        ),
        io.Int.Output(
            "seed", tooltip="The seed of this picture, made of the answer's, or its own from DuoGen Loop Close."
        ),
        io.Int.Output("number", tooltip="Which picture of the answer is due, counted from 1."),
    ]


def given_out(state: Round) -> list[Any]:
    """The values of `round_outputs`; nothing but the loop goes on when no picture is due."""
    from duogen_core import pipeline

    from ..steps import planned_answer as plan

    if state.stop != "picture":
        return [state, *[ExecutionBlocker(None)] * 4]
    text = pipeline.picture_prompt(plan.before_next_picture(state.context))
    return [state, state.context, text, state.step.picture_seed, state.step.drawn + 1]


class DuoGenLoopOpen(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenLoopOpen",
            display_name="DuoGen Loop Open",
            category=CATEGORY,
            description="Begins an answer and stops where a picture is due. Everything between this node and DuoGen "
            "Loop Close draws that picture, and is run again for each further one: put any nodes there.",
            search_aliases=["for each picture", "while loop", "interleave loop", "begin loop"],
            inputs=[
                sockets.Mllm.Input("mllm", tooltip="The language model that writes."),
                sockets.Context.Input("context", tooltip="The request, or an answer to go on with."),
                sockets.Connector.Input(
                    "connector",
                    optional=True,
                    tooltip="The connector that the pictures are made with. Not needed when another model draws.",
                ),
                inputs.seed(
                    "The seed of the answer and of its first picture; later ones get seeds of their own, made of it."
                ),
                inputs.max_tokens(),
                inputs.mode(),
                inputs.temperature(advanced=True),
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
    ) -> io.NodeOutput:
        from ..steps import answer, live, stages

        step = answer.begin(context, seed=seed, tokens_left=max_tokens, max_images=0, temperature=temperature)
        paragraph = live.LiveText(cls.hidden)
        write = stages.write_whole if mode == PLAN_FIRST else stages.write
        written = write(
            mllm, connector, context, max_new_tokens=max_tokens, seed=step.write_seed, temperature=temperature,
            on_token=paragraph.on_token,
        )  # fmt: skip
        live.say(cls.hidden, "Picture 1" if written.stop == "picture" else "", written.text.strip())
        step = step.after_text(written.tokens)
        state = Round(written.context, written.stop, step, mllm, connector, due_in_list(written.stop))
        return io.NodeOutput(*given_out(state))


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

        from ..steps import answer, live
        from ..steps import planned_answer as plan

        step = answer.Step.from_text(duogen_step).after_text(tokens)
        state = Round(context, step.ending(stop) or "picture", step, mllm, connector)
        if state.stop == "picture":
            close = cls.hidden.dynprompt.get_parent_node_id(cls.hidden.unique_id)
            limit = cls.hidden.dynprompt.get_node(close)["inputs"].get("max_images")
            title = f"Picture {step.drawn + 1}" + (f" of at most {limit}" if isinstance(limit, int) else "")
            live.say(cls.hidden, title, pipeline.step_text(plan.before_next_picture(context)))
        return io.NodeOutput(*given_out(state))


def _close_schema(**kwargs: Any) -> io.Schema:
    images = io.Image.Output(
        "images",
        is_output_list=kwargs["node_id"] == "DuoGenLoopClose",
        tooltip="The pictures of the answer, each in its own size.",
    )
    return io.Schema(
        inputs=[
            sockets.Loop.Input("loop", tooltip="From DuoGen Loop Open, or from DuoGen Read Writer."),
            io.Image.Input("image", lazy=True, tooltip="The picture for this place of the answer."),
            inputs.max_images(),
            inputs.picture_seeds(
                "Other seeds for single pictures of this answer, such as 3: 1234, 5: 99. The pictures before "
                "the first one named are not drawn again. The first picture has the seed of DuoGen Loop Open."
            ),
        ],
        outputs=[
            sockets.Context.Output("context", tooltip="The conversation with the answer at its end."),
            io.String.Output("text", tooltip="The text of the answer, without its pictures."),
            images,
        ],
        hidden=[io.Hidden.unique_id, io.Hidden.dynprompt, io.Hidden.prompt, io.Hidden.extra_pnginfo],
        enable_expand=True,
        **kwargs,
    )


class DuoGenLoopClose(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return _close_schema(
            node_id="DuoGenLoopClose",
            display_name="DuoGen Loop Close",
            category=CATEGORY,
            description="Takes the picture that was drawn since DuoGen Loop Open, shows it to the language model, and "
            "goes round again until the answer ends.",
            search_aliases=["end loop", "loop end"],
        )

    @classmethod
    def check_lazy_status(cls, loop: Round, max_images: int, seeds: str, image: Any = None) -> list[str]:
        return missing_image(loop, max_images, image)

    @classmethod
    def execute(cls, loop: Round, max_images: int, seeds: str, image: Any = None) -> io.NodeOutput:
        return close(cls.hidden, loop, max_images, seeds, image)


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
        return missing_image(loop, max_images, image)

    @classmethod
    def execute(cls, loop: Round, max_images: int, seeds: str, image: Any = None) -> io.NodeOutput:
        from duogen_core.errors import DuoGenError

        if list_index():
            raise DuoGenError(
                "One picture is due in each round of the loop, but what lies between DuoGen Loop Open and Loop Close "
                "gives a list of several; choose one of them first."
            )
        return close(cls.hidden, loop, max_images, seeds, image)


def missing_image(state: Round, max_images: int, image: Any) -> list[str]:
    """Asked for is the picture that is drawn in the user's own nodes: for all requests of a list, or for none. Where
    one answer needs no picture, ComfyUI would block its Close along with the nodes that draw."""
    return ["image"] if image is None and ending(state, max_images) is None and all(state.due) else []


def ending(state: Round, max_images: int) -> str | None:
    """Why the answer ends here; None: a picture is due."""
    if state.stop != "picture":
        return state.stop
    return "max_images" if state.step.drawn >= max_images else None


def close(hidden: Any, state: Round, max_images: int, seeds: str, image: Any) -> io.NodeOutput:
    from duogen_core.errors import DuoGenError

    from ..steps import answer, live, unfinished
    from ..steps.writer_loop import ask_again, asked, read_again

    own, step = answer.parse_seeds(seeds), state.step
    if 1 in own:
        where = "Loop Open" if state.mllm else "Read Writer"
        raise DuoGenError(f"The first picture of a loop has the seed of DuoGen {where}; change it there.")
    why, name = ending(state, max_images), state.mllm.config.name if state.mllm else None
    if why is not None:
        context = step.finished(state.context, name, why)
        live.say(hidden, live.LIMITS.get(why, ""), live.whole_answer(context))
        images = sockets.image_list(context.pictures[step.first_picture :])
        ui = unfinished.show_end(hidden, context, drawn=step.drawn)
        return io.NodeOutput(context, step.written(context), images, ui=ui)
    if step.drawn:  # what was written since the last picture; pictures that come from a cache
        unfinished.keep(hidden, state.context, step.record(name, "interrupted"))

    links = hidden.dynprompt.get_node(hidden.unique_id)["inputs"]
    opened = links["loop"][0]
    start = opened if state.mllm else asked(hidden, opened)
    if hidden.dynprompt.get_node(start)["class_type"] not in ("DuoGenLoopOpen", "DuoGenLoopRound", "DuoGenAskWriter"):
        raise DuoGenError("The loop input must come straight from DuoGen Loop Open; remove what lies between them.")
    graph = new_graph(hidden)
    following = answer.for_next_picture(step if image is None else step.after_picture(), own, max_images)
    if not step.drawn:
        sampling = state.mllm.config.sampling if state.mllm else None
        following = replace(following, **sampling_between(hidden, start, sampling))
    models = given.put_in(
        graph, "given", mllm=state.mllm, connector=state.connector, context=state.context, image=image
    )  # fmt: skip
    context = models.pop("context")
    if image is not None:
        append = graph.node(
            "DuoGenAppendImage", "append", context=context, image=models.pop("image"), seed=step.picture_seed
        )
        context = append.out(0)
    # Without an image, the first one is drawn in a copy of the user's nodes (see missing_image). What the user hung on
    # the nodes themselves, a preview for example, has asked for it there too, and shows it twice.
    if state.mllm:
        round_ = write_on(graph, hidden, opened, models, context, following, write=image is not None)
        copies = copy_body(graph, hidden, opened, round_.id)
    else:
        round_ = ask_again(graph, hidden, start, None if image is None else context)
        changed = read_again(hidden, opened, following)
        copies = copy_body(graph, hidden, start, round_.id, changed)
    again = graph.node("DuoGenLoopNext", "next", max_images=max_images, seeds=seeds)
    for name in ("loop", "image"):
        again.set_input(name, copies(links[name]))
    return expand(graph, state.mllm or state, again, hidden.unique_id)


def write_on(
    graph: GraphBuilder, hidden: Any, opened: str, models: dict, context: list, following: Step, *, write: bool
) -> Any:
    """The Round that stands for Open in the next round. write: our language model writes up to the next picture first;
    otherwise a picture is due now."""
    stop: Any = "picture"
    tokens: Any = 0
    shown = []
    if write:
        written = graph.node(
            "DuoGenWrite", "write", **models, context=context, max_tokens=following.tokens_left,
            seed=following.write_seed, temperature=following.temperature, top_p=1.0, mode=AS_IT_GOES,
        )  # fmt: skip
        context, stop, tokens = written.out(0), written.out(3), written.out(4)
        shown.append(written)
    round_ = graph.node(
        "DuoGenLoopRound", "round", **models, context=context, stop=stop, tokens=tokens,
        duogen_step=following.to_text(),
    )  # fmt: skip
    for node in (*shown, round_):
        node.set_override_display_id(hidden.dynprompt.get_display_node_id(opened))
    return round_
