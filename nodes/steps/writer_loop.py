"""What DuoGen Loop Close puts in for the next round where any writer writes: Ask again, Read on.

In: the `hidden` of the Close that is running, and the id of the Read Writer that its loop comes from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_execution.graph_utils import is_link

from ..host.expansion import entry_of
from .loop_body import READERS, Node

if TYPE_CHECKING:
    from comfy_execution.graph_utils import GraphBuilder

    from .answer import Step


def asked(hidden: Any, reader: str) -> str:
    """The Ask Writer whose context a Read Writer reads into."""
    from duogen_core.errors import DuoGenError

    node = hidden.dynprompt.get_node(reader)
    if node["class_type"] not in READERS:
        raise DuoGenError("The loop input must come straight from DuoGen Read Writer; remove what lies between them.")
    context = node["inputs"]["context"]
    if not is_link(context) or hidden.dynprompt.get_node(context[0])["class_type"] != "DuoGenAskWriter":
        raise DuoGenError(
            "In a loop, the context of DuoGen Read Writer must come straight from DuoGen Ask Writer; connect its "
            "context output."
        )
    return context[0]


def ask_again(graph: GraphBuilder, hidden: Any, ask: str, context: list | None) -> Any:
    """The same Ask Writer with the longer context; None: with the context it had, of a list this call's entry."""
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
    """The Read Writer of the next round. Its settings come with the step, so that another seed of one picture changes
    neither the prompt nor what is written."""
    inputs = hidden.dynprompt.get_node(reader)["inputs"]
    kept = {name: inputs[name] for name in ("context", "text")}
    return {reader: ("DuoGenReadWriterNext", {**kept, "duogen_step": following.to_text()})}
