"""DuoGen Given: hands values to nodes that are put into a running graph, by name instead of by link.

In: a node that expands has its inputs in hand. If the nodes it puts in linked back to where these came from, ComfyUI
would run all of that again wherever the result is not cached: with --cache-none the loaders and every earlier picture,
at each step. Out: one node without links, whose input names the values: a context and a picture by their content, a
model by the object that it is. So two equal names mean equal values, and ComfyUI's cache may go by them.

The values are kept until the prompt ends (`forget`), not in the graph, which ComfyUI's caches hold on to for longer.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import weakref
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from . import sockets

if TYPE_CHECKING:
    from comfy_execution.graph_utils import GraphBuilder

    from duogen_core.document import Document

OUTPUTS = ("mllm", "connector", "model", "vae", "context", "image")
_values: dict[str, Any] = {}
_names: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
_count = itertools.count()


def put_in(graph: GraphBuilder, node: str, **values: Any) -> dict[str, list]:
    """A node in `graph` that gives these values out; the link to each. What is None gets none."""
    names = {output: name(value) for output, value in values.items() if value is not None}
    _values.update((names[output], values[output]) for output in names)
    given = graph.node("DuoGenGiven", node, names=json.dumps(names))
    return {output: given.out(OUTPUTS.index(output)) for output in names}


def forget() -> None:
    _values.clear()


def name(value: Any) -> str:
    import torch

    from duogen_core.document import Document

    if isinstance(value, Document):
        return f"context {hashlib.sha256(_content(value).encode()).hexdigest()}"
    if isinstance(value, torch.Tensor):
        pixels = value.detach().cpu().contiguous()
        digest = hashlib.sha256(f"{pixels.dtype} {list(pixels.shape)}".encode())
        digest.update(pixels.view(torch.uint8).numpy())
        return f"image {digest.hexdigest()}"
    return _names.setdefault(value, f"{type(value).__name__} {next(_count)}")


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


class DuoGenGiven(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenGiven",
            display_name="DuoGen Given",
            category="DuoGen/internal",
            description="DuoGen Interleave and the loop put this node in while they run. It hands on what they have.",
            inputs=[io.String.Input("names", tooltip="Which value goes where, as JSON.")],
            outputs=[
                sockets.Mllm.Output("mllm", tooltip="The language model."),
                sockets.Connector.Output("connector", tooltip="The connector."),
                io.Model.Output("model", tooltip="The diffusion transformer."),
                io.Vae.Output("vae", tooltip="The VAE."),
                sockets.Context.Output("context", tooltip="The answer so far."),
                io.Image.Output("image", tooltip="The picture that was drawn."),
            ],
            is_dev_only=True,
        )

    @classmethod
    def execute(cls, names: str) -> io.NodeOutput:
        given = json.loads(names)
        return io.NodeOutput(*(_values[given[output]] if output in given else None for output in OUTPUTS))
