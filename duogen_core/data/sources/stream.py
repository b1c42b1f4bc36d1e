"""Shards read in order, as they come: stream:FILES or stream:ADDRESS, tars and Parquet rows, never the whole index.

Draw n is a pure function of (seed, n), of the shards and of the settings, whoever asks: so a run that goes on sees what
an unbroken one would have seen, with any number of ranks and workers, and there is no state to save.

    shards     are shuffled anew for every epoch, by (seed, epoch); epoch follows epoch without an end
    lanes      draw n lies in lane n % lanes at place n // lanes. Lane i reads shards i, i + lanes, i + 2 lanes, … of
               that order, so every shard of every epoch lies in one lane, and a lane is best read by one reader
    blocks     a lane reads its shard in blocks of shuffle / lanes samples, or buffer_mb / lanes if they are large, and
               gives each block in an order of its own: the shuffle buffer, `shuffle` samples over all lanes together
    bad ones   another sample of the block stands in their place, then one of the lane's next shards

To enter anywhere, a lane must know how many samples the shards before hold, and where blocks begin in the one it is in.
It notes both down as it reads (`keep`: in a folder, from which every reader of a later session knows them); what is
not noted is found from headers, or the column sample_id, without reading images. So notes only save time.

Blocks hold files as they were (PNG, JPEG), and a picture is decoded when its sample is drawn, within the usual limits.
The process that reads a lane need not be the one that decodes: `raw` of a sample goes to `hold` of a copy elsewhere.
"""

from __future__ import annotations

import json
import os
import secrets
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from duogen_core.data.sources.base import Bad, Limits, Sample, Source, digest, shuffled_index, stable_hash
from duogen_core.data.sources.shard_blocks import START, Block, Blocks, Place, Raw, open_blocks
from duogen_core.data.sources.shards import public, shards_of
from duogen_core.document import Document
from duogen_core.errors import DuoGenError

SUFFIXES = (".tar", ".parquet")
MOST = 1 << 32  # samples of a shard
LOOKED_INTO = 4  # shards, by `look`
MOST_OPEN = 256  # files


