"""What can be put together wrongly from stage nodes, and the sentence that says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import graphs
import pytest
from server import Server
from test_trouble import sentence


@pytest.fixture
def graph(random_model: Path) -> dict[str, Any]:
    return graphs.staged(random_model.name, prefix="trouble/staged", pictures=1)


@pytest.mark.slow
@pytest.mark.parametrize("node", ["p0.encode", "append0"])
def test_no_picture_is_due_before_an_answer(server: Server, graph: dict[str, Any], node: str):
    graph[node]["inputs"]["context"] = ["2", 0]
    assert "DuoGen Write Text" in sentence(server.run(graph))


@pytest.mark.slow
def test_a_batch_where_one_picture_is_due(server: Server, graph: dict[str, Any]):
    graph["batch"] = {
        "class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 3, "color": 0},
    }  # fmt: skip
    graph["append0"]["inputs"]["image"] = ["batch", 0]
    assert "batch of 3" in sentence(server.run(graph))


@pytest.mark.slow
def test_references_of_another_context(server: Server, random_model: Path):
    graph = graphs.staged(random_model.name, prefix="trouble/staged", pictures=2)
    graph["p1.refer"]["inputs"]["context"] = ["append1", 0]
    graph["append1"]["inputs"]["image"] = ["p0.decode", 0]
    graph["4"]["inputs"]["context"] = graph["5"]["inputs"]["context"] = ["last", 0]
    graph["last"] = {
        "class_type": "DuoGenAppendImage", "inputs": {"context": ["write2", 0], "image": ["p1.decode", 0]},
    }  # fmt: skip
    message = sentence(server.run(graph))
    assert "1 images" in message and "holds 2" in message


@pytest.mark.slow
@pytest.mark.parametrize("seeds", ["three", "0: 5", "2; 3"])
def test_seeds_that_say_nothing(server: Server, random_model: Path, seeds: str):
    assert "3: 1234" in sentence(server.run(graphs.answer(random_model.name, seeds=seeds)))


@pytest.mark.slow
def test_seed_of_the_first_picture_of_a_loop(server: Server, random_model: Path):
    graph = graphs.loop(random_model.name, prefix="trouble/loop", seeds="1: 5")
    assert "Loop Open" in sentence(server.run(graph))


@pytest.mark.slow
def test_a_part_that_is_not_there(server: Server, graph: dict[str, Any]):
    graph["edit"] = {
        "class_type": "DuoGenEditContext",
        "inputs": {"context": ["write1", 0], "part": 9, "action": "cut from it on", "text": ""},
    }
    graph["5"]["inputs"]["context"] = ["edit", 0]
    assert "no part 9" in sentence(server.run(graph))
