"""Run after run in one server: memory stays where it is, no file is left open, and a finished run leaves no copy of its
answer. Fifty of them: tests/hardening/comfyui_runs.py, whose first fifteen these are."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from conftest import running
from server import PACK, Server

sys.path.append(str(PACK / "tests" / "hardening"))
import comfyui_runs

RUNS = 15


@pytest.fixture(scope="module")
def fresh(comfyui: Path, random_model: Path, tmp_path_factory: pytest.TempPathFactory):
    """A server that has run nothing yet."""
    yield from running(comfyui, random_model, tmp_path_factory.mktemp("fresh"))


@pytest.mark.slow
def test_memory_does_not_grow(fresh: Server, random_model: Path):
    found = comfyui_runs.many_runs(fresh, random_model.name, RUNS)
    # Bytes of tensors: what a process holds of the system's memory is measured in tests/hardening.
    first, last = found["bytes of tensors after the fifth and at the end"]
    assert last < 1.3 * first, found
    assert not found["open files of ours"] and found["pictures"] >= RUNS
    assert found["cancelled"] >= 3 and found["answers kept of cancelled runs"] == 3
    first, last = found["open descriptors after the fifth and at the end"]
    assert last <= first + 2
    assert (
        found["objects alive at the end"]["ResultCache"] == 1 and found["objects alive at the end"]["DuoGenModel"] == 1
    )
