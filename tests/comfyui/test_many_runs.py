"""Run after run in one server: memory stays where it is, and no file is left open. Fifty runs: tests/bench."""

from __future__ import annotations

from pathlib import Path

import graphs
import pytest
from server import Server

RUNS, WARM, GROWTH = 15, 5, 50 * 2**20


@pytest.mark.slow
def test_memory_does_not_grow(short_of_memory: Server, random_model: Path):
    resident = []
    for run in range(RUNS):
        # Another request and seed each time, so that nothing comes from a cache.
        graph = graphs.answer(
            random_model.name, f"Request number {run}.", prefix="many/answer", seed=run, steps=1, max_images=2
        )  # fmt: skip
        assert short_of_memory.run(graph).error is None
        memory = short_of_memory.memory()
        assert memory["files"] == []
        resident.append(memory["rss"])
    assert resident[-1] - resident[WARM - 1] < GROWTH
    assert memory["alive"]["Kept"] == 1 and memory["alive"]["DuoGenModel"] == 1
