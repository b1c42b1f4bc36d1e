"""Puts nodes into the running graph (ComfyUI's node expansion): what DuoGen Interleave and the loop share.

Ids. ComfyUI calls a node once for each entry of a list on its sockets. Each call puts in nodes of its own, so their ids
hold the number of the call. A link of theirs to something outside carries the whole list, in every call;
`DuoGenListEntry` takes out of it the entry that this call is for.

Values. A node that expands has its inputs in hand. If the nodes it puts in linked back to where these came from,
ComfyUI would run all of that again wherever the result is not cached: with --cache-none the loaders and every earlier
image, at each step. So `add_values` puts in one node without links, DuoGenGiven, whose input names the values: a
context and an image by their content, a model by the object that it is. Equal names mean equal values, so ComfyUI's
cache may use them as its key. The values stay here until the prompt ends, not in the graph, which ComfyUI keeps longer.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import weakref
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io
from comfy_execution.graph_utils import GraphBuilder, is_link
from comfy_execution.utils import get_executing_context

import nodes as comfy_nodes

from . import caches

if TYPE_CHECKING:
    from comfy_execution.graph import DynamicPrompt

    from duogen_core.document import Document


def list_index() -> int:
    """Which entry of a list on the running node's sockets this call is for; 0 where there is no list."""
    context = get_executing_context()
    return (context and context.list_index) or 0


def new_graph(hidden: Any) -> GraphBuilder:
    """Returns an empty graph whose node ids belong to this call of the running node alone."""
    index = list_index()
    return GraphBuilder(prefix=f"{hidden.unique_id}.{index}." if index else f"{hidden.unique_id}.")


def expand(graph: GraphBuilder, owner: Any, last: Any, by: str | None = None) -> io.NodeOutput:
    """Returns `graph` as the running node's result; its three outputs are those of `last`.

    owner, by: as in caches.ResultCacheProvider.watch.
    """
    nodes = graph.finalize()
    caches.PROVIDER.watch(owner, nodes, by)
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
    """Returns a link to this call's entry of the list that `link` carries, or `link` itself where that is no list."""
    if not may_be_list(nodes, link):
        return link
    name = f"entry.{link[0]}.{link[1]}"
    return graph.node("DuoGenListEntry", name, values=link, index=list_index()).out(0)


VALUE_OUTPUTS = ("mllm", "connector", "model", "vae", "context", "image", "tries", "control_net", "control_images")
_values: dict[str, Any] = {}
_model_names: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
_count = itertools.count()


def add_values(graph: GraphBuilder, node: str, **values: Any) -> dict[str, list]:
    """Adds a DuoGenGiven node that outputs these values to `graph`; returns the link to each that is not None."""
    names = {output: value_name(value) for output, value in values.items() if value is not None}
    _values.update((names[output], values[output]) for output in names)
    added = graph.node("DuoGenGiven", node, names=json.dumps(names))
    return {output: added.out(VALUE_OUTPUTS.index(output)) for output in names}


def values_of(names: str) -> list[Any]:
    """For DuoGenGiven: the values in the order of VALUE_OUTPUTS, None where it has none."""
    wanted = json.loads(names)
    return [_values[wanted[output]] if output in wanted else None for output in VALUE_OUTPUTS]


def forget_values(prompt_id: str) -> None:
    _values.clear()


def value_name(value: Any) -> str:
    import torch

    from duogen_core.document import Document

    if isinstance(value, Document):
        return f"context {hashlib.sha256(_content(value).encode()).hexdigest()}"
    if isinstance(value, torch.Tensor):
        pixels = value.detach().cpu().contiguous()
        digest = hashlib.sha256(f"{pixels.dtype} {list(pixels.shape)}".encode())
        digest.update(pixels.view(torch.uint8).numpy())
        return f"image {digest.hexdigest()}"
    if hasattr(value, "value_name"):
        return value.value_name
    return _model_names.setdefault(value, f"{type(value).__name__} {next(_count)}")


def _content(context: Document) -> str:
    from duogen_core.document import Text

    turns = [
        (
            *(turn.role, dict(turn.meta)),
            [(part.text if isinstance(part, Text) else part.digest, dict(part.meta)) for part in turn.parts],
        )
        for turn in context.turns
    ]
    return json.dumps([turns, dict(context.generation), dict(context.meta)], sort_keys=True)
