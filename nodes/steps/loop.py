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

import nodes as comfy_nodes

from ..host import display
from ..host.expansion import add_values, entry_of, expand, list_index, new_graph, takes_lists
from ..host.images import image_list
from . import AS_IT_GOES, FIXED, LIKE_LAST, LIKE_NUMBER

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from comfy_execution.graph_utils import GraphBuilder

    from duogen_core.document import Document
    from duogen_core.sampling import Sampling

    from .answer import Step

SAMPLERS = {"DuoGenSampler", "KSampler"}
Node = tuple[str, "Mapping[str, Any]"]
CLOSES = {"DuoGenLoopClose", "DuoGenLoopNext"}
READERS = {"DuoGenReadWriter", "DuoGenReadWriterNext"}
CUSTOM_SAMPLERS = {"KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced"}


# ------------------------------------------------------------ DuoGen Interleave


def start_writing(
    graph: GraphBuilder, mllm: Any, links: dict[str, list], context: list, step: Step, mode: str = AS_IT_GOES
) -> io.NodeOutput:
    """Puts in DuoGen Write Text and the Step that acts on its text; the Step's outputs are the running node's."""
    write = graph.node(
        "DuoGenWrite", "write", mllm=links["mllm"], context=context, connector=links["connector"],
        max_tokens=step.tokens_left, seed=step.write_seed, mode=mode, **step.sampling(),
    )  # fmt: skip
    following = graph.node(
        "DuoGenInterleaveStep", "step", **{**links, "context": write.out(0)}, stop=write.out(3), tokens=write.out(4),
        duogen_step=step.to_text(),
    )  # fmt: skip
    return expand(graph, mllm, following)


def draw_next(graph: GraphBuilder, links: dict[str, list], step: Step) -> list:
    """Puts in the stages of one image; returns the link to the context with it."""
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


# ------------------------------------------------------------ the loop: a round and its end


@dataclass(frozen=True, eq=False)
class Round:
    """DUOGEN_LOOP: the answer when its next image is due, or when it has ended."""

    context: Document
    stop: str  # why the writing stopped
    step: Step
    mllm: Any = None  # None where any other writer writes (DuoGen Any Writer Prompt)
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
    from duogen_core import pipeline

    from .answer import before_next_picture

    if state.stop != "picture":
        return [state, *[ExecutionBlocker(None)] * 4]
    text = pipeline.picture_prompt(before_next_picture(state.context))
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


def close(hidden: Any, state: Round, max_images: int, seeds: str, image: Any) -> io.NodeOutput:
    """Ends a round: the finished answer, or the graph of the next round. image: what was drawn; None: not drawn yet."""
    from duogen_core.errors import DuoGenError

    from . import answer, unfinished

    own, step = answer.parse_seeds(seeds), state.step
    if 1 in own:
        where = "Loop Open" if state.mllm else "Any Writer Answer"
        raise DuoGenError(f"The first image of a loop has the seed of DuoGen {where}; change it there.")
    why, name = ending(state, max_images), state.mllm.config.name if state.mllm else None
    if why is not None:
        context = step.finished(state.context, name, why)
        display.say(hidden, unfinished.LIMITS.get(why, ""), answer.whole_answer(context))
        images = image_list(context.pictures[step.first_picture :])
        ui = unfinished.show_end(hidden, context, drawn=step.drawn)
        return io.NodeOutput(context, step.written(context), images, ui=ui)
    if step.drawn:  # what was written since the last image; images that came from a cache
        unfinished.keep(hidden, state.context, step.record(name, "interrupted"))

    links = hidden.dynprompt.get_node(hidden.unique_id)["inputs"]
    opened = links["loop"][0]
    start = opened if state.mllm else ask_writer_of(hidden, opened)
    if hidden.dynprompt.get_node(start)["class_type"] not in ("DuoGenLoopOpen", "DuoGenLoopRound", "DuoGenAskWriter"):
        raise DuoGenError("The loop input must come straight from DuoGen Loop Open; remove what lies between them.")
    graph = new_graph(hidden)
    following = answer.for_next_picture(step if image is None else step.after_picture(), own, max_images)
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
    if state.mllm:
        round_ = next_round(graph, hidden, opened, models, context, following, write=image is not None)
        copies = copy_body(graph, hidden, opened, round_.id)
    else:
        round_ = ask_again(graph, hidden, start, None if image is None else context)
        changed = read_again(hidden, opened, following)
        copies = copy_body(graph, hidden, start, round_.id, changed)
    again = graph.node("DuoGenLoopNext", "next", max_images=max_images, seeds=seeds)
    for name in ("loop", "image"):
        again.set_input(name, copies(links[name]))
    return expand(graph, state.mllm or state, again, hidden.unique_id)


