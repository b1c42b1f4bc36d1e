"""One run of any engine: begun or continued, and its shards done.

    run = begin(folder, engine, size)
    for entry in work(run, engine, workers=2): ...     every new line of the log, as items are finished

Items are cut into shards when a run begins. A shard is a pure function of its line in the plan, so one that was begun
twice, interrupted, or done elsewhere ends as the same bytes, and a run begun one way may be finished another.
"""

from __future__ import annotations

import itertools
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

from duogen_core.data.runs import Engine, Outcome
from duogen_core.data.runs.folder import (
    FOLDERS,
    RunFolder,
    check_unused,
    found_run,
    make_folders,
    read_plan,
    read_plan_line,
    read_run,
    with_version,
    write_plan,
    write_run,
)
from duogen_core.data.runs.log import json_lines, rule_of
from duogen_core.data.runs.shards import add_document, add_files, new_shard
from duogen_core.data.runs.workers import gather_answers, in_threads, in_workers, share
from duogen_core.errors import DuoGenError

AnyEngine = TypeVar("AnyEngine", bound=Engine)

IN_MEMORY = 64 * 2**20  # bytes of an item's documents that wait in memory for their turn; more go to the disk


@dataclass(frozen=True)
class Shard:
    number: int
    first: int  # the number of its first item in the run
    items: Sequence[Any]


@dataclass(frozen=True)
class Run(RunFolder):
    """An existing run: where it is, and what its run.json says."""

    kind: str
    items: int
    shards: int
    size: int = 0  # items in a shard, where these are numbers and there is no plan.jsonl
    tried_again: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    details: Mapping[str, Any] | None = None

    def plan(self) -> Iterator[Shard]:
        for _, shard in self.places():
            yield shard

    def places(self) -> Iterator[tuple[int, Shard]]:
        """Every shard, with a number by which `shard_at` finds it: small enough to be sent anywhere."""
        if not self.size:
            yield from read_plan(self.folder, self.shards, _shard)
            return
        for number in range(self.shards):
            yield number, self.shard_at(number)

    def shard_at(self, place: int) -> Shard:
        if self.size:
            first = place * self.size
            return Shard(place, first, range(first, min(first + self.size, self.items)))
        with (self.folder / "plan.jsonl").open("rb") as lines:  # the place is the byte at which its line begins
            lines.seek(place)
            return read_plan_line(self.folder, lines.readline(), _shard)

    def is_done(self, shard: int) -> bool:
        """Whether it was written, and nothing in it failed for a reason that is worth another attempt."""
        if not super().is_done(shard):
            return False
        try:
            return not self.tried_again or all(
                rule_of(entry) not in self.tried_again for entry in json_lines(self.log(shard))
            )
        except DuoGenError:  # a line that is no entry
            return False

    def mine(self, part: tuple[int, int] = (1, 1)) -> Iterator[tuple[int, Shard]]:
        """Places and shards of part k of n: every nth from the kth on."""
        yield from itertools.islice(self.places(), part[0] - 1, None, part[1])


def _shard(entry: dict[str, Any]) -> Shard:
    items = entry["items"] if "items" in entry else [[entry["input"], name] for name in entry["pages"]]  # as of old
    return Shard(entry["shard"], entry["first"], tuple(items))


