"""Runs training commands one after another; accelerate's launcher starts it in the tests of several processes.

In: a JSON list of [arguments of `train`, the step in which to stop or null].
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext

from duogen_core.cli import main
from duogen_core.training import stage2_data
from duogen_core.training.distributed import leave
from tests.core.runs import stopped_in


def run_all(commands: Sequence[tuple[list[str], int | None]]) -> None:
    stage2_data.SHARD = 6
    for arguments, stop in commands:
        with nullcontext() if stop is None else stopped_in(stop):
            code = main(["train", *arguments])
        assert code == (0 if stop is None else 130), f"train {' '.join(arguments)} ended with {code}"


if __name__ == "__main__":
    run_all(json.loads(sys.argv[1]))
    leave(0)
