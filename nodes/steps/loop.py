"""DuoGen Interleave and the loop: what they put into the running graph for the next image of an answer.

Interleave puts in its own stages, Write Text -> Step -> (Encode Context -> States to Conditioning -> Add Reference
Latents -> Sampler -> VAEDecode -> Append Image -> Write Text -> Step -> (…)). The loop puts in a copy of whatever the
user has between DuoGen Loop Open (or Any Writer Prompt) and Loop Close. Both do it one image at a time, because only
the writing shows whether there is another one; each stage is then cached by its inputs, as any node is.

In: the `hidden` of the node that is running. Nodes are those of ComfyUI's DynamicPrompt: {"class_type": …, "inputs":
{name: value or [node id, output]}}. Out: the node's result, with `expand` where the answer goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker, is_link
from comfy_execution.utils import get_executing_context

from ..host import display
from ..host.caches import owner_for
from ..host.expansion import add_values, entry_of, expand, list_index, new_graph, takes_lists
from ..host.images import image_list
from . import AS_IT_GOES, FIXED, LIKE_LAST, LIKE_NUMBER, PLAN_FIRST
from .graph import DUE, READERS, ROUND, nodes_between, opens, sampling_between

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from comfy_execution.graph_utils import GraphBuilder

    from duogen_core.document import Document

    from .answer import Step

Node = tuple[str, "Mapping[str, Any]"]
PLANNED = "planned"  # in the place of why the writing stopped: no language model is there, the answer was planned


# ------------------------------------------------------------ DuoGen Interleave


def control_of(control_net: Any, control_images: Any) -> dict[str, Any]:
    """A ControlNet and its images, by the names of the Step's inputs; {} for none."""
    from duogen_core.errors import DuoGenError

    if control_net is None and control_images is None:
        return {}
    if control_net is None or control_images is None:
        missing = "control_images" if control_images is None else "control_net"
        raise DuoGenError(f"To draw in outlines takes control_net and control_images; connect {missing} as well.")
    if not getattr(control_net, "for_duogen", False):
        raise DuoGenError(
            f"This CONTROL_NET ({type(control_net).__name__}) was made for another model; take one from DuoGen Load "
            "ControlNet."
        )
    return {"control_net": control_net, "control_images": control_images}


def start_writing(
    graph: GraphBuilder,
    mllm: Any,
    links: dict[str, list],
    context: list,
    step: Step,
    mode: str = AS_IT_GOES,
    control: Mapping[str, Any] = MappingProxyType({}),
) -> io.NodeOutput:
    """Puts in DuoGen Write Text and the Step that acts on its text; the Step's outputs are the running node's."""
    write = graph.node(
        "DuoGenWrite", "write", mllm=links["mllm"], context=context, connector=links["connector"],
        max_tokens=step.tokens_left, seed=step.write_seed, mode=mode, **step.sampling(),
        **step.given_texts(whole=mode == PLAN_FIRST),
    )  # fmt: skip
    # In a node of their own: other outlines must not change the inputs of what writes and draws (ComfyUI's cache).
    controlled = add_values(graph, "control", **control) if control else {}
    following = graph.node(
        "DuoGenInterleaveStep", "step", **{**links, "context": write.out(0)}, stop=write.out(3), tokens=write.out(4),
        duogen_step=step.to_text(), **controlled,
    )  # fmt: skip
    return expand(graph, mllm, following)


