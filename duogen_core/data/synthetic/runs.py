"""A run that makes documents in shards: its folder, its plan, and the loop that goes on where the last one stopped.

DIR/drawn/     pictures of shards that are not done yet

The rest of the folder is as `run_folder` says.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from duogen_core.data.runs.folder import (
    FOLDERS,
    RunFolder,
    begin_run,
    make_folders,
)
from duogen_core.data.runs.shards import new_shard
from duogen_core.data.synthetic.requests import Verdict
from duogen_core.document import Document, Picture
from duogen_core.errors import DuoGenError

Item = TypeVar("Item")
SHARD = 16  # documents
GIVE_UP = 3  # documents in a row that fail before the run stops


@dataclass
class Outcome:
    """What became of an entry: a document, or the rule that refused it. failed: by a machine, not by its content."""

    verdict: Verdict
    document: Document | None = None
    about: Mapping[str, Any] = field(default_factory=dict)  # further fields of the log
    pictures: Sequence[Mapping[str, Any]] = ()
    failed: bool = False
    seconds: Counter[str] = field(default_factory=Counter)

    def log(self, number: int) -> dict[str, Any]:
        words = len(self.document.text.split()) if self.document else 0
        kept = {"words": words, "removed": {}} if self.document else {}
        return {"number": number, **self.about, **self.verdict.log(), **kept, "pictures": list(self.pictures)}


@dataclass(frozen=True)
class Run(RunFolder):
    count: int  # documents that are to be made
    shards: int
    size: int

    def entries(self, shard: int) -> range:
        return range(shard * self.size, min((shard + 1) * self.size, self.count))

    def chosen(self, part: tuple[int, int]) -> list[int]:
        """The shards of part k of n that are not done."""
        return [shard for shard in range(part[0] - 1, self.shards, part[1]) if not self.is_done(shard)]


def begin(folder: Path, count: int, size: int, identity: Mapping[str, Any]) -> Run:
    if size < 1:
        raise DuoGenError(f"A shard has {size} documents; expected at least 1.")
    if not count:
        raise DuoGenError("There is nothing to do: no request is there, or no answer was kept.")
    shards = -(-count // size)
    begin_run(folder, "synthetic", {**identity, "shard": size}, {"entries": count, "shards": shards})
    make_folders(folder, (*FOLDERS, "drawn"))
    return Run(folder, count, shards, size)


def work(
    run: Run,
    items: Sequence[Item],
    make: Callable[[Item], Outcome],
    whole: Callable[[Sequence[Item]], None] = lambda _: None,
    part: tuple[int, int] = (1, 1),
    give_up: int = GIVE_UP,
) -> Iterator[Outcome]:
    """Makes the documents of the shards that are not done; `whole` is told the items of each that is.

    Leaving the loop leaves whole shards, and the drawn pictures of the one that was begun.
    """
    failed = 0
    for shard in run.chosen(part):
        run.sweep(shard)  # other ones may be another process's
        with new_shard(run, shard, "pages") as new:
            for number in run.entries(shard):
                outcome = make(items[number])
                failed = failed + 1 if outcome.failed else 0
                if failed == give_up:
                    raise DuoGenError(f"{give_up} documents in a row failed: {outcome.verdict.value}")
                new.log(outcome.log(number))
                new.seconds.update(outcome.seconds)
                if outcome.document is not None:
                    begun = time.perf_counter()
                    new.add(f"{number:08d}", outcome.document, _png)
                    new.seconds["write"] += time.perf_counter() - begun
                yield outcome
        whole([items[number] for number in run.entries(shard)])


def _png(picture: Picture) -> tuple[bytes, str]:
    return picture.to_png(), "png"
