"""What the user has connected: which nodes lie between two of ours, before one and after one.

Nodes are those of ComfyUI's DynamicPrompt: {"class_type": …, "inputs": {name: value or [node id, output]}}. `hidden` is
that of the node that is running.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_execution.graph_utils import is_link

import nodes as comfy_nodes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from duogen_core.sampling import Sampling

CLOSES = {"DuoGenLoopClose", "DuoGenLoopNext"}
READERS = {"DuoGenReadWriter", "DuoGenReadWriterNext"}
ROUND, DUE = "round", "due"  # names of nodes that the loop puts in
SAMPLERS = {"DuoGenSampler", "KSampler"}
CUSTOM_SAMPLERS = {"KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced"}


def nodes_between(hidden: Any, opened: str) -> list[str]:
    """Returns the nodes that depend on Open (or the Round in its place) and belong to the Close that is running.

    Left out is what depends on that Close; what leads only to another Close of the same Open, and what depends on that;
    and what ComfyUI left out of the run because an input of it is not connected.
    """
    from duogen_core.errors import DuoGenError

    nodes, close = hidden.dynprompt, hidden.unique_id
    parent = nodes.get_parent_node_id(close)
    beside = [n for n in nodes.all_node_ids() if nodes.get_parent_node_id(n) == parent]
    after_open = {node for each in opens(nodes, opened) for node in downstream(nodes, beside, each)}
    leading_here = upstream(nodes, close)
    others = {node for node in beside if node != close and opened_by(nodes, node) == opened}
    if others & leading_here:
        raise DuoGenError(
            "Two DuoGen Loop Close share one DuoGen Loop Open, and the image of one is made from the answer of the "
            "other; give each a Loop Open of its own."
        )
    leading_there = {node for other in others for node in upstream(nodes, other)}
    left_out = others | ((leading_there & after_open) - leading_here)
    left_out |= {node for node in after_open - leading_here if lacks_input(nodes, nodes.get_node(node))}
    outside = left_out | {*opens(nodes, opened), close} | downstream(nodes, beside, close)
    outside |= {after for node in left_out for after in downstream(nodes, beside, node)}
    return sorted(after_open - outside)


def opens(nodes: Any, opened: str) -> tuple[str, ...]:
    """Open, or the Round in its place and beside it the one for an image that is due (`due_round`)."""
    due = opened.removesuffix(ROUND) + DUE
    return (opened, due) if opened.endswith(f".{ROUND}") and due in nodes.all_node_ids() else (opened,)


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
