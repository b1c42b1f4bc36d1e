"""Runs training commands one after another; accelerate's launcher or torchrun starts it in the tests of several
processes.

In: a JSON list of [arguments of `train`, the step in which to stop, "killed in save N", or null]. A kill takes the
process of rank 1 while it writes its part of the N-th checkpoint.
With a folder for each process they see different files, as those of different machines may.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest

from duogen_core.cli import main
from duogen_core.training import samples, stage2, stage2_data
from duogen_core.training.distributed import leave
from tests.core.runs import stopped_in
from tests.core.tiny import drawing


def kill_in_save(number: int) -> None:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    write, calls = HuggingFaceStorageWriter.write_data, []

    def dying(self, plan, planner):
        calls.append(plan)
        if len(calls) == number and os.environ["RANK"] == "1":
            (self.path / "half-written").write_bytes(b"half")
            os._exit(9)
        return write(self, plan, planner)

    HuggingFaceStorageWriter.write_data = dying


@contextmanager
def samples_that_draw() -> Iterator[None]:
    """The MLLM of these runs knows nothing, and would hardly ever ask for an image: here it asks, for one an answer."""
    write = stage2.write_samples
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "SETTINGS", replace(samples.SETTINGS, max_images=1))
        patch.setattr(stage2, "write_samples", lambda parts, *rest: write(drawing(parts), *rest))
        yield


def run_all(commands: Sequence[tuple[list[str], int | str | None]]) -> None:
    stage2_data.SHARD = 6
    for arguments, stop in commands:
        if isinstance(stop, str):
            kill_in_save(int(stop.removeprefix("killed in save ")))
            stop = None
        with samples_that_draw(), nullcontext() if stop is None else stopped_in(stop):
            code = main(["train", *arguments])
        assert code == (0 if stop is None else 130), f"train {' '.join(arguments)} ended with {code}"


if __name__ == "__main__":
    if len(sys.argv) > 2:
        os.chdir(sys.argv[2 + int(os.environ["RANK"])])
    run_all(json.loads(sys.argv[1]))
    leave(0)