def draw_next(
    graph: GraphBuilder,
    links: dict[str, list],
    whole: list,
    step: Step,
    control: Mapping[str, Any] = MappingProxyType({}),
) -> list:
    """Puts in the stages of one image; returns the link to the context with it.

    links: what draws it. whole: the context that it joins, which links["context"] is a part of where the answer is
    planned (`answer.due_part`). control: as of `control_of`.
    """
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
    drawn_in = refer
    place = step.before + step.drawn
    if control and place < len(control["control_images"]):
        image = control["control_images"][place : place + 1]
        given = add_values(graph, "outlines", control_net=control["control_net"], image=image)
        drawn_in = graph.node(
            "ControlNetApplyAdvanced", "apply", positive=refer.out(0), negative=refer.out(1), **given, strength=1.0,
            start_percent=0.0, end_percent=1.0, vae=links["vae"],
        )  # fmt: skip
    sample = graph.node(
        "DuoGenSampler", "sample", model=links["model"], positive=drawn_in.out(0), negative=drawn_in.out(1),
        latent_image=size.out(0), seed=step.picture_seed, steps=step.steps, cfg=step.cfg,
        sampler_name=step.sampler_name, scheduler=step.scheduler, denoise=1.0,
    )  # fmt: skip
    decode = graph.node("VAEDecode", "decode", samples=sample.out(0), vae=links["vae"])
    append = graph.node("DuoGenAppendImage", "append", context=whole, image=decode.out(0), seed=step.picture_seed)
    return append.out(0)


# ------------------------------------------------------------ the loop: a round and its end


@dataclass(frozen=True, eq=False)
class Round:
    """DUOGEN_LOOP: the answer when its next image is due, or when it has ended."""

    context: Document
    stop: str  # why the writing stopped
    step: Step
    mllm: Any = None  # None where any other writer writes (DuoGen Any Writer Prompt), or wrote a plan before
    connector: Any = None
    # Of a list of requests: whether an image is due, entry by entry. All rounds of the list share this list.
    due: Sequence[bool] = ()


_list_now: tuple[Any, list[bool]] = (None, [])


def due_in_list(stop: str) -> list[bool]:
    """Returns Round.due. ComfyUI calls a node for one entry after the other, so the list grows with every call."""
    global _list_now
    context, index = get_executing_context(), list_index()
    node = context and (context.prompt_id, context.node_id)
    if index == 0 or _list_now[0] != node:
        _list_now = (node, [])
    _list_now[1].append(stop == "picture")
    return _list_now[1]


def round_values(state: Round) -> list[Any]:
    """The outputs of a round: loop, context, text, seed, number. Without an image due, only the loop goes on."""
    from duogen_core import picture_sampling
    from duogen_core.document.pending import before_next_picture

    if state.stop != "picture":
        return [state, *[ExecutionBlocker(None)] * 4]
    text = picture_sampling.picture_prompt(before_next_picture(state.context))
    return [state, state.context, text, state.step.picture_seed, state.step.drawn + 1]


def missing_image(state: Round, max_images: int, image: Any) -> list[str]:
    """For check_lazy_status: asks for the image that the user's nodes draw, for all requests of a list or for none.

    Where one answer of a list needs no image, ComfyUI would block its Close along with the nodes that draw.
    """
    return ["image"] if image is None and ending(state, max_images) is None and all(state.due) else []


def ending(state: Round, max_images: int) -> str | None:
    """Why the answer ends here; None: an image is due."""
    if state.stop != "picture":
        return state.stop
    return "max_images" if state.step.drawn >= max_images else None


