"""Training runs for tests: one that is stopped after a step, as Ctrl-C would, and the losses it wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from duogen_core.training.run import Run


@contextmanager
def stopped_in(step: int) -> Iterator[None]:
    """Runs inside are interrupted in step `step` (0-based)."""
    report = Run.report

    def stop(self, **values):
        report(self, **values)
        self.interrupted = self.step == step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "report", stop)
        yield


def losses(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text("utf-8").splitlines())
    return [line["loss"] for line in lines if "loss" in line]
