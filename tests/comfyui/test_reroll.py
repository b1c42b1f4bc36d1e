"""Change picture k of 6, keep those before it: by the server's own messages, under each of ComfyUI's caches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import graphs
import pytest
from answers import saved_document
from server import Result, Server

PICTURES, STEPS = 6, 4


@pytest.fixture(params=["classic", "default"])
def cache(request: pytest.FixtureRequest) -> Server:
    return request.getfixturevalue("server" if request.param == "default" else "classic_cache")


def guide(random_model: Path, request: str, **inputs: Any) -> dict[str, Any]:
    prefix = f"reroll/{request[:4]}"
    return graphs.answer(random_model.name, request, prefix=prefix, seed=40, max_images=PICTURES, **inputs)


def ran(result: Result, stage: str) -> int:
    assert result.error is None, result.error
    return sum(node.endswith(f".{stage}") for node in result.ran)


@pytest.mark.slow
@pytest.mark.parametrize("k", [2, 5])
def test_reroll_draws_from_there_on(cache: Server, random_model: Path, k: int):
    graph = guide(random_model, f"Six, and {k} again.")
    first = cache.run(graph)
    assert (ran(first, "sample"), first.steps) == (PICTURES, PICTURES * STEPS)
    graph["3"]["inputs"]["seeds"] = f"{k}: 1234"
    again = cache.run(graph)
    assert {"1", "2"} <= set(again.cached)
    later = PICTURES - k + 1
    assert (ran(again, "sample"), again.steps) == (later, later * STEPS)
    assert (ran(again, "write"), ran(again, "encode"), ran(again, "decode")) == (later, later - 1, later)
    old, new = saved_document(cache, first).pictures, saved_document(cache, again).pictures
    assert old[: k - 1] == new[: k - 1]
    assert all(a != b for a, b in zip(old[k - 1 :], new[k - 1 :], strict=True))


@pytest.mark.slow
def test_going_back_to_the_seed_before_draws_nothing(server: Server, random_model: Path):
    graph = guide(random_model, "There and back.")
    first = server.run(graph)
    graph["3"]["inputs"]["seeds"] = "4: 1234"
    server.run(graph)
    graph["3"]["inputs"]["seeds"] = ""
    back = server.run(graph)
    assert (ran(back, "sample"), back.steps) == (0, 0)
    assert saved_document(server, back).turns == saved_document(server, first).turns


@pytest.mark.slow
def test_reroll_in_the_loop(cache: Server, random_model: Path):
    """With a node of the user's in every round."""
    graph = graphs.loop(
        random_model.name, "Six in a loop.", prefix="reroll/loop", max_images=PICTURES, between=True
    )  # fmt: skip
    first = cache.run(graph)
    graph["9"]["inputs"]["seeds"] = "5: 1234"
    again = cache.run(graph)
    samplers = [node for node in again.ran if node.endswith("p.sample")]
    # The last round finds the limit reached: its nodes are called, and blocked.
    assert [node.count("next.") for node in samplers] == [3, 4, 5]
    assert sum(node.endswith("body.own") for node in again.ran) == 3
    old, new = saved_document(cache, first).pictures, saved_document(cache, again).pictures
    assert old[:4] == new[:4] and old[4] != new[4] and new[4].meta["seed"] == 1234


@pytest.mark.slow
def test_another_limit_draws_only_what_is_new(server: Server, random_model: Path):
    graph = guide(random_model, "Five, then six.")
    graph["3"]["inputs"]["max_images"] = PICTURES - 1
    server.run(graph)
    graph["3"]["inputs"]["max_images"] = PICTURES
    again = server.run(graph)
    assert ran(again, "sample") == 1 and len(saved_document(server, again).pictures) == PICTURES


@pytest.mark.slow
def test_other_peoples_nodes_are_not_kept(server: Server, random_model: Path):
    """The cache is as it was for nodes that no answer put in: gone when another prompt came between."""

    def plain(seed: int) -> dict[str, Any]:
        nodes = graphs.first_picture(random_model.name, steps=1)
        nodes["p.sample"]["inputs"]["seed"] = seed
        return nodes | {"shown": {"class_type": "PreviewImage", "inputs": {"images": ["p.decode", 0]}}}

    assert "p.sample" in server.run(plain(1)).ran
    assert "p.sample" in server.run(plain(2)).ran
    assert "p.sample" in server.run(plain(1)).ran


@pytest.mark.slow
def test_free_takes_it_along(server: Server, random_model: Path):
    graph = guide(random_model, "Six, then free.")
    server.run(graph)
    server.post("/free", {"unload_models": True, "free_memory": True})
    graph["3"]["inputs"]["seeds"] = "5: 1234"
    again = server.run(graph)
    assert again.steps == PICTURES * STEPS
