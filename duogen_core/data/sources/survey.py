"""Reads a whole source once and adds up what is in it, for `data check`. Memory does not grow with the source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from duogen_core.data.sources.base import Bad, Source
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
    found = source.read(index)
    if isinstance(found, Bad):
        return Facts(bad=found)
    document = found.document
    sizes = tuple(picture.size for picture in document.pictures)
    tokens = count_tokens(document) if count_tokens else None
    return Facts(None, len(document.turns), sizes, tokens, document.meta.get("alignment") is True)


def survey(source: Source, samples: int, count_tokens: CountTokens | None = None, workers: int = 0) -> Iterator[Facts]:
    """Yields the facts of samples 0 … samples - 1, in order; read by `workers` processes, or by this one."""
    look = partial(facts_of, source, count_tokens=count_tokens)
    if not workers:
        yield from map(look, range(samples))
        return
    chunks = in_processes(_read_chunk, _chunks(samples), workers, start=_be_worker, arguments=(look,), in_order=True)
    with closing(chunks):
        for chunk in chunks:
            yield from chunk


def _chunks(samples: int) -> list[range]:
    return [range(at, min(at + CHUNK, samples)) for at in range(0, samples, CHUNK)]


_look: Callable[[int], Facts]


def _be_worker(look: Callable[[int], Facts]) -> None:
    global _look
    _look = look


def _read_chunk(indices: range) -> list[Facts]:
    return [_look(index) for index in indices]
