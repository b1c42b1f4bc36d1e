"""ComfyUI's memory flags: the guide workflow runs under each, draws every picture once, and /free gives it all back."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import graphs
import pytest
import random_checkpoint
from answers import assert_same_turns, saved_document
from server import PACK, Result, Server
from ui_to_api import convert

PICTURES = 3
OURS = ("ModelHandle", "DuoGenModel", "DuoGenMllm", "DuoGenConnector", "VAE", "ResultCache", "PrefixCache")


@pytest.fixture(scope="module")
def bulky(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose weights can be told from the server's other memory."""
    return random_checkpoint.write(tmp_path_factory.mktemp("checkpoints") / "bulky", heads=20, layers=8)


@pytest.fixture(params=["no_cache", "classic_cache"])
def flagged(request: pytest.FixtureRequest, bulky: Path) -> Server:
    """--cache-none with --disable-dynamic-vram, and --cache-classic. All are --cpu, and ComfyUI refuses --lowvram
    beside it: what that does to our models is in test_memory.py."""
    running = request.getfixturevalue(request.param)
    link = running.base / "models" / "duogen" / bulky.name
    if not link.exists():
        link.symlink_to(bulky, target_is_directory=True)
    return running


def guide(server: Server, checkpoint: Path) -> dict[str, Any]:
    """workflows/01 Illustrated guide.json with another checkpoint. Its nodes: 1 load, 3 DuoGen Interleave."""
    workflow = json.loads((PACK / "workflows" / "01 Illustrated guide.json").read_text("utf-8"))
    graph = convert(workflow, server.get("/object_info"))
    graph["1"]["inputs"]["checkpoint"] = checkpoint.name
    graph["3"]["inputs"]["max_images"] = PICTURES
    return graph


@pytest.mark.slow
def test_guide_is_the_same_answer(flagged: Server, server: Server, random_model: Path):
    result = flagged.run(guide(flagged, random_model))
    ours = saved_document(flagged, result)
    assert len(ours.pictures) == PICTURES
    assert_same_turns(ours, saved_document(server, server.run(guide(server, random_model))))
    # Also with --cache-none, where a link back to a node that has run would run it again.
    for stage, times in (("sample", PICTURES), ("decode", PICTURES), ("write", PICTURES + 1)):
        assert sum(node.endswith(f".{stage}") for node in result.ran) == times
    assert result.ran.count("1") <= 1, "the checkpoint was loaded once, or by a test before"


@pytest.mark.slow
def test_loop_is_the_same_answer(flagged: Server, server: Server, random_model: Path):
    graph = graphs.loop(random_model.name, "Loop and flags.", prefix="flags/loop")
    result = flagged.run(graph)
    assert_same_turns(saved_document(flagged, result), saved_document(server, server.run(graph)))


@pytest.mark.slow
def test_free_gives_it_all_back(flagged: Server, bulky: Path):
    weights = sum(file.stat().st_size for file in bulky.rglob("*.safetensors"))
    before = flagged.memory()
    held: list[int] = []

    def look(kind: str, data: object, result: Result) -> None:
        if kind == "text" and not held:
            held.append(flagged.memory()["tensors"])

    graph = graphs.answer(bulky.name, prefix="flags/bulky", max_images=1, steps=1)
    assert flagged.run(graph, watch=look).error is None
    assert held[0] - before["tensors"] > weights / 2, "the weights cannot be seen"
    flagged.post("/free", {"unload_models": True, "free_memory": True})
    end = time.monotonic() + 120  # the server frees when its worker next looks
    while True:
        after = flagged.memory()
        left = {name: after["alive"][name] for name in OURS if after["alive"][name]}
        if not (left or after["loaded"]) or time.monotonic() > end:
            break
        time.sleep(0.2)
    assert (left, after["loaded"], after["files"]) == ({}, [], [])
    assert after["tensors"] - before["tensors"] < weights / 20, "the memory of the weights did not come back"
