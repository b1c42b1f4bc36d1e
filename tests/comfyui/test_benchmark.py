"""A ComfyUI workflow as the model under test: a template of ours answers a benchmark as the command line does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from server import PACK, Server
from ui_to_api import convert

from duogen_core.cli import main
from duogen_core.document import Document, Picture, Text
from duogen_core.evaluation.benchmarks import Item, benchmark
from duogen_core.evaluation.models import WorkflowModel
from duogen_core.evaluation.running import answered, checked_items

REQUESTS = [
    {"id": "a", "prompt": "How do I draw a house with a red roof?", "task": "art", "text_rubrics": ["Roof."]},
    {"id": "b/2", "prompt": 'Draw a "blue" circle.\nThen ${seed} more.', "task": "art", "text_rubrics": ["Circle."]},
]


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    file = tmp_path / "ueval.json"
    file.write_text(json.dumps([{"image_rubrics": [], **entry} for entry in REQUESTS]))
    return file


def template(server: Server, name: str, checkpoint: str) -> dict:
    """A template of ours, exported as people do it, with the places where its request and seed stand."""
    workflow = json.loads((PACK / "workflows" / f"{name}.json").read_text("utf-8"))
    nodes = convert(workflow, server.get("/object_info"))
    for node in nodes.values():
        inputs = node["inputs"]
        if node["class_type"] == "DuoGenLoadCheckpoint":
            inputs["checkpoint"] = checkpoint
        if node["class_type"] == "DuoGenPrompt":
            inputs["text"] = "${prompt}"
        if node["class_type"] == "DuoGenInterleave":
            inputs |= {"seed": "${seed}", "max_images": 2}
    return nodes


@pytest.mark.slow
def test_a_template_over_http_equals_the_command_line(server: Server, checkpoint: Path, requests: Path, tmp_path: Path):
    file = tmp_path / "graph.json"
    file.write_text(json.dumps(template(server, "01 Illustrated guide", checkpoint.name)))
    common = ["evaluate", "run", "ueval", "--requests", str(requests), "--quiet"]
    address = ["--workflow", str(file), "--server", f"http://127.0.0.1:{server.port}"]
    assert main([*common, *address, "--out", str(tmp_path / "graph")]) == 0
    here = ["--model", str(checkpoint), "--max-images", "2", "--out", str(tmp_path / "here")]
    assert main([*common, *here]) == 0
    bench = benchmark("ueval")
    graph, own = (list(answered(tmp_path / name, bench, checked_items(bench, requests))) for name in ("graph", "here"))
    assert [item.id for item, _ in graph] == [item.id for item, _ in own] == ["a", "b/2"]
    assert any(item.pictures(document) for item, document in own), "no picture, so nothing was compared"
    for (item, ours), (_, theirs) in zip(graph, own):
        assert item.text(ours) == item.text(theirs)
        pairs = list(zip(item.pictures(ours), item.pictures(theirs), strict=True))
        assert all(np.abs(a.pixels.astype(int) - b.pixels).max() <= 1 for a, b in pairs)
    names = [entry["image_answer"] for entry in json.loads((tmp_path / "graph/submission/submission.json").read_text())]
    assert [len(one) for one in names] == [len(item.pictures(document)) for item, document in own]


def test_a_graph_without_our_nodes(server: Server, tmp_path: Path):
    """It edits what the request shows: Load Image, Image Invert, Preview Image; its answer is that image."""
    nodes = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "${image_1}"}},
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
        "4": {"class_type": "PreviewAny", "inputs": {"source": "${prompt}"}},
    }
    file = tmp_path / "graph.json"
    file.write_text(json.dumps(nodes))
    shown = Picture(np.random.default_rng(3).integers(0, 256, (40, 56, 3), np.uint8))
    item = Item("x", Document().begin_turn("user", [shown, Text("Invert “it”.")]))
    found = WorkflowModel(file, f"http://127.0.0.1:{server.port}").answer(item, 5)
    (picture,) = item.pictures(found)
    assert np.abs(picture.pixels.astype(int) - (255 - shown.pixels.astype(int))).max() <= 1
    assert item.text(found) == "Invert “it”."
