"""What DuoGen Loop Close puts in for the next round where any writer writes: Ask again, Read on.

In: the `hidden` of the Close that is running, and the id of the Read Writer that its loop comes from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_execution.graph_utils import is_link

from .loop_body import Node

if TYPE_CHECKING:
    from comfy_execution.graph_utils import GraphBuilder

    from .answer import Step

READERS = ("DuoGenReadWriter", "DuoGenReadWriterNext")


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


def ask_again(graph: GraphBuilder, hidden: Any, ask: str, context: list) -> Any:
    """The same Ask Writer with the longer context."""
    again = graph.node("DuoGenAskWriter", "ask", **{**hidden.dynprompt.get_node(ask)["inputs"], "context": context})
    again.set_override_display_id(hidden.dynprompt.get_display_node_id(ask))
    return again


def read_again(hidden: Any, reader: str, following: Step) -> dict[str, Node]:
    """The Read Writer of the next round. Its settings come with the step, so that another seed of one picture changes
    neither the prompt nor what is written."""
    inputs = hidden.dynprompt.get_node(reader)["inputs"]
    kept = {name: inputs[name] for name in ("context", "text")}
    return {reader: ("DuoGenReadWriterNext", {**kept, "duogen_step": following.to_text()})}
