"""Clips of a finished run to look at again, for the report: the same frames, and the words of the stored Documents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from duogen_core.data.pairs.report import WHOLE, words_of
from duogen_core.data.pairs.sharded import Run, Shard
from duogen_core.data.pairs.video.engine import Engine, Outcome
from duogen_core.data.pairs.video.reading import open_inputs


class Showing:
    def __init__(self, run: Run) -> None:
        self.run, self.inputs = run, open_inputs(run.details["paths"])
        self.engine = Engine(run.details["preset"])

    def __call__(
        self, shard: Shard, wanted: Mapping[int, set[int]]
    ) -> Iterator[tuple[tuple[int, int], Sequence[np.ndarray], str]]:
        for number, (place, name) in enumerate(shard.items, shard.first):
            indices = wanted.get(number, set()) - {WHOLE}
            if not indices:
                continue
            for index, judged in enumerate(self.engine.clips(self.inputs[place].root / name, Outcome())):
                if index in indices and judged.first is not None:
                    words = words_of(self.run, shard.number, f"{number:08d}-{index:04d}")
                    yield (number, index), (judged.first, judged.last), words
