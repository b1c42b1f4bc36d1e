"""The open loop: the same answer as DuoGen Interleave, with room for the user's own nodes."""

from __future__ import annotations

from pathlib import Path

import graphs
import numpy as np
import pytest
from answers import assert_same_answer, assert_same_turns, saved_document
from server import Server

pytestmark = pytest.mark.every_comfyui


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["as it goes", "plan first"])
def test_loop_is_interleave(server: Server, random_model: Path, mode: str):
    limits = {"max_images": 3, "max_tokens": 120}
    request = f"Draw three, {mode}."
    looped = server.run(graphs.loop(random_model.name, request, prefix="loop/same", mode=mode, **limits))
    ours = saved_document(server, looped)
    one_node = server.run(graphs.answer(random_model.name, request, prefix="loop/one", mode=mode, **limits))
    assert len(ours.pictures) == 3
    assert_same_answer(ours, saved_document(server, one_node))
    assert ours.generation["stop_reason"] == "max_images"
    assert len(looped.outputs["6"]["images"]) == 3
    previews = [node for node in looped.outputs if node.endswith("shown")]
    assert len(previews) == 3, "the user's preview shows each picture, and none is drawn beyond the limit"
    assert any("Image 3 of at most 3" in text for text in looped.texts)
    # The random model writes whatever it sees, so a plan is the answer that is written as it goes.
    plain = saved_document(server, server.run(graphs.loop(random_model.name, request, prefix="loop/same", **limits)))
    assert_same_turns(ours, plain)


@pytest.mark.slow
def test_own_nodes_between(server: Server, random_model: Path):
    """A stock node between draws other pictures, and the language model and the DiT look at those."""
    plain = saved_document(server, server.run(graphs.loop(random_model.name, prefix="loop/plain")))
    own = saved_document(server, server.run(graphs.loop(random_model.name, prefix="loop/own", between=True)))
    inverted = 255 - plain.pictures[0].pixels.astype(int)
    assert np.abs(own.pictures[0].pixels.astype(int) - inverted).max() <= 1
    later = np.abs(own.pictures[1].pixels.astype(int) - (255 - plain.pictures[1].pixels.astype(int)))
    assert later.max() > 1, "picture 2 was drawn without looking at the changed picture 1"


@pytest.mark.slow
def test_reroll_in_the_loop(server: Server, random_model: Path):
    graph = graphs.loop(random_model.name, "Draw it again.", prefix="loop/reroll", max_images=3)
    first = server.run(graph)
    graph["9"]["inputs"]["seeds"] = "3: 1234"
    again = server.run(graph)
    assert {"1", "2", "3", "p.encode", "p.sample", "p.decode"} <= set(again.cached)
    assert "9.next.body.p.sample" in again.ran
    assert not {"p.sample", "9.body.p.sample", "9.body.p.encode", "9.body.p.decode"} & set(again.ran)
    assert not [node for node in again.ran if node.endswith(".write") and "next.next" not in node]
    old, new = saved_document(server, first).pictures, saved_document(server, again).pictures
    assert old[:2] == new[:2] and old[2] != new[2] and new[2].meta["seed"] == 1234


@pytest.mark.slow
def test_no_picture_is_drawn_that_is_not_due(server: Server, random_model: Path):
    graph = graphs.loop(random_model.name, prefix="loop/none", max_images=0)
    del graph["shown"]  # a preview inside would ask for the picture by itself
    result = server.run(graph)
    document = saved_document(server, result)
    assert not document.pictures and document.text == "First a wall."
    assert not [node for node in result.ran if "sample" in node]
    assert "6" not in result.outputs


@pytest.mark.slow
def test_previews_that_lead_nowhere(server: Server, random_model: Path):
    """One beside the way to Loop Close runs for each picture and for none beyond the limit; one that nothing is
    connected to stops nobody; with a limit of 0 a preview asks for the first picture itself, as its help page says."""
    graph = graphs.loop(random_model.name, "Beside the way.", prefix="loop/beside", max_images=2)
    graph["shown"] = {"class_type": "ImageInvert", "inputs": {"image": ["p.decode", 0]}}
    graph["beside"] = {"class_type": "PreviewImage", "inputs": {"images": ["shown", 0]}}
    graph["loose"] = {"class_type": "PreviewImage", "inputs": {}}
    result = server.run(graph)
    assert len(saved_document(server, result).pictures) == 2
    assert sum(name.endswith("beside") for name in result.outputs) == 2 and "loose" not in result.outputs
    graph["9"]["inputs"]["max_images"] = 0
    result = server.run(graph)
    assert not saved_document(server, result).pictures and list(result.outputs["beside"]["images"])
