"""11 Any painter: the language model writes, an image model of ComfyUI paints; here a stand-in of random weights."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from answers import saved_document
from server import PACK, Result, Server
from ui_to_api import convert

WORKFLOW = json.loads((PACK / "workflows" / "11 Any painter.json").read_text("utf-8"))
IDS = {node.get("title") or node["type"]: str(node["id"]) for node in WORKFLOW["nodes"]}


def graph(server: Server, painter: str, size: int = 128) -> dict[str, Any]:
    nodes = convert(WORKFLOW, server.get("/object_info"))
    nodes[IDS["The writer: duogen-tiny, or your own"]]["inputs"]["checkpoint"] = "random"
    nodes[IDS["The painter"]]["inputs"]["ckpt_name"] = painter
    nodes[IDS["EmptyLatentImage"]]["inputs"].update(width=size, height=size)
    nodes[IDS["KSampler"]]["inputs"]["steps"] = 2
    nodes[IDS["DuoGenLoopClose"]]["inputs"]["max_images"] = 2
    return nodes


def painted(server: Server, result: Result) -> list[np.ndarray]:
    document = saved_document(server, result, IDS["DuoGenSaveDocument"])
    assert document.text == "First a wall. Now the roof Now the roof"
    return [picture.pixels.astype(int) for picture in document.pictures]


@pytest.mark.slow
def test_any_painter(server: Server, painter: str):
    """Each picture is painted from its own paragraph, by its own seed; what was changed last is all that runs again."""
    nodes = graph(server, painter)
    first = server.run(nodes)
    one, two = painted(server, first)
    assert one.shape == two.shape == (128, 128, 3)
    assert one.std() > 1 and np.abs(one - two).mean() > 1, "a painter that paints nothing"
    assert first.ran.count(IDS["The painter"]) == 1, "loaded anew for each picture"
    assert len([node for node in first.outputs if node.split(".")[-1] == IDS["Each image, as it is made"]]) == 2

    nodes[IDS["DuoGenLoopClose"]]["inputs"]["seeds"] = "2: 1234"
    again = server.run(nodes)
    assert {IDS["KSampler"], IDS["VAEDecode"], IDS["The painter"]} <= set(again.cached)
    reroll = painted(server, again)
    assert np.array_equal(reroll[0], one) and np.abs(reroll[1] - two).mean() > 1

    nodes[IDS["The paragraph, and a style"]]["inputs"]["string_b"] = "a woodcut in black and red"
    styled = painted(server, server.run(nodes))
    assert np.abs(styled[0] - one).mean() > 0, "the paragraph did not reach the painter"


def test_the_front_end_is_told_where_the_painter_is_found():
    (loader,) = [node for node in WORKFLOW["nodes"] if node["type"] == "CheckpointLoaderSimple"]
    (model,) = loader["properties"]["models"]
    assert model["name"] == loader["widgets_values"][0] and model["directory"] == "checkpoints"
    assert model["url"].startswith("https://") and model["name"] in model["url"]