class Stream(Source):
    """shuffle: samples that are held together, over all lanes. lanes: shards that are read at a time; at least as many
    as there are readers. buffer_mb: megabytes of all blocks together. damaged: what to do with a shard that ends early
    or cannot be read: skip the rest of it, as a bad sample, or stop. request: as of parquet:. storage: options of
    fsspec's file system, {"anon": true}."""

    endless = True

    def __init__(
        self,
        path: str,
        shuffle: int = 2048,
        lanes: int = 64,
        buffer_mb: int = 1024,
        damaged: Literal["skip", "stop"] = "skip",
        request: str | None = None,
        storage: Mapping[str, Any] | None = None,
        limits: Limits | None = None,
    ) -> None:
        super().__init__(f"stream:{public(path).partition('?')[0]}", limits)
        for name, value in (("shuffle", shuffle), ("lanes", lanes), ("buffer_mb", buffer_mb)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise DuoGenError(f"{self.name}: {name} is {value!r}; expected a whole number from 1 on.")
        if damaged not in ("skip", "stop"):
            raise DuoGenError(f"{self.name}: damaged is {damaged!r}; expected skip or stop.")
        if storage is not None and not isinstance(storage, Mapping):
            raise DuoGenError(f"{self.name}: storage is {storage!r}; expected a table of options.")
        self.shards = shards_of(path, SUFFIXES, storage)
        self.lanes = min(lanes, len(self.shards))
        self.documents = -(-shuffle // self.lanes)
        self.bytes = max(1, buffer_mb * 2**20 // self.lanes)
        self.held_bytes = 2 * buffer_mb * 2**20  # above it the blocks that were used least lately are read again
        self.damaged, self.request = damaged, request
        self.settings = {"shuffle": shuffle, "lanes": self.lanes, "buffer_mb": buffer_mb, "request": request}
        self.notes = Notes()
        self._forget()

    def _forget(self) -> None:
        self._seed: int | None = None
        self._lanes: OrderedDict[int, Lane] = OrderedDict()  # of one seed, the one used last at the end
        self._opened: OrderedDict[int, Blocks] = OrderedDict()
        self._last: tuple[int, Block] | None = None  # what was read last, and the beginning of a shard that was
        self._begun: tuple[int, Block] | None = None
        self._given: dict[int, Raw] = {}  # samples that another process has read

    def __getstate__(self) -> dict[str, Any]:
        left_out = ("_seed", "_lanes", "_opened", "_last", "_begun", "_given")
        return {name: value for name, value in self.__dict__.items() if name not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def __len__(self) -> int:
        raise TypeError("how many samples a stream has is not known before it was read")

    def identity(self) -> dict[str, Any]:
        names = [(shard.name, shard.size) for shard in self.shards]
        return {"kind": "stream", "shards": len(self.shards), **self.settings, "digest": digest(names)}

    def keep(self, folder: Path) -> None:
        """Notes where blocks begin in `folder`, and reads what was noted there before."""
        self.notes.keep(folder, digest([self.identity()]), len(self.shards))

    # -- which sample a draw is

    def index_at(self, seed: int, epoch: int, position: int) -> int:
        return self.pick(stable_hash(seed, epoch), position)

    def pick(self, seed: int, nth: int, attempt: int = 0, chance: int = 0) -> int:
        """Returns the number of a sample, `shard * MOST + its place in the shard`, after it was read."""
        if seed != self._seed:
            self._lanes.clear()
            self._seed = seed
        lane = self._lanes.setdefault(nth % self.lanes, Lane(nth % self.lanes))
        self._lanes.move_to_end(lane.number)
        place = nth // self.lanes
        held = self._enter(lane, place)
        block, shard = held.block, held.shard
        if not attempt:
            key = stable_hash(seed, "block", held.turn, block.place.sample)
            return self._number(shard, block, shuffled_index(place - held.first, block.count, key))
        key, other = stable_hash(seed, nth, "instead"), attempt - 1
        for turn in range(held.turn, held.turn + 2 * len(self.shards) * self.lanes, self.lanes):  # an epoch, at least
            if turn != held.turn:
                shard = self._shard(turn)
                if self._begun is None or self._begun[0] != shard:
                    self._begun = shard, self._read(shard, START)
                block = self._begun[1]
            if other < block.count:
                return self._number(shard, block, shuffled_index(other, block.count, key))
            other -= block.count
        raise DuoGenError(f"{self.name}: no sample in it can be used; run `data check` on it.")

    def _number(self, shard: int, block: Block, at: int) -> int:
        self._last = shard, block
        return shard * MOST + block.place.sample + at

    def _shard(self, turn: int) -> int:
        """Returns which shard is the `turn`-th of all epochs."""
        epoch, place = divmod(turn, len(self.shards))
        return shuffled_index(place, len(self.shards), stable_hash(self._seed, "shards", epoch))

    def _enter(self, lane: Lane, place: int) -> Held:
        """Brings a lane to the block of its sample `place`."""
        if (held := lane.held(place)) is not None:
            return held
        if place < lane.before:
            lane.turn, lane.before = lane.number, 0
        empty = 0
        while True:
            shard = self._shard(lane.turn)
            start = self._find(shard, place - lane.before)
            if start is not None:
                block = self._read(shard, start)
                if place - lane.before < start.sample + block.count:
                    held = Held(block, shard, lane.turn, lane.before + start.sample)
                    # A step is read twice, first for the sizes of its pictures: the block before stays for that.
                    lane.blocks = [*lane.blocks[-1:], held]
                    self._make_room(lane)
                    return held
                continue  # only now it is known where the block, or the shard, ends
            count = self.notes.counts[shard]
            empty = 0 if count else empty + 1
            if empty > len(self.shards):
                raise DuoGenError(f"{self.name} holds no sample; expected tars or Parquet files with samples.")
            lane.before += count
            lane.turn += self.lanes

    def _find(self, shard: int, sample: int) -> Place | None:
        """Returns where the block of a sample begins; None where the shard has ended before."""
        while True:
            place, is_last = self.notes.before(shard, sample)
            if place is None or is_last or place.sample == sample:
                return place
            self.notes.add(shard, self._blocks(shard).outline(place))

    def _make_room(self, entered: Lane) -> None:
        held = sum(each.block.size for lane in self._lanes.values() for each in lane.blocks)
        for kept in (1, 0):  # first the blocks before, then those of lanes that were used least lately
            for lane in self._lanes.values():
                while held > self.held_bytes and len(lane.blocks) > max(kept, lane is entered):
                    held -= lane.blocks.pop(0).block.size

    # -- reading

    def _read(self, shard: int, place: Place) -> Block:
        block = self._blocks(shard).read(place)
        self.notes.add(shard, block)
        faults = [raw.fault for raw in block.samples if raw.fault]
        if faults and self.damaged == "stop":
            raise DuoGenError(f"{faults[0]} To go on without it, set damaged: skip.")
        return block

    def _blocks(self, shard: int) -> Blocks:
        if shard not in self._opened:
            self._opened[shard] = open_blocks(self.shards[shard], self.documents, self.bytes, self.request)
            while len(self._opened) > min(self.lanes + LOOKED_INTO, MOST_OPEN):
                self._opened.popitem(last=False)[1].close()
        self._opened.move_to_end(shard)
        return self._opened[shard]

    def _raw(self, index: int) -> tuple[Blocks, Raw]:
        shard, sample = divmod(index, MOST)
        if index in self._given:
            return self._blocks(shard), self._given[index]
        while True:
            if self._last is not None and self._last[0] == shard:
                block = self._last[1]
                if 0 <= sample - block.place.sample < block.count:
                    return self._blocks(shard), block.samples[sample - block.place.sample]
            if not 0 <= shard < len(self.shards) or (start := self._find(shard, sample)) is None:
                raise IndexError(f"sample {sample} of shard {shard}")
            self._last = shard, self._read(shard, start)

    def label(self, index: int) -> str:
        return self._raw(index)[1].label

    def load(self, index: int) -> Document:
        blocks, raw = self._raw(index)
        if raw.fault:
            raise DuoGenError(raw.fault)
        return blocks.document(raw)

    def raw(self, index: int) -> Raw:
        blocks, raw = self._raw(index)
        return blocks.packed(raw)

    def hold(self, raws: Mapping[int, Raw]) -> None:
        """Only a sample that is damaged behind its header has this process read shards, for another one in its place:
        what was held for the last one of these goes, or every process would have a shuffle buffer."""
        self._lanes.clear()
        self._last = self._begun = None
        self._given = dict(raws)

    def refresh(self) -> None:
        if self.notes.file is not None:
            self.notes.keep(self.notes.file.parent, self.notes.file.name, len(self.shards))

    def walk(self, shard: int) -> Iterator[Sample | Bad]:
        """Yields all samples of a shard, in order."""
        place: Place | None = START
        while place is not None:
            block = self._read(shard, place)
            for at in range(block.count):
                yield self.read(self._number(shard, block, at))
            place = block.next

    def look(self, count: int) -> list[Sample | Bad]:
        """Reads some samples from the beginnings of a few shards."""
        into = min(LOOKED_INTO, len(self.shards))
        found: list[Sample | Bad] = []
        for k in range(into):
            shard = k * len(self.shards) // into
            block = self._read(shard, START)
            found += [self.read(self._number(shard, block, at)) for at in range(min(-(-count // into), block.count))]
        return found


class Held(NamedTuple):
    """A block in a lane. turn: its shard's number in the order of all epochs. first: the lane's number of its first
    sample."""

    block: Block
    shard: int
    turn: int
    first: int


@dataclass
class Lane:
    """Where a lane stands: at shard `turn` in the order of all epochs, with `before` samples in its earlier ones."""

    number: int
    turn: int = -1
    before: int = 0
    blocks: list[Held] = field(default_factory=list)  # the last ones, at most two

    def __post_init__(self) -> None:
        self.turn = self.number

    def held(self, place: int) -> Held | None:
        return next((each for each in self.blocks if 0 <= place - each.first < each.block.count), None)


@dataclass
class Notes:
    """Where blocks begin in shards, and how many samples the shards hold that were read to their ends."""

    samples: dict[int, array] = field(default_factory=dict)  # of each shard, the first samples of its blocks
    positions: dict[int, array] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)
    file: Path | None = None  # how the names of the files begin
    process: int = 0
    _own: Path | None = None
    _pending: list[list[int]] = field(default_factory=list)

    def before(self, shard: int, sample: int) -> tuple[Place | None, bool]:
        """Returns the last known block that begins at or before a sample, and whether it should hold it: one that is
        known begins behind it. (A block between them may be missing, if a file was lost; reading finds it.)
        (None, …): the shard has ended before."""
        count = self.counts.get(shard)
        if count is not None and sample >= count:
            return None, True
        samples = self.samples.get(shard)
        if not samples:
            return START, count is not None
        at = bisect_right(samples, sample) - 1
        is_last = at + 1 < len(samples) or count is not None
        return Place(samples[at], self.positions[shard][at]), is_last

    def add(self, shard: int, block: Block) -> None:
        if block.next is not None:
            line = [shard, block.next.sample, block.next.position]
        else:
            line = [shard, block.place.sample + block.count]
        if self._learn(line):
            self._pending.append(line)
            self._write()

    def _learn(self, line: list[int]) -> bool:
        shard, sample, *position = line
        if not position:
            known = shard in self.counts
            self.counts.setdefault(shard, sample)
            return not known
        samples = self.samples.setdefault(shard, array("q", [0]))
        positions = self.positions.setdefault(shard, array("q", [0]))
        at = bisect_right(samples, sample)
        if samples[at - 1] == sample:
            return False
        samples.insert(at, sample)
        positions.insert(at, position[0])
        return True

    def keep(self, folder: Path, key: str, shards: int) -> None:
        """Every process writes a file of its own; all are read."""
        self.file = folder / key
        for file in sorted(folder.glob(f"{key}.*.jsonl")):
            try:
                lines = file.read_bytes().split(b"\n")
            except OSError:
                continue
            found = []
            for text in lines:
                try:
                    line = json.loads(text)
                except ValueError:  # the last one, of a process that was killed
                    continue
                whole = isinstance(line, list) and all(type(each) is int and 0 <= each < 2**62 for each in line)
                if whole and len(line) in (2, 3) and line[0] < shards:
                    found.append(line)
            for line in found:
                self._learn(line)

    def _write(self) -> None:
        if self.file is None:
            return
        if self.process != os.getpid():
            self.process = os.getpid()
            self._own = self.file.with_name(f"{self.file.name}.{self.process}-{secrets.token_hex(4)}.jsonl")
        try:
            self._own.parent.mkdir(parents=True, exist_ok=True)
            with self._own.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(line) + "\n" for line in self._pending))
        except OSError:  # what cannot be noted is found again
            self.file = None
        self._pending.clear()