def close(hidden: Any, state: Round, max_images: int, seeds: str, given: str, image: Any) -> io.NodeOutput:
    """Ends a round: the finished answer, or the graph of the next round. image: what was drawn; None: not drawn yet."""
    from duogen_core.errors import DuoGenError

    from . import answer, stages, unfinished

    own, fixed, step = answer.parse_seeds(seeds), answer.parse_given(given), state.step
    links = hidden.dynprompt.get_node(hidden.unique_id)["inputs"]
    opened = links["loop"][0]
    by_reader = hidden.dynprompt.get_node(opened)["class_type"] in READERS
    if 1 in own:
        where = "Any Writer Answer" if by_reader else "Loop Open"
        raise DuoGenError(f"The first image of a loop has the seed of DuoGen {where}; change it there.")
    if 1 in fixed:
        where = "Any Writer Answer" if by_reader else "Loop Open"
        raise DuoGenError(f"The first text and image of a loop are made from DuoGen {where}; give them there.")
    why, name = ending(state, max_images), state.mllm.config.name if state.mllm else None
    if why is not None:
        context = step.finished(state.context, name, why)
        limit = unfinished.limit(why, state.context)
        display.say(hidden, limit, answer.whole_answer(context), phase="end", notice=limit)
        images = image_list(context.pictures[step.first_picture :])
        ui = unfinished.show_end(hidden, context, drawn=step.drawn)
        return io.NodeOutput(context, step.written(context), images, ui=ui)
    if step.drawn:  # what was written since the last image; images that came from a cache
        unfinished.keep(hidden, state.context, step.record(name, "interrupted"))
    elif image is not None:
        unfinished.warn_of_limit(hidden, state.context, max_images)

    start = ask_writer_of(hidden, opened) if by_reader else opened
    if hidden.dynprompt.get_node(start)["class_type"] not in ("DuoGenLoopOpen", "DuoGenLoopRound", "DuoGenAskWriter"):
        raise DuoGenError(
            "The loop input must come straight from DuoGen Loop Open, or from DuoGen Any Writer Answer; remove what "
            "lies between them."
        )
    graph = new_graph(hidden)
    following = answer.for_next_picture(step if image is None else step.after_picture(), own, max_images, fixed)
    if image is None:  # the first one, as Open had it
        following = replace(following, seeds=step.seeds, given=step.given)
    if not step.drawn:
        sampling = state.mllm.config.sampling if state.mllm else None
        following = replace(following, **sampling_between(hidden, start, sampling))
    models = add_values(
        graph, "values", mllm=state.mllm, connector=state.connector, context=state.context, image=image
    )  # fmt: skip
    context = models.pop("context")
    if image is not None:
        append = graph.node(
            "DuoGenAppendImage", "append", context=context, image=models.pop("image"), seed=step.picture_seed
        )
        context = append.out(0)
    # Without an image, the first one is drawn in a copy of the user's nodes (see missing_image). What the user hung on
    # the nodes themselves, a preview for example, has asked for it there too, and shows it twice.
    if not by_reader:
        round_ = next_round(graph, hidden, opened, models, context, following, write=image is not None)
        drawn = (
            state.context if image is None else stages.append(hidden.dynprompt, state.context, image, step.picture_seed)
        )
        due = due_round(graph, hidden, opened, drawn, following)
        copies = copy_body(graph, hidden, opened, round_.id, due=due)
    else:
        round_ = ask_again(graph, hidden, start, None if image is None else context)
        changed = read_again(hidden, opened, following)
        copies = copy_body(graph, hidden, start, round_.id, changed)
    again = graph.node("DuoGenLoopNext", "next", max_images=max_images, seeds=seeds, given=given)
    for name in ("loop", "image"):
        again.set_input(name, copies(links[name]))
    owner = state.mllm or (state if by_reader else owner_for(request_of(state.context)))
    return expand(graph, owner, again, hidden.unique_id)


def next_round(
    graph: GraphBuilder, hidden: Any, opened: str, models: dict, context: list, following: Step, *, write: bool
) -> Any:
    """Puts in the Round that stands for Open in the next round.

    write: our language model writes up to the next image first; otherwise an image is due now. Without a language
    model the answer was planned, and says itself what follows.
    """
    stop: Any = "picture"
    tokens: Any = 0
    shown = []
    if write and "mllm" not in models:
        stop = PLANNED
    elif write:
        written = graph.node(
            "DuoGenWrite", "write", **models, context=context, max_tokens=following.tokens_left,
            seed=following.write_seed, mode=AS_IT_GOES, **following.sampling(), **following.given_texts(whole=False),
        )  # fmt: skip
        following = replace(following, given="")  # the rest of it is a text, and written
        context, stop, tokens = written.out(0), written.out(3), written.out(4)
        shown.append(written)
    round_ = graph.node(
        "DuoGenLoopRound", ROUND, **models, context=context, stop=stop, tokens=tokens,
        duogen_step=following.to_text(),
    )  # fmt: skip
    for node in (*shown, round_):
        node.set_override_display_id(hidden.dynprompt.get_display_node_id(opened))
    return round_


