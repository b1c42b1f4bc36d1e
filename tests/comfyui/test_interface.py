"""The frozen interface: saved workflows name nodes by id, inputs by name and widgets by position.

interface.json holds what workflows in the world rely on. Nodes may be added; an input may be added as the last optional
one; an output may be added as the last one. Anything else breaks somebody's graph.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import graphs
import pytest
from answers import saved_document
from server import Server

pytestmark = pytest.mark.every_comfyui

FROZEN: dict[str, Any] = json.loads(Path(__file__).with_name("interface.json").read_text("utf-8"))


def interface(info: dict[str, Any]) -> dict[str, Any]:
    """What is frozen of a node, from the server's /object_info."""

    def kind(specification: list) -> str:
        return "COMBO" if isinstance(specification[0], list) else specification[0]

    inputs = {
        group: [[name, kind(info["input"][group][name])] for name in info["input_order"].get(group, [])]
        for group in ("required", "optional")
    }
    return {**inputs, "outputs": [list(pair) for pair in zip(info["output"], info["output_is_list"], strict=True)]}


@pytest.fixture(scope="module")
def object_info(server: Server) -> dict[str, Any]:
    return server.get("/object_info")


@pytest.mark.parametrize("node", sorted(FROZEN))
def test_interface_is_kept(object_info: dict[str, Any], node: str):
    assert node in object_info, f"workflows that use {node} no longer load"
    now, frozen = interface(object_info[node]), FROZEN[node]
    assert now["required"] == frozen["required"]
    assert now["optional"][: len(frozen["optional"])] == frozen["optional"]
    assert now["outputs"][: len(frozen["outputs"])] == frozen["outputs"]


def test_no_node_is_left_out(object_info: dict[str, Any]):
    ours = {
        name
        for name, info in object_info.items()
        if name.startswith("DuoGen") and info["category"] != "DuoGen/internal"
    }
    assert ours == set(FROZEN), "add new nodes to interface.json"


@pytest.mark.parametrize("node", ["DuoGenInterleave", "DuoGenSampler"])
def test_sampling_is_as_trained_unless_somebody_chooses(object_info: dict[str, Any], node: str):
    """Cosmos-Predict2.5 was published with UniPC on Karras' times. Saved graphs have their choice in the list."""
    stock = object_info["KSampler"]["input"]["required"]
    for name in ("sampler_name", "scheduler"):
        kind, options = object_info[node]["input"]["required"][name]
        choices = options["options"] if kind == "COMBO" else kind
        assert options["default"] == choices[0] == "as trained"
        known = stock[name][0] if isinstance(stock[name][0], list) else stock[name][1]["options"]
        assert choices[1:] == list(known)


@pytest.mark.slow
def test_as_trained_is_what_older_graphs_of_the_bundled_kind_have(server: Server, random_model: Path):
    old = graphs.answer(random_model.name, "As before.", prefix="interface/old", max_images=2)
    assert (old["3"]["inputs"]["sampler_name"], old["3"]["inputs"]["scheduler"]) == ("euler", "simple")
    new = graphs.answer(random_model.name, "As before.", prefix="interface/new", max_images=2)
    new["3"]["inputs"] |= {"sampler_name": "as trained", "scheduler": "as trained"}
    documents = [saved_document(server, server.run(graph)) for graph in (old, new)]
    assert documents[0].turns == documents[1].turns


@pytest.mark.slow
def test_sizes_of_older_graphs_still_have_a_meaning(server: Server):
    """ "picture" became "image" in the choices of DuoGen Next Image Size."""
    graph: dict[str, Any] = {
        "1": {"class_type": "DuoGenPrompt", "inputs": {"text": "Look.", "images.image1": ["2", 0]}},
        "2": {"class_type": "EmptyImage", "inputs": {"width": 96, "height": 64, "batch_size": 1, "color": 0}},
    }
    for size in ("like the last picture", "like the last image", "like picture n", "like image n"):
        inputs = {"context": ["1", 0], "size": size, "picture": 1, "width": 32, "height": 32}
        graph[size] = {"class_type": "DuoGenPictureSize", "inputs": inputs}
        graph[f"{size}, shown"] = {"class_type": "PreviewAny", "inputs": {"source": [size, 1]}}
    result = server.run(graph)
    assert result.error is None, result.error
    assert {shown["text"][0] for shown in result.outputs.values()} == {"96"}
    other = {name: graph[name] for name in ("1", "2", size, f"{size}, shown")}
    other[size]["inputs"]["size"] = "like none"
    with pytest.raises(RuntimeError, match="choose one of like the last image, like image n, fixed"):
        server.run(other)
