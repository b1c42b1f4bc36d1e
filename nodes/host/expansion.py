"""What every node that expands shares: ids that no other call of it has, and the entry of a list that a call works on.

ComfyUI calls a node once for each entry of a list on its sockets. Each call puts nodes of its own into the running
graph, so their ids hold the number of the call. A link of theirs to something outside gives the whole list, in every
call; `DuoGenListEntry` takes out of it the entry that this call has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io
from comfy_execution.graph_utils import GraphBuilder, is_link
from comfy_execution.utils import get_executing_context

import nodes as comfy_nodes

from . import step_cache as kept

if TYPE_CHECKING:
    from comfy_execution.graph import DynamicPrompt


def list_index() -> int:
    """Which entry of a list on the running node's sockets this call is for; 0 where there is no list."""
    context = get_executing_context()
    return (context and context.list_index) or 0


def new_graph(hidden: Any) -> GraphBuilder:
    """A graph for the running node to put in, with ids of this call's own."""
    index = list_index()
    return GraphBuilder(prefix=f"{hidden.unique_id}.{index}." if index else f"{hidden.unique_id}.")


def expand(graph: GraphBuilder, owner: Any, last: Any, by: str | None = None) -> io.NodeOutput:
    """The graph in the place of the running node, whose three outputs are those of `last`. owner, by: as in
    kept.KeptResults.watch."""
    nodes = graph.finalize()
    kept.PROVIDER.watch(owner, nodes, by)
    return io.NodeOutput(*(last.out(i) for i in range(3)), expand=nodes)


def takes_lists(class_type: str) -> bool:
    """Whether a node is called once with whole lists, instead of once for each entry."""
    return bool(getattr(comfy_nodes.NODE_CLASS_MAPPINGS[class_type], "INPUT_IS_LIST", False))


def may_be_list(nodes: DynamicPrompt, link: list, seen: set[str] | None = None) -> bool:
    """Whether a link may give a list: its output is one, or its node is called for each entry of one."""
    seen = set() if seen is None else seen
    node = nodes.get_node(link[0])
    flags = getattr(comfy_nodes.NODE_CLASS_MAPPINGS[node["class_type"]], "OUTPUT_IS_LIST", None) or ()
    if link[1] < len(flags) and flags[link[1]]:
        return True
    if takes_lists(node["class_type"]) or link[0] in seen:
        return False
    seen.add(link[0])
    return any(is_link(value) and may_be_list(nodes, value, seen) for value in node["inputs"].values())


def entry_of(graph: GraphBuilder, nodes: DynamicPrompt, link: list) -> list:
    """A link to this call's entry of what `link` gives; the link itself where that is no list."""
    if not may_be_list(nodes, link):
        return link
    name = f"entry.{link[0]}.{link[1]}"
    return graph.node("DuoGenListEntry", name, values=link, index=list_index()).out(0)


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
