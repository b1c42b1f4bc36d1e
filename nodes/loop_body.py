"""What the user has put between DuoGen Loop Open and Loop Close: found, copied for the next round, looked into.

In: the `hidden` of the Close that is running, and the id of its Open (or of the Round in its place). Nodes are those of
ComfyUI's DynamicPrompt: {"class_type": …, "inputs": {name: value or [node id, output]}}.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from comfy_execution.graph_utils import is_link

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from comfy_execution.graph_utils import GraphBuilder

    from duogen_core.checkpoint import Sampling

SAMPLERS = {"DuoGenSampler", "KSampler"}
Node = tuple[str, "Mapping[str, Any]"]
CUSTOM_SAMPLERS = {"KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced"}


def copy_body(
    graph: GraphBuilder, hidden: Any, opened: str, round_id: str, changed: Mapping[str, Node] = MappingProxyType({})
) -> Callable[[Any], Any]:
    """Copy what hangs on Open and not on Close, previews and savers included. Returns what gives the copy of a link.

    round_id: what stands for Open. changed: nodes that go on as something else: {id: (class, its inputs)}.
    """
    nodes, body = hidden.dynprompt, nodes_between(hidden, opened)
    became = {node: (nodes.get_node(node)["class_type"], nodes.get_node(node)["inputs"]) for node in body} | {**changed}
    names = {node: nodes.get_display_node_id(node) for node in body}
    copies = {node: graph.node(became[node][0], f"body.{name}") for node, name in names.items()}

    def moved(value: Any) -> Any:
        if not is_link(value):
            return value
        if value[0] == opened:
            return [round_id, value[1]]
        return copies[value[0]].out(value[1]) if value[0] in copies else value

    for node, copied in copies.items():
        copied.set_override_display_id(names[node])
        for key, value in became[node][1].items():
            copied.set_input(key, moved(value))
    return moved


def nodes_between(hidden: Any, opened: str) -> list[str]:
    """What hangs on Open, or the Round in its place, and not on the Close that is running."""
    nodes = hidden.dynprompt
    parent = nodes.get_parent_node_id(hidden.unique_id)
    beside = [n for n in nodes.all_node_ids() if nodes.get_parent_node_id(n) == parent]
    after = downstream(nodes, beside, hidden.unique_id)
    return sorted(downstream(nodes, beside, opened) - after - {opened, hidden.unique_id})


def sampling_between(hidden: Any, opened: str, own: Sampling | None) -> dict[str, Any]:
    """steps, cfg and shift that the pictures are drawn with, where the graph tells: one sampler in the loop, with its
    numbers in its widgets. `own` are the checkpoint's, which hold where its MODEL comes straight from the loader."""
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
