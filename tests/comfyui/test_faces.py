"""What a newcomer meets: few nodes in the first folder, few widgets on a node, and the rest where it can be found."""

from __future__ import annotations

from typing import Any

import pytest
from server import Server

# In the order of the node library.
FIRST = [
    *("DuoGen Load Checkpoint", "DuoGen Prompt", "DuoGen Interleave", "DuoGen Preview Document"),
    *("DuoGen Save Document", "DuoGen Load Document", "DuoGen Split Document"),
]
FOLDERS = {"planning", "loop", "advanced/loaders", "advanced/sampling", "advanced/stages"}
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
MOST = 6  # widgets of a node that are in sight


@pytest.fixture(scope="module")
def faces(server: Server) -> dict[str, dict[str, Any]]:
    """The nodes that a user meets."""
    info = server.get("/object_info")
    return {name: node for name, node in info.items() if name.startswith("DuoGen") and not node.get("dev_only")}


def test_the_first_folder_holds_what_the_shortest_graphs_need(faces: dict[str, dict[str, Any]]):
    assert [node["display_name"] for node in faces.values() if node["category"] == "DuoGen"] == FIRST
    folders = {node["category"].removeprefix("DuoGen").strip("/") for node in faces.values()} - {""}
    assert folders == FOLDERS


def test_what_the_loop_puts_in_is_shown_to_developers_alone(server: Server, faces: dict[str, dict[str, Any]]):
    internal = [name for name, node in server.get("/object_info").items() if node["category"] == "DuoGen/internal"]
    assert internal and not set(internal) & set(faces)


def test_a_node_shows_few_widgets(faces: dict[str, dict[str, Any]]):
    shown = {}
    for name, node in faces.items():
        inputs = {**node["input"].get("required", {}), **node["input"].get("optional", {})}
        options = [(each[0], each[1]) for each in inputs.values()]
        widgets = [more for kind, more in options if isinstance(kind, list) or kind in WIDGETS]
        shown[name] = sum(not more.get("advanced") and not more.get("forceInput") for more in widgets)
    assert {name: count for name, count in shown.items() if count > MOST} == {}
    assert shown["DuoGenInterleave"] == MOST and sum(shown.values()) <= 64


def test_an_input_without_a_default_is_never_hidden(faces: dict[str, dict[str, Any]]):
    """What is out of sight has to be right as it is."""
    for name, node in faces.items():
        for inputs in node["input"].values():
            for entry, specification in inputs.items():
                if isinstance(specification, (list, tuple)) and len(specification) > 1:
                    assert not specification[1].get("advanced") or "default" in specification[1], f"{name}.{entry}"
