"""A run that makes documents in shards: its folder, its plan, and the loop that goes on where the last one stopped.

DIR/run.json            what it was begun with; another identity is refused
DIR/shards/00000.tar    the documents of a shard, as webdataset: read them with webdataset:DIR/shards
DIR/logs/00000.jsonl    a line an entry with the rule that refused it; written last, so it stands for a done shard
DIR/times/00000.json    seconds by stage, the only thing that differs between two runs
DIR/drawn/              pictures of shards that are not done yet

`data stats` counts the logs.
"""

from __future__ import annotations

import io
import json
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from duogen_core.data.synthetic.folder import begin_step
from duogen_core.data.synthetic.verdict import Verdict
from duogen_core.data.whole_file import whole_file
from duogen_core.document import Document
from duogen_core.errors import DuoGenError
from duogen_core.store import document_json, write_atomically

Item = TypeVar("Item")
FORMAT = "duogen-synthetic-run"
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
class Run:
    folder: Path
    count: int  # documents that are to be made
    shards: int
    size: int

    def documents(self, shard: int) -> Path:
        return self.folder / "shards" / f"{shard:05d}.tar"

    def log(self, shard: int) -> Path:
        return self.folder / "logs" / f"{shard:05d}.jsonl"

    def times(self, shard: int) -> Path:
        return self.folder / "times" / f"{shard:05d}.json"

    def is_done(self, shard: int) -> bool:
        return self.log(shard).is_file()

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
    begin_step(folder, FORMAT, {**identity, "shard": size}, {"entries": count, "shards": shards})
    for name in ("shards", "logs", "times", "drawn"):
        (folder / name).mkdir(exist_ok=True)
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
        started = time.perf_counter()
        _sweep(run, shard)
        lines: list[str] = []
        seconds: Counter[str] = Counter()
        with whole_file(run.documents(shard)) as stream, tarfile.open(fileobj=stream, mode="w") as archive:
            for number in run.entries(shard):
                outcome = make(items[number])
                failed = failed + 1 if outcome.failed else 0
                if failed == give_up:
                    raise DuoGenError(f"{give_up} documents in a row failed: {outcome.verdict.value}")
                lines.append(json.dumps(outcome.log(number), ensure_ascii=False) + "\n")
                seconds.update(outcome.seconds)
                if outcome.document is not None:
                    begun = time.perf_counter()
                    _add(archive, f"{number:08d}", outcome.document)
                    seconds["write"] += time.perf_counter() - begun
                yield outcome
        times = {"pages": len(run.entries(shard)), "seconds": time.perf_counter() - started, "stages": dict(seconds)}
        write_atomically(run.times(shard), json.dumps(times).encode())
        write_atomically(run.log(shard), "".join(lines).encode("utf-8", "replace"))
        whole([items[number] for number in run.entries(shard)])


def _sweep(run: Run, shard: int) -> None:
    """Removes what a killed run left half written of this shard; other ones may be another process's."""
    for file in (run.documents(shard), run.log(shard), run.times(shard)):
        for half in file.parent.glob(f".{file.name}*.duogen-tmp"):
            half.unlink(missing_ok=True)


def _add(archive: tarfile.TarFile, key: str, document: Document) -> None:
    """One sample: key.json, key.000.png, …"""
    names = [f"{index:03d}.png" for index in range(len(document.pictures))]
    value = json.dumps(document_json(document, names), ensure_ascii=False, allow_nan=False).encode("utf-8")
    for name, data in [("json", value), *((name, each.to_png()) for name, each in zip(names, document.pictures))]:
        info = tarfile.TarInfo(f"{key}.{name}")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
