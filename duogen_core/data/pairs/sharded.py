"""A run cut into shards: its plan is fixed when it begins, and each shard is written whole or not at all.

    run = begin(folder, KIND, identity, items, size, details)
    for result in work(run, do, workers): ...         do(shard) -> figures, by way of `shards.new_shard`

The folder is as `run_folder` says; run.json has identity and details. Workers are threads: what is heavy runs in child
processes, and threads can share one client of a language model.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duogen_core import __version__
from duogen_core.data.runs.folder import (
    FOLDERS,
    RunFolder,
    check_same,
    check_unused,
    make_folders,
    read_plan,
    read_run,
    write_plan,
    write_run,
)
from duogen_core.data.runs.in_order import in_order
from duogen_core.data.runs.presets import digest
from duogen_core.errors import DuoGenError


@dataclass(frozen=True)
class Shard:
    number: int
    first: int  # the number of its first item in the run
    items: tuple[Any, ...]


@dataclass(frozen=True)
class Run(RunFolder):
    """An existing run: where it is, and what its run.json says."""

    kind: str
    details: Mapping[str, Any]
    items: int
    shards: int

    def plan(self) -> Iterator[Shard]:
        def shard(entry: dict[str, Any]) -> Shard:
            return Shard(entry["shard"], entry["first"], tuple(entry["items"]))

        for _, each in read_plan(self.folder, self.shards, shard):
            yield each


def begin(
    folder: Path, kind: str, identity: Mapping[str, Any], items: Iterable[Any], size: int, details: Mapping[str, Any]
) -> Run:
    """The run in this folder: gone on with if it has the same identity, planned otherwise. items: plain JSON values."""
    if size < 1:
        raise DuoGenError(f"A shard has {size} items; expected at least 1.")
    mark = digest({**identity, "kind": kind, "shard_size": size, "duogen": __version__})
    if (folder / "run.json").is_file():
        run, found = _read(folder, kind)
        check_same(folder, found, mark)
        return run
    check_unused(folder, ("plan.jsonl", "answers.jsonl"))
    make_folders(folder, FOLDERS)
    count, shards = write_plan(folder, "items", [({}, items)], size)
    values = {"details": dict(details), "items": count, "shards": shards, "digest": mark}
    write_run(folder, kind, {**identity, **values})
    return Run(folder, kind, dict(details), count, shards)


def open_run(folder: Path, kind: str) -> Run:
    return _read(folder, kind)[0]


def _read(folder: Path, kind: str) -> tuple[Run, str]:
    def run(value: dict[str, Any]) -> tuple[Run, str]:
        return Run(folder, kind, value["details"], value["items"], value["shards"]), value["digest"]

    return read_run(folder, kind, run)


def work(run: Run, do: Callable[[Shard], Any], workers: int = 1) -> Iterator[Any]:
    """Does the shards that are not done yet; yields what `do` says of each, in the order of the run."""
    run.sweep()
    todo = (shard for shard in run.plan() if not run.is_done(shard.number))
    for _, result in in_order(do, todo, workers):
        yield result


WHOLE = -1  # the index of an entry itself, in place of one of its parts


def words_of(run: Run, shard: int, key: str) -> str:
    """What the user says in a stored Document; "" if it is not there."""
    try:
        with tarfile.open(run.tar(shard)) as archive:
            turns = json.loads(archive.extractfile(f"{key}.json").read())["turns"]
        users = (turn["parts"] for turn in turns if turn["role"] == "user")
        return " / ".join(" ".join(part["text"] for part in parts if part["type"] == "text") for parts in users)
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RecursionError, tarfile.TarError):
        return ""
