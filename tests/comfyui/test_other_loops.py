"""DuoGen Interleave as one node in a loop that is not ours: three rounds, three documents.

ComfyUI 0.33 has no loop of its own yet: Start Loop and End Loop came later, and need an execution list that 0.33 has
not. The loop here is the one that ComfyUI's execution tests are made with, tests/execution/testing_nodes: its end puts
copies of the nodes between into the running graph, round after round, under the ids of the originals.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from graphs import answer
from server import LINK, NODES, Server
from test_outputs import display_nodes, picture

PACK = "testing-pack"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def looping(comfyui: Path, random_model: Path, tmp_path_factory: pytest.TempPathFactory):
    pack = comfyui / "tests" / "execution" / "testing_nodes" / PACK
    if not pack.is_dir():
        pytest.skip(f"This ComfyUI has no {pack.relative_to(comfyui)}; clone it with git.")
    base = tmp_path_factory.mktemp("looping")
    (base / "custom_nodes").mkdir()
    (base / "custom_nodes" / PACK).symlink_to(pack, target_is_directory=True)
    (base / "models" / "duogen").mkdir(parents=True)
    (base / "models" / "duogen" / random_model.name).symlink_to(random_model, target_is_directory=True)
    server = Server(comfyui, base, "--whitelist-custom-nodes", LINK, *NODES, PACK)
    try:
        yield server.wait()
    finally:
        server.stop()


def loop(checkpoint: str) -> dict[str, Any]:
    """Each round answers with its own number as the seed; the end hands out the last answer."""
    graph = answer(checkpoint, max_images=2, steps=2)
    graph["3"]["inputs"]["seed"] = ["open", 1]
    graph["open"] = {"class_type": "TestForLoopOpen", "inputs": {"remaining": 3, "initial_value1": ["2", 0]}}
    graph["shown"] = {"class_type": "DuoGenPreview", "inputs": {"context": ["3", 0], "part": "answer"}}
    graph["close"] = {
        "class_type": "TestForLoopClose",
        "inputs": {"flow_control": ["open", 0], "initial_value1": ["shown", 0]},
    }
    graph["5"]["inputs"]["context"] = ["close", 0]
    return {key: node for key, node in graph.items() if key not in "46"}


def test_interleave_in_the_body_of_another_loop(looping: Server, random_model: Path):
    result = looping.run(loop(random_model.name))
    assert result.error is None, json.dumps(result.error)[:2000]
    shown = display_nodes(looping, result, "shown")
    assert len(shown) == 3
    documents = [each["duogen_document"][0] for each in shown]
    seeds = [
        [part["seed"] for part in document["turns"][0]["parts"] if part["type"] == "image"] for document in documents
    ]
    assert sorted(first for first, _ in seeds) == [1, 2, 3] and len({second for _, second in seeds}) == 3
    assert len({picture(looping, file).tobytes() for each in shown for file in each["images"]}) == 6
    pieces = display_nodes(looping, result, "3")
    assert sum(len(piece["images"]) for piece in pieces) == 6, "each image once, on the node that the user sees"
    (saved,) = result.outputs["5"]["duogen_document"]
    assert [part["seed"] for part in saved["turns"][-1]["parts"] if part["type"] == "image"] in seeds
