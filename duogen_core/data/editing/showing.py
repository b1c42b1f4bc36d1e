"""Samples of a finished run to look at again, for the report: their pictures, whether a rule refused them or not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from duogen_core.data.editing.engine import engine_of
from duogen_core.data.pairs.again import WHOLE, words_of
from duogen_core.data.pairs.sharded import Run, Shard


def show(
    run: Run, shard: Shard, wanted: Mapping[int, set[int]]
) -> Iterator[tuple[tuple[int, int], Sequence[np.ndarray], str]]:
    engine = engine_of(run.details)
    numbers = sorted(wanted)
    for number, sample in zip(numbers, engine.samples([shard.items[number - shard.first] for number in numbers])):
        pictures = [
            part for step in sample.steps for part in (*step.asked, step.result) if isinstance(part, np.ndarray)
        ]
        words = words_of(run, shard.number, f"{number:08d}")
        yield (number, WHOLE), pictures or sample.looked_at, words
