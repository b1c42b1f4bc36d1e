"""Reads a whole source once and adds up what is in it, for `data check`. Memory does not grow with the source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from typing import Any

from duogen_core.data.sources.base import Bad, Sample, Source
from duogen_core.data.sources.stream import Stream
from duogen_core.document import Document
from duogen_core.processes import in_processes

CHUNK = 16  # samples that a worker process reads at a time
MAX_SIZES = 10_000  # different picture sizes that are counted one by one

CountTokens = Callable[[Document], int]


@dataclass(frozen=True)
class Facts:
    """What the table needs to know of one sample."""

    bad: Bad | None = None
    turns: int = 0
    sizes: tuple[tuple[int, int], ...] = ()
    tokens: int | None = None
    alignment: bool = False


@dataclass
class Totals:
    """Sums over good samples; bad ones are only counted."""

    good: int = 0
    bad: int = 0
    alignment: int = 0  # of the good ones
    turns: int = 0
    pictures: int = 0
    tokens: int = 0
    most_tokens: int = 0
    largest_side: int = 0
    sizes: Counter = field(default_factory=Counter)

    def add(self, facts: Facts) -> None:
        if facts.bad:
            self.bad += 1
            return
        self.good += 1
        self.alignment += facts.alignment
        self.turns += facts.turns
        self.pictures += len(facts.sizes)
        self.tokens += facts.tokens or 0
        self.most_tokens = max(self.most_tokens, facts.tokens or 0)
        for size in facts.sizes:
            self.largest_side = max(self.largest_side, *size)
            if size in self.sizes or len(self.sizes) < MAX_SIZES:
                self.sizes[size] += 1

    def to_json(self) -> dict[str, Any]:
        common = [{"width": w, "height": h, "pictures": n} for (w, h), n in self.sizes.most_common(20)]
        return {
            "samples": self.good + self.bad,
            "good": self.good,
            "bad": self.bad,
            "alignment": self.alignment,
            "turns": self.turns,
            "pictures": self.pictures,
            "largest_side": self.largest_side,
            "picture_sizes": common,
            "tokens": self.tokens,
            "most_tokens": self.most_tokens,
        }


def facts_of(source: Source, index: int, count_tokens: CountTokens | None) -> Facts:
    return _facts(source.read(index), count_tokens)


def _facts(found: Sample | Bad, count_tokens: CountTokens | None) -> Facts:
    if isinstance(found, Bad):
        return Facts(bad=found)
    document = found.document
    sizes = tuple(picture.size for picture in document.pictures)
    tokens = count_tokens(document) if count_tokens else None
    return Facts(None, len(document.turns), sizes, tokens, document.meta.get("alignment") is True)


def survey(
    source: Source, samples: int | None, count_tokens: CountTokens | None = None, workers: int = 0
) -> Iterator[Facts]:
    """Yields the facts of samples 0 … samples - 1, in order; read by `workers` processes, or by this one. Of a stream,
    whose length nobody knows, shard after shard; None: all of them."""
    if isinstance(source, Stream):
        read, parts = partial(_of_shard, source, count_tokens=count_tokens), list(range(len(source.shards)))
    else:
        read, parts = partial(_of_chunk, source, count_tokens=count_tokens), _chunks(samples or 0)
    if workers:
        found = in_processes(_read_part, parts, workers, start=_be_worker, arguments=(read,), in_order=True)
    else:
        found = map(read, parts)  # read one by one, as they are asked for
    with closing(found) if workers else nullcontext():
        yield from islice(chain.from_iterable(found), samples)


def _of_chunk(source: Source, indices: range, count_tokens: CountTokens | None) -> Iterator[Facts]:
    return (facts_of(source, index, count_tokens) for index in indices)


def _of_shard(source: Stream, shard: int, count_tokens: CountTokens | None) -> Iterator[Facts]:
    return (_facts(found, count_tokens) for found in source.walk(shard))


def _chunks(samples: int) -> list[range]:
    return [range(at, min(at + CHUNK, samples)) for at in range(0, samples, CHUNK)]


_read: Callable[[Any], Iterator[Facts]]


def _be_worker(read: Callable[[Any], Iterator[Facts]]) -> None:
    global _read
    _read = read


def _read_part(part: Any) -> list[Facts]:
    return list(_read(part))