def next_round(
    graph: GraphBuilder, hidden: Any, opened: str, models: dict, context: list, following: Step, *, write: bool
) -> Any:
    """Puts in the Round that stands for Open in the next round.

    write: our language model writes up to the next image first; otherwise an image is due now.
    """
    stop: Any = "picture"
    tokens: Any = 0
    shown = []
    if write:
        written = graph.node(
            "DuoGenWrite", "write", **models, context=context, max_tokens=following.tokens_left,
            seed=following.write_seed, mode=AS_IT_GOES, **following.sampling(),
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


# ------------------------------------------------------------ the loop with any writer


def ask_writer_of(hidden: Any, reader: str) -> str:
    """Returns the id of the Any Writer Prompt that an Any Writer Answer belongs to."""
    from duogen_core.errors import DuoGenError

    node = hidden.dynprompt.get_node(reader)
    if node["class_type"] not in READERS:
        raise DuoGenError(
            "The loop input must come straight from DuoGen Any Writer Answer; remove what lies between them."
        )
    context = node["inputs"]["context"]
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
) -> Callable[[Any], Any]:
    """Copies what depends on Open and not on Close, previews and savers included; returns a function link -> its copy.

    round_id: what stands for Open. changed: nodes to put in as something else: {id: (class, inputs)}.
    """
    nodes, body = hidden.dynprompt, nodes_between(hidden, opened)
    became = {node: (nodes.get_node(node)["class_type"], nodes.get_node(node)["inputs"]) for node in body} | {**changed}
    names = {node: nodes.get_display_node_id(node) for node in body}
    copies = {node: graph.node(became[node][0], f"body.{name}") for node, name in names.items()}

    def moved(value: Any, whole_lists: bool = False) -> Any:
        if not is_link(value):
            return value
        if value[0] == opened:
            return [round_id, value[1]]
        if value[0] in copies:
            return copies[value[0]].out(value[1])
        return value if whole_lists else entry_of(graph, nodes, value)

    for node, copied in copies.items():
        copied.set_override_display_id(names[node])
        for key, value in became[node][1].items():
            copied.set_input(key, moved(value, takes_lists(became[node][0])))
    return moved


def nodes_between(hidden: Any, opened: str) -> list[str]:
    """Returns the nodes that depend on Open (or the Round in its place) and belong to the Close that is running.

    Left out is what depends on that Close; what leads only to another Close of the same Open, and what depends on that;
    and what ComfyUI left out of the run because an input of it is not connected.
    """
    from duogen_core.errors import DuoGenError

    nodes, close = hidden.dynprompt, hidden.unique_id
    parent = nodes.get_parent_node_id(close)
    beside = [n for n in nodes.all_node_ids() if nodes.get_parent_node_id(n) == parent]
    after_open, leading_here = downstream(nodes, beside, opened), upstream(nodes, close)
    others = {node for node in beside if node != close and opened_by(nodes, node) == opened}
    if others & leading_here:
        raise DuoGenError(
            "Two DuoGen Loop Close share one DuoGen Loop Open, and the image of one is made from the answer of the "
            "other; give each a Loop Open of its own."
        )
    leading_there = {node for other in others for node in upstream(nodes, other)}
    left_out = others | ((leading_there & after_open) - leading_here)
    left_out |= {node for node in after_open - leading_here if lacks_input(nodes, nodes.get_node(node))}
    outside = left_out | {opened, close} | downstream(nodes, beside, close)
    outside |= {after for node in left_out for after in downstream(nodes, beside, node)}
    return sorted(after_open - outside)


def opened_by(nodes: Any, close: str) -> str | None:
    """Returns the Loop Open or Any Writer Prompt where the loop of a Close begins; None where the node is no Close."""
    node = nodes.get_node(close)
    link = node["inputs"].get("loop")
    if node["class_type"] not in CLOSES or not is_link(link):
        return None
    reader = nodes.get_node(link[0])
    context = reader["inputs"].get("context")
    return context[0] if reader["class_type"] in READERS and is_link(context) else link[0]


def lacks_input(nodes: Any, node: Mapping[str, Any]) -> bool:
    """Whether a required input has neither a link nor a value, or a link leads to an output that is not there.

    Inputs that grow have names of their own.
    """
    known = comfy_nodes.NODE_CLASS_MAPPINGS
    wanted = known[node["class_type"]].INPUT_TYPES().get("required", {})
    plain = [name for name, (kind, *_) in wanted.items() if not str(kind).startswith("COMFY_")]
    links = [value for value in node["inputs"].values() if is_link(value)]
    return any(name not in node["inputs"] for name in plain) or any(
        output >= len(known[nodes.get_node(source)["class_type"]].RETURN_TYPES) for source, output in links
    )


def sampling_between(hidden: Any, opened: str, own: Sampling | None) -> dict[str, Any]:
    """Returns steps, cfg and shift of the images, for the record, where the graph tells: one sampler in the loop, with
    its numbers in its widgets. own: the checkpoint's, which hold where its MODEL comes straight from the loader."""
    nodes = hidden.dynprompt
    between = [nodes.get_node(node) for node in nodes_between(hidden, opened)]
    samplers = [node["inputs"] for node in between if node["class_type"] in SAMPLERS]
    if len(samplers) != 1 or any(node["class_type"] in CUSTOM_SAMPLERS for node in between):
        return {}
    steps, cfg, model = (samplers[0].get(name) for name in ("steps", "cfg", "model"))
    mllm = nodes.get_node(opened)["inputs"].get("mllm")
    trained = own if is_link(model) and is_link(mllm) and model[0] == mllm[0] else None
    known: dict[str, Any] = {"shift": trained.shift} if trained else {}
    if isinstance(steps, int) and (steps or trained):  # 0 is DuoGen Sampler's word for the checkpoint's own
        known["steps"] = steps or trained.steps
    if isinstance(cfg, (int, float)) and (cfg or trained):
        known["cfg"] = float(cfg or trained.guidance)
    return known


def downstream(nodes: Any, among: list[str], start: str) -> set[str]:
    """The nodes that have, directly or not, an input from `start`."""
    found, new = set(), {start}
    while new:
        new = {
            node
            for node in among
            if node not in found
            and any(is_link(value) and value[0] in new for value in nodes.get_node(node)["inputs"].values())
        }
        found |= new
    return found


def upstream(nodes: Any, start: str) -> set[str]:
    """The nodes that `start` has, directly or not, an input from."""
    found, new = set(), [start]
    while new:
        links = [value for value in nodes.get_node(new.pop())["inputs"].values() if is_link(value)]
        before = {link[0] for link in links} - found
        found |= before
        new += before
    return found
