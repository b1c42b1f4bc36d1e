"""Several sources by weight, endlessly: draw k is a pure function of (seed, k), whoever asks and in whatever order.

A source's own draws go through it epoch by epoch, each in an order of its own. In the place of a bad sample stands
another one of the same source, chosen by (seed, k) too: every rank uses exactly its own numbers and stays in step. A
`BadLog` lists the bad ones on disk.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from duogen_core.data.sources.base import Bad, OnBad, Sample, Source, stable_hash, weighted_choices
from duogen_core.errors import DuoGenError

BLOCK = 1 << 14  # draws whose sources are chosen together
KNOWN = 20_000  # bad samples that a mixture remembers; it reads an older one again
LISTED = 100_000  # bad samples that a BadLog names, and as many that were not asked for
ATTEMPTS = 1000  # for one draw; after so many bad samples in a row the source is taken to be lost


class Fetched(NamedTuple):
    """A draw that was read and not decoded: the number of its sample and its bytes, and the bad ones before it."""

    index: int
    raw: Any
    skipped: tuple[Bad, ...]


class Mixture(Iterator[Sample]):
    """Iterating gives the draws rank, rank + world, … from `position` on, the first draw not yet taken by any rank.

    `draw(k)`, or `mixture[k]` (so it is a map-style dataset for a torch DataLoader), ignores rank and position.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        weights: Sequence[float],
        seed: int,
        *,
        rank: int = 0,
        world: int = 1,
        on_bad: OnBad | None = None,
    ) -> None:
        if len(sources) != len(weights):
            raise DuoGenError(f"There are {len(sources)} sources and {len(weights)} weights; expected one for each.")
        if not sources or not any(weights):
            raise DuoGenError("There is nothing to draw from; name at least one source with a weight above 0.")
        if not 0 <= rank < world:
            raise DuoGenError(f"The rank {rank} does not exist among {world}.")
        self.sources, self.seed, self.rank, self.world, self.on_bad = list(sources), seed, rank, world, on_bad
        total = float(sum(weights))
        self.weights = np.array([weight / total for weight in weights])
        self.position = 0
        self._before = [np.zeros(len(sources), np.int64)]  # draws of every source before each block
        self._block: tuple[int, np.ndarray, np.ndarray] | None = None
        self._given: dict[int, Fetched] = {}  # draws that another process has read
        self._bad: dict[tuple[int, int], Bad] = {}  # so that none is read or reported twice
        self._bad_headers: dict[tuple[int, int], Bad] = {}  # apart, or headers would depend on what a rank has read

    def place(self, k: int) -> tuple[int, int]:
        """Returns (source, how many draws of that source came before) of draw k."""
        # Draws are chosen block by block; of earlier blocks only the counts are kept.
        block, at = divmod(k, BLOCK)
        if self._block is None or self._block[0] != block:
            while len(self._before) <= block:
                counts = np.bincount(self._choices(len(self._before) - 1), minlength=len(self.sources))
                self._before.append(self._before[-1] + counts)
            choices = self._choices(block)
            nth = np.empty(BLOCK, np.int64)
            for source in range(len(self.sources)):
                mine = choices == source
                nth[mine] = self._before[block][source] + np.arange(mine.sum())
            self._block = block, choices, nth
        return int(self._block[1][at]), int(self._block[2][at])

    def _choices(self, block: int) -> np.ndarray:
        return weighted_choices(self.weights, BLOCK, stable_hash(self.seed, "block", block))

    def draw(self, k: int) -> Sample:
        """Returns draw k. Reports a bad sample to on_bad the first time that this object meets it."""
        return self._draw(k, lambda source, index: source.read(index), self._bad, self.on_bad)

    def header(self, k: int) -> Sample:
        """Returns draw k by `Source.header`, the same on every rank: tokens can be counted, no pixel is decoded.

        Where a sample is found bad only when it is read whole, `draw` returns another one.
        """
        return self._draw(k, lambda source, index: source.header(index), self._bad_headers, None)

    def _draw(
        self,
        k: int,
        read: Callable[[Source, int], Sample | Bad],
        known: dict[tuple[int, int], Bad],
        on_bad: OnBad | None,
    ) -> Sample:
        number, nth = self.place(k)
        source = self.sources[number]
        if (given := self._given.get(k)) is not None:
            found = read(source, given.index)
            if isinstance(found, Sample):
                return replace(found, skipped=given.skipped)
            source.refresh()  # it is damaged behind its header: another one comes out of the shards, as below
        skipped: dict[int, Bad] = {}
        for attempt in range(ATTEMPTS):
            index = self._index(source, number, k, nth, attempt)
            found = known.get((number, index)) or read(source, index)
            if isinstance(found, Sample):
                return replace(found, skipped=tuple(skipped.values()))
            skipped[index] = found
            if (number, index) not in known:
                if len(known) >= KNOWN:  # an endless stream may have any number of them
                    del known[next(iter(known))]
                known[number, index] = found
                if on_bad is not None:
                    on_bad(found)
        raise DuoGenError(
            f"{source.name}: {ATTEMPTS} samples in a row cannot be used; run `data check` on it. The last one: "
            f"{found.sentence}"
        )

    def reader(self, k: int, readers: int) -> int | None:
        """Says which of so many readers had best read draw k; None is anybody.

        Draws of one lane lie in the same shards, so one reader gets all of them; any other reader gets the same
        samples, only it has to read those shards, too."""
        number, nth = self.place(k)
        return self.sources[number].reader(nth, readers)

    @property
    def streamed(self) -> bool:
        """Whether some draws lie in lanes."""
        return any(source.lanes is not None for source in self.sources)

    def fetch(self, k: int) -> Fetched:
        """Reads draw k, which lies in a lane, for another process that will not read shards itself (`give`)."""
        sample = self.header(k)
        return Fetched(sample.index, self.sources[self.place(k)[0]].raw(sample.index), sample.skipped)

    def give(self, fetched: Mapping[int, Fetched]) -> None:
        """Takes draws that another process has fetched, in the place of those given before: these need no shard."""
        self._given = dict(fetched)
        raws: list[dict[int, Any]] = [{} for _ in self.sources]
        for k, each in fetched.items():
            raws[self.place(k)[0]][each.index] = each.raw
        for source, own in zip(self.sources, raws, strict=True):
            source.hold(own)

    def keep(self, folder: Path) -> None:
        """Lets sources note in `folder` what a later session would have to find again; they do without, too."""
        for source in self.sources:
            source.keep(folder)

    def _index(self, source: Source, number: int, k: int, nth: int, attempt: int) -> int:
        seed = stable_hash(self.seed, "source", number)
        chance = stable_hash(seed, k, attempt) if attempt else 0  # the same for every rank
        return source.pick(seed, nth, attempt, chance)

    __getitem__ = draw

    def __next__(self) -> Sample:
        sample = self.draw(self.position + self.rank)
        self.position += self.world
        return sample

    def epochs(self, k: int | None = None) -> list[float]:
        """Says how many epochs of each source came before draw k (None: `position`); of an endless one, its draws."""
        place = self.position if k is None else k
        if place:
            self.place(place - 1)
        block, at = divmod(place, BLOCK)
        counts = self._before[min(block, len(self._before) - 1)].astype(float)
        if at:
            counts = counts + np.bincount(self._choices(block)[:at], minlength=len(self.sources))
        return [float(n if s.endless else n / len(s)) for s, n in zip(self.sources, counts, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """Returns plain JSON, the same for every rank when all have taken as many draws."""
        return {"position": self.position, **self.recipe()}

    def recipe(self) -> dict[str, Any]:
        """Returns what the draws depend on, as plain JSON."""
        sources = [{**s.identity(), "weight": round(float(w), 12)} for s, w in zip(self.sources, self.weights)]
        return {"seed": self.seed, "sources": sources}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes where `state` was taken, with any number of ranks; a DuoGenError if the data is not the same."""
        changes = differences(state, self.recipe())
        if changes:
            raise DuoGenError(
                f"The data is not that of the saved run: {'; '.join(changes)}. Give it the same data, or begin anew."
            )
        self.position = int(state["position"])


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Says in words what differs between two recipes of a mixture."""
    found = []
    if old.get("seed") != new["seed"]:
        found.append(f"the seed was {old.get('seed')} and is {new['seed']}")
    before, after = old.get("sources", []), new["sources"]
    if len(before) != len(after):
        return [*found, f"there were {len(before)} sources and are {len(after)}"]
    for i, (was, now) in enumerate(zip(before, after, strict=True)):
        for name in sorted({*was, *now}):
            if was.get(name) != now.get(name):
                what = "files" if name == "digest" else name
                found.append(f"{what} of source {i + 1} ({now['kind']}): was {was.get(name)}, is {now.get(name)}")
    return found


class Told:
    """What was told already, each thing once and `most` at most, since an endless stream has no end of them: what comes
    when the list is full is no longer told, and counted whenever it comes."""

    def __init__(self, most: int = LISTED) -> None:
        self.keys: set[Any] = set()
        self.most, self.more = most, 0

    def add(self, key: Any) -> bool:
        """Whether it is to be told."""
        if key in self.keys:
            return False
        if len(self.keys) >= self.most:
            self.more += 1
            return False
        self.keys.add(key)
        return True

    def __len__(self) -> int:
        return len(self.keys) + self.more

    @staticmethod
    def together(all_of: Sequence[Told]) -> int:
        """How many things several processes met, each once whichever met it."""
        return len(set().union(*(each.keys for each in all_of))) + sum(each.more for each in all_of)


class BadLog:
    """Counts bad samples and names each once, one JSON line each: an `on_bad` callback.

    A file that is there already goes on: what it names is not named again. It names LISTED bad samples at most, and as
    many that were only not asked for; how many came after these is known for this session alone.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = Path(path) if path is not None else None
        self.bad, self.unwanted = Told(LISTED), Told(LISTED)  # unwanted: samples that were only not asked for
        self._torn = False  # the file ends in the middle of a line: a run was killed while it wrote
        if self.path is not None and self.path.exists():
            self._read()

    def _read(self) -> None:
        try:
            text = self.path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DuoGenError(f"The list of bad samples {self.path} cannot be read: {error}.") from None
        self._torn = bool(text) and not text.endswith("\n")
        for line in text.split("\n"):  # str.splitlines would also split at U+2028
            try:
                entry = json.loads(line)
                known = self.unwanted if entry.get("excluded") else self.bad
                known.add((str(entry["source"]), int(entry["index"])))
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
                continue

    def __len__(self) -> int:
        return len(self.bad) + len(self.unwanted)

    @property
    def excluded(self) -> int:
        return len(self.unwanted)

    def __call__(self, bad: Bad) -> bool:
        """Writes it down; False if it was known or the list is full. One that cannot be written stops no training."""
        key = bad.source, bad.index
        if key in self.bad.keys or key in self.unwanted.keys:
            return False
        if not (self.unwanted if bad.excluded else self.bad).add(key):
            return False
        if self.path is not None:
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write("\n" * self._torn + json.dumps(asdict(bad), ensure_ascii=True) + "\n")
                self._torn = False
            except OSError:
                self.path = None
        return True
