"""Samples of a finished run to look at again, for the report: their pictures, whether a rule refused them or not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from duogen_core.data.pairs.editing.engine import engine_of
from duogen_core.data.pairs.editing.rows import RowReader
from duogen_core.data.pairs.report import WHOLE, words_of
from duogen_core.data.pairs.sharded import Run, Shard


class Showing:
    """One engine and one reader for all shards of a report, which come in order, so that the set is read once."""

    def __init__(self, run: Run) -> None:
        self.run, self.engine = run, engine_of(run.details)
        self.reader = RowReader(self.engine.rows, self.engine.columns)

    def __call__(
        self, shard: Shard, wanted: Mapping[int, set[int]]
    ) -> Iterator[tuple[tuple[int, int], Sequence[np.ndarray], str]]:
        with self.engine.decoder() as decoder:
            for number in sorted(wanted):
                item = shard.items[number - shard.first]
                sample = self.engine.sample(item, self.reader.read(item[0], item[1]), decoder)
                pictures = [
                    part for step in sample.steps for part in (*step.asked, step.result) if isinstance(part, np.ndarray)
                ]
                words = words_of(self.run, shard.number, f"{number:08d}")
                yield (number, WHOLE), pictures or sample.looked_at, words
