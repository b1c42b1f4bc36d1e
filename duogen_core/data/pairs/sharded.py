"""A run cut into shards: its plan is fixed when it begins, and each shard is written whole or not at all.

    run = begin(folder, KIND, identity, items, size, details)
    for result in work(run, do, workers): ...         do(shard) -> figures, by way of write_shard

OUT/run.json          kind, identity and details; written last when a run is begun, so it stands for a whole plan
OUT/plan.jsonl        a line a shard: its number, the number of its first item, its items
OUT/shards/00000.tar  the Documents of a shard, as webdataset: read them with webdataset:OUT/shards
OUT/logs/00000.jsonl  a line an item; stands for a done shard
OUT/times/00000.json  seconds by stage, the only thing that differs between two runs

Workers are threads: what is heavy runs in child processes, and threads can share one client of a language model.
"""

from __future__ import annotations

import json
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duogen_core import __version__
from duogen_core.data.presets import digest
from duogen_core.data.synthetic.in_order import in_order
from duogen_core.data.whole_file import whole_file
from duogen_core.errors import DuoGenError
from duogen_core.store import write_atomically

VERSION = 1
FOLDERS = ("shards", "logs", "times")
Log = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Shard:
    number: int
    first: int  # the number of its first item in the run
    items: tuple[Any, ...]


@dataclass(frozen=True)
class Run:
    """An existing run: where it is, and what its run.json says."""

    folder: Path
    kind: str
    details: Mapping[str, Any]
    items: int
    shards: int

    def plan(self) -> Iterator[Shard]:
        with (self.folder / "plan.jsonl").open(encoding="utf-8") as lines:
            for line in lines:
                entry = json.loads(line)
                yield Shard(entry["shard"], entry["first"], tuple(entry["items"]))

    def file(self, folder: str, shard: int) -> Path:
        ending = {"shards": "tar", "logs": "jsonl", "times": "json"}[folder]
        return self.folder / folder / f"{shard:05d}.{ending}"

    def is_done(self, shard: int) -> bool:
        return self.file("logs", shard).is_file()


def begin(
    folder: Path, kind: str, identity: Mapping[str, Any], items: Iterable[Any], size: int, details: Mapping[str, Any]
) -> Run:
    """The run in this folder: gone on with if it has the same identity, planned otherwise. items: plain JSON values."""
    if size < 1:
        raise DuoGenError(f"A shard has {size} items; expected at least 1.")
    mark = digest({**identity, "kind": kind, "shard_size": size, "duogen": __version__})
    if (folder / "run.json").is_file():
        run, found = _read(folder, kind)
        if found != mark:
            raise DuoGenError(
                f"{folder} holds a run with other inputs, rules or shard sizes; choose another --out, or give the same "
                "ones to go on with it."
            )
        return run
    if folder.exists() and not all(map(_was_begun, folder.iterdir())):
        raise DuoGenError(f"The folder {folder} has something else in it; choose another --out, or empty it first.")
    try:
        for name in FOLDERS:
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DuoGenError(f"The folder {folder} cannot be made ({error.strerror}); choose another --out.") from None
    count, shards = _write_plan(folder / "plan.jsonl", items, size)
    value = {"format": f"duogen-{kind}-run", "version": VERSION, **identity, "details": dict(details)}
    value |= {"items": count, "shards": shards, "digest": mark}
    write_atomically(folder / "run.json", (json.dumps(value, indent=2) + "\n").encode())
    return Run(folder, kind, dict(details), count, shards)


def open_run(folder: Path, kind: str) -> Run:
    return _read(folder, kind)[0]


def _read(folder: Path, kind: str) -> tuple[Run, str]:
    try:
        value = json.loads((folder / "run.json").read_text("utf-8"))
        if value["format"] != f"duogen-{kind}-run" or value["version"] != VERSION:
            raise KeyError("format")
        return Run(folder, kind, value["details"], value["items"], value["shards"]), value["digest"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DuoGenError(f"{folder / 'run.json'} cannot be read ({error}); was it made by `data {kind}`?") from None


def _was_begun(entry: Path) -> bool:
    """Whether this is what a kill leaves of a run that had no plan yet."""
    if entry.name in FOLDERS:
        return entry.is_dir() and next(entry.iterdir(), None) is None
    return entry.name in ("plan.jsonl", "answers.jsonl") or entry.name.endswith(".duogen-tmp")


def _write_plan(file: Path, items: Iterable[Any], size: int) -> tuple[int, int]:
    count = shards = 0
    waiting: list[Any] = []
    temporary = file.with_name(f".{file.name}.duogen-tmp")
    with temporary.open("w", encoding="utf-8") as lines:

        def put() -> None:
            nonlocal count, shards
            lines.write(json.dumps({"shard": shards, "first": count, "items": waiting}) + "\n")
            count, shards = count + len(waiting), shards + 1

        for item in items:
            waiting.append(item)
            if len(waiting) == size:
                put()
                waiting = []
        if waiting:
            put()
    temporary.replace(file)
    return count, shards


def write_shard(run: Run, shard: Shard, fill: Callable[[tarfile.TarFile, Log], Mapping[str, float]]) -> None:
    """The shard's tar, times and, last, its log. fill(archive, log) writes into both and gives the seconds by stage."""
    started, lines = time.perf_counter(), []

    def log(entry: Mapping[str, Any]) -> None:
        lines.append(json.dumps(entry, ensure_ascii=False) + "\n")

    with (
        whole_file(run.file("shards", shard.number)) as stream,
        tarfile.open(fileobj=stream, mode="w") as archive,
    ):
        stages = fill(archive, log)
    times = {"items": len(shard.items), "seconds": time.perf_counter() - started, "stages": dict(stages)}
    with whole_file(run.file("times", shard.number)) as stream:
        stream.write(json.dumps(times).encode())
    with whole_file(run.file("logs", shard.number)) as stream:
        stream.write("".join(lines).encode("utf-8", "replace"))


def work(run: Run, do: Callable[[Shard], Any], workers: int = 1) -> Iterator[Any]:
    """Does the shards that are not done yet; yields what `do` says of each, in the order of the run."""
    for folder in FOLDERS:  # what a killed run left half written
        for file in (run.folder / folder).glob(".*.duogen-tmp"):
            file.unlink(missing_ok=True)
    todo = (shard for shard in run.plan() if not run.is_done(shard.number))
    for _, result in in_order(do, todo, workers):
        yield result