def begin(folder: Path, engine: Engine, size: int) -> Run:
    """The run in this folder: continued if it was begun with the same identity, planned otherwise."""
    if size < 1:
        raise DuoGenError(f"A shard has {size} {engine.things}; expected at least 1.")
    identity = with_version({**engine.identity(), engine.size_name: size})
    value = found_run(folder, engine.kind, identity)
    if value is None:
        check_unused(folder)
        make_folders(folder, FOLDERS)
        engine.prepare(folder, identity)
        items = engine.items()
        if isinstance(items, range):
            count, shards = len(items), -(-len(items) // size)
        else:
            count, shards = write_plan(folder, items, size, engine.group)
        value = {"details": engine.details(), "items": count, "shards": shards, "notes": list(engine.notes)}
        write_run(folder, engine.kind, {**value, "identity": identity})
    make_folders(folder, FOLDERS)
    numbered = isinstance(engine.items(), range)
    return _run(folder, engine.kind, value, size if numbered else 0, engine.tried_again)


def open_run(folder: Path, kind: str) -> Run:
    """The run in this folder, to look at."""
    return read_run(folder, kind, lambda value: _run(folder, kind, value))


def engine_of(kind: type[AnyEngine], run: Run) -> AnyEngine:
    """The engine that a run was begun with, to look at its entries again; what run.json lacks is a sentence."""
    return read_run(run.folder, run.kind, lambda _: kind.of_run(run))


def _run(folder: Path, kind: str, value: Mapping[str, Any], size: int = 0, tried_again: Sequence[str] = ()) -> Run:
    items = next(value[name] for name in ("items", "pages", "entries") if name in value)
    shards = value.get("shards", -(-items // size) if size else 0)
    notes, details = tuple(value.get("notes", ())), value.get("details", value)
    return Run(folder, kind, items, shards, size, tuple(tried_again), notes, details)


def work(
    run: Run,
    engine: Engine,
    workers: int = 1,
    backend: str = "local",
    part: tuple[int, int] = (1, 1),
    give_up: int = 0,
    threads: int = 1,
) -> Iterator[dict[str, Any]]:
    """Does the shards that are not done; yields their entries. Leaving the loop leaves whole shards.

    workers: how many items (in threads) or shards (in processes, with Ray) are done at once. threads: within a worker
    of Ray. give_up: how many items in a row may fail by a machine's or an endpoint's fault.
    """
    todo = ((place, shard) for place, shard in run.mine(part) if not run.is_done(shard.number))
    todo = todo if part == (1, 1) else list(todo)

    def sweep() -> None:
        if part == (1, 1):
            run.sweep()
        else:  # the other shards may be another process's
            for _, shard in todo:
                run.sweep(shard.number)

    sweep()
    clients = engine.clients()
    gather_answers(clients.values())
    if backend != "ray" and (workers <= 1 or not engine.keeps_lock):
        with engine:
            yield from ShardWriter(run, engine, workers, give_up).write(shard for _, shard in todo)
        return
    usages = {name: client.usage for name, client in clients.items()}
    engine.close()  # the workers open their own, which may need all the memory there is
    make = partial(ShardWorker, run, engine, workers, threads, give_up)
    try:
        for found in in_workers(make, (place for place, _ in todo), workers, backend, gpu=engine.uses_gpu):
            for name, counts in found["asked"].items():
                usages[name].add(**counts)
            yield from run.entries_of([found["shard"]])
        sweep()  # Ray does again what a killed worker left half written
    finally:
        gather_answers(clients.values())


class ShardWriter:
    def __init__(self, run: Run, engine: Engine, threads: int = 1, give_up: int = 0) -> None:
        self.run, self.engine, self.threads, self.give_up = run, engine, threads, give_up
        self.failed = 0  # in a row

    def write(self, shards: Iterable[Shard]) -> Iterator[dict[str, Any]]:
        """Writes the shards one after another. Items are done ahead in threads, across their borders."""
        self.engine.open()
        # Two copies of each iterator: the threads and `engine.read`, which may read several items at once, run ahead of
        # the shard that is being written, and its own items are counted off from what comes back, in order.
        shards, ahead = itertools.tee(shards)
        numbered = ((shard.first + k, item) for shard in ahead for k, item in enumerate(shard.items))
        numbers, items = itertools.tee(numbered)
        values = zip((number for number, _ in numbers), self.engine.read(item for _, item in items))
        with closing(in_threads(self._do, values, self.threads)) as done:
            for shard in shards:
                with new_shard(self.run, shard.number) as new:
                    for (number, _), (outcome, tar) in itertools.islice(done, len(shard.items)):
                        self._count(outcome)
                        with tar:
                            new.add_tar(tar)
                        entry = {"number": number, **outcome.entry}
                        new.log(entry)
                        new.seconds.update(outcome.seconds)
                        yield entry
                self.engine.shard_done(shard.items)

    def _do(self, numbered: tuple[int, Any]) -> tuple[Outcome, IO[bytes]]:
        """What became of an item, and its Documents as a tar that waits for its turn."""
        number, value = numbered
        outcome = self.engine.do(value)
        tar = tempfile.SpooledTemporaryFile(IN_MEMORY, dir=self.run.folder)  # noqa: SIM115 (whoever takes it closes it)
        with tarfile.open(fileobj=tar, mode="w") as archive:
            for ending, document in outcome.documents:
                begun = time.perf_counter()
                add_document(archive, f"{number:08d}{ending}", document, self.engine.encode)
                outcome.seconds["write"] += time.perf_counter() - begun
            for ending, members in outcome.files:
                add_files(archive, ((f"{number:08d}{ending}.{name}", data) for name, data in members))
        tar.seek(0)
        return outcome, tar

    def _count(self, outcome: Outcome) -> None:
        self.failed = self.failed + 1 if outcome.failed else 0
        if self.give_up and self.failed >= self.give_up:
            raise DuoGenError(
                f"{self.failed} {self.engine.things} in a row failed, the last with: {outcome.failed} Shards that are "
                "done are whole; the same command goes on."
            )


class ShardWorker:
    """What a worker process or an actor of Ray holds: the run, and the engine with all that it opens."""

    def __init__(self, run: Run, engine: Engine, workers: int, threads: int = 1, give_up: int = 0) -> None:
        self.writer, self.engine = ShardWriter(run, engine, threads, give_up), engine
        share(engine.clients().values(), workers)
        self.asked = Asked(engine)

    def __call__(self, place: int) -> dict[str, Any]:
        shard = self.writer.run.shard_at(place)
        for _ in self.writer.write([shard]):
            pass
        return {"shard": shard.number, "asked": self.asked.since()}


class Asked:
    """What the engine's language models have cost since it was last asked."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.before = engine, {}

    def since(self) -> dict[str, dict[str, int]]:
        now = {name: client.usage.to_json() for name, client in self.engine.clients().items()}
        found = {
            name: {key: value - self.before.get(name, {}).get(key, 0) for key, value in counts.items() if key != "cost"}
            for name, counts in now.items()
        }
        self.before = now
        return found


def outcomes(
    engine: Engine, items: Iterable[Any], threads: int, workers: int = 1, backend: str = "local"
) -> Iterator[Outcome]:
    """do(item) of every item, in order: for steps that compare what came before they write it down."""
    clients = engine.clients()
    gather_answers(clients.values())
    if backend != "ray":
        engine.open()
        with closing(in_threads(engine.do, items, threads)) as done:
            yield from (outcome for _, outcome in done)
        return
    try:
        make = partial(ItemWorker, engine, workers)
        for found in in_workers(make, items, workers, backend, ordered=True, gpu=engine.uses_gpu):
            for name, counts in found["asked"].items():
                clients[name].usage.add(**counts)
            yield Outcome(found["entry"], failed=found["failed"])
    finally:
        gather_answers(clients.values())


class ItemWorker:
    """The same for a step without shards."""

    def __init__(self, engine: Engine, workers: int) -> None:
        self.engine, self.asked = engine, Asked(engine)
        share(engine.clients().values(), workers)

    def __call__(self, item: Any) -> dict[str, Any]:
        outcome = self.engine.do(item)
        return {"entry": outcome.entry, "failed": outcome.failed, "asked": self.asked.since()}