def due_round(graph: GraphBuilder, hidden: Any, opened: str, context: Document, following: Step) -> str | None:
    """Puts in a second Round, for the nodes that draw the next image of a planned answer; returns its id.

    It knows the plan up to that image only (`answer.due_part`), so that a change further on draws nothing again. None
    where no image of a plan is due.
    """
    from duogen_core.document import pending

    from . import answer

    if pending.pending_index(context) is None:
        return None
    part = add_values(graph, "part", context=answer.due_part(context))["context"]
    due = graph.node(
        "DuoGenLoopRound", DUE, context=part, stop="picture", tokens=0, duogen_step=following.to_text()
    )  # fmt: skip
    due.set_override_display_id(hidden.dynprompt.get_display_node_id(opened))
    return due.id


def request_of(context: Document) -> Any:
    """The request that the last answer answers: the very turn that DuoGen Prompt made, as long as that stays."""
    asked = [turn for turn in context.turns if turn.role == "user"]
    return asked[-1] if asked else context.turns[-1]


# ------------------------------------------------------------ the loop with any writer


def ask_writer_of(hidden: Any, reader: str) -> str:
    """Returns the id of the Any Writer Prompt that an Any Writer Answer belongs to."""
    from duogen_core.errors import DuoGenError

    context = hidden.dynprompt.get_node(reader)["inputs"]["context"]
    if not is_link(context) or hidden.dynprompt.get_node(context[0])["class_type"] != "DuoGenAskWriter":
        raise DuoGenError(
            "In a loop, the context of DuoGen Any Writer Answer must come straight from DuoGen Any Writer Prompt; "
            "connect its context output."
        )
    return context[0]


def ask_again(graph: GraphBuilder, hidden: Any, ask: str, context: list | None) -> Any:
    """Puts in the same Any Writer Prompt with a longer context; None: with its own (of a list, this call's entry)."""
    nodes = hidden.dynprompt
    inputs = dict(nodes.get_node(ask)["inputs"])
    if context is not None:
        inputs["context"] = context
    for name, value in inputs.items():
        if is_link(value) and value is not context:
            inputs[name] = entry_of(graph, nodes, value)
    again = graph.node("DuoGenAskWriter", "ask", **inputs)
    again.set_override_display_id(nodes.get_display_node_id(ask))
    return again


def read_again(hidden: Any, reader: str, following: Step) -> dict[str, Node]:
    """Returns the Any Writer Answer of the next round: {id: (class, inputs)}.

    Its settings come with the step, so that another seed of one image changes neither the prompt nor the text.
    """
    inputs = hidden.dynprompt.get_node(reader)["inputs"]
    same = {name: inputs[name] for name in ("context", "text")}
    return {reader: ("DuoGenReadWriterNext", {**same, "duogen_step": following.to_text()})}


# ------------------------------------------------------------ the user's nodes in the loop


def copy_body(
    graph: GraphBuilder,
    hidden: Any,
    opened: str,
    round_id: str,
    changed: Mapping[str, Node] = MappingProxyType({}),
    due: str | None = None,
) -> Callable[[Any], Any]:
    """Copies what depends on Open and not on Close, previews and savers included; returns a function link -> its copy.

    round_id: what stands for Open. changed: nodes to put in as something else: {id: (class, inputs)}. due: what stands
    for it where an image is drawn, all but its output `loop` (`due_round`).
    """
    nodes, body = hidden.dynprompt, nodes_between(hidden, opened)
    became = {node: (nodes.get_node(node)["class_type"], nodes.get_node(node)["inputs"]) for node in body} | {**changed}
    names = {node: nodes.get_display_node_id(node) for node in body}
    copies = {node: graph.node(became[node][0], f"body.{name}") for node, name in names.items()}

    def moved(value: Any, whole_lists: bool = False) -> Any:
        if not is_link(value):
            return value
        if value[0] in opens(nodes, opened):
            return [due if due and value[1] else round_id, value[1]]
        if value[0] in copies:
            return copies[value[0]].out(value[1])
        return value if whole_lists else entry_of(graph, nodes, value)

    for node, copied in copies.items():
        copied.set_override_display_id(names[node])
        for key, value in became[node][1].items():
            copied.set_input(key, moved(value, takes_lists(became[node][0])))
    return moved
