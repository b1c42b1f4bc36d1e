"""A run's folder, and the loop over its shards, which goes on where the last one stopped.

OUT/answers.jsonl     every answer, under the hash of its request (unless --record names another file)

The rest of the folder is as `run_folder` says. A killed run loses the answers it was waiting for and no other. Shards
with documents that failed at the endpoint are done again by the same command; their other answers are there already.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duogen_core.data.dialogues.engine import (
    ENDPOINT,
    Engine,
    Outcome,
    unread,
)
from duogen_core.data.runs.folder import (
    FOLDERS,
    RunFolder,
    begin_run,
    check_unused,
    make_folders,
)
from duogen_core.data.runs.in_order import in_order
from duogen_core.data.runs.log import json_lines
from duogen_core.data.runs.presets import preset_values
from duogen_core.data.runs.shards import new_shard, photos_as_jpeg
from duogen_core.data.sources import Bad, Source, open_source
from duogen_core.errors import DuoGenError

PRESETS = Path(__file__).with_name("presets")
SHARD_DOCUMENTS = 64
PHOTO_QUALITY = 95


def load_preset(name: str = "howto", settings: tuple[str, ...] | list[str] = ()) -> dict[str, dict[str, Any]]:
    return preset_values(PRESETS, "howto", name, settings)


def open_input(text: str) -> Source:
    """The folder of a run of `data web`, or any source such as webdataset:FILES."""
    folder = Path(text)
    if folder.is_dir():
        if not (folder / "shards").is_dir():
            raise DuoGenError(f"{text} holds no shards; give the --out of `data web`, or a source like documents:DIR.")
        text = f"webdataset:{folder / 'shards'}"
    source = open_source(text)
    if source.endless:
        raise DuoGenError(f"{text} has no end; give documents that were made.")
    return source


@dataclass(frozen=True)
class Run(RunFolder):
    documents: int
    size: int

    @property
    def shards(self) -> int:
        return -(-self.documents // self.size)

    def numbers(self, shard: int) -> range:
        return range(shard * self.size, min((shard + 1) * self.size, self.documents))

    def is_done(self, shard: int) -> bool:
        """Whether it was written and nothing in it failed for the endpoint's sake, which is worth another attempt."""
        if not super().is_done(shard):
            return False
        try:
            return all(entry.get("rule") != ENDPOINT for entry in json_lines(self.log(shard)))
        except DuoGenError:  # a line that is no entry
            return False


def begin(folder: Path, source: Source, engine: Engine, size: int = SHARD_DOCUMENTS) -> Run:
    """The run in this folder: gone on with if it is there with the same input, preset, models and prompts."""
    if size < 1:
        raise DuoGenError(f"A shard has {size} documents; expected at least 1.")
    identity = {
        "input": source.identity(),
        "preset": engine.preset,
        "writer": engine.writer.endpoint.model,
        "eyes": engine.eyes.endpoint.model,
        "prompts": engine.prompts,
        "shard_documents": size,
    }
    if not (folder / "run.json").exists():
        check_unused(folder, ("answers.jsonl",))
    begin_run(folder, "dialogues", identity, {"items": len(source)})
    make_folders(folder, FOLDERS)
    run = Run(folder, len(source), size)
    run.sweep()
    return run


def work(run: Run, source: Source, engine: Engine, threads: int = 1, give_up: int = 8) -> Iterator[Outcome]:
    """Does what is not done yet; yields what became of each document.

    give_up: how many documents in a row may fail because of the endpoint before the run stops with its sentence.
    """
    todo = [shard for shard in range(run.shards) if not run.is_done(shard)]
    numbers = (number for shard in todo for number in run.numbers(shard))
    results = in_order(lambda number: _one(source, engine, number), numbers, threads)
    failed, encode = 0, photos_as_jpeg(PHOTO_QUALITY)
    for shard in todo:
        started = time.perf_counter()
        with new_shard(run, shard, "documents") as new:
            for number, (named, outcome) in itertools.islice(results, len(run.numbers(shard))):
                failed = failed + 1 if outcome.rule == ENDPOINT else 0
                if failed >= give_up:
                    raise DuoGenError(
                        f"{failed} documents in a row failed at the endpoint, the last with: {outcome.value} Shards "
                        "that are done are whole; the same command goes on."
                    )
                if outcome.document is not None:
                    new.add(f"{number:08d}", outcome.document, encode)
                new.log({"number": number, **named, **outcome.log()})
                yield outcome
            new.seconds["all"] = time.perf_counter() - started


def _one(source: Source, engine: Engine, number: int) -> tuple[dict[str, Any], Outcome]:
    """What the log says of the document first, and what became of it."""
    sample = source.read(number)
    if isinstance(sample, Bad):
        return {"input": sample.label}, unread(sample.sentence)
    meta = sample.document.meta
    named = {"page": str(meta.get("page", "")), "url": str(meta.get("url", "")), "input": source.name}
    title = sample.document.turns[0].text if sample.document.turns else ""
    return {**named, "title": title[:300]}, engine.document(sample.document)
