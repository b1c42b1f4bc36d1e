"""A run's folder, and the loop over its shards, which goes on where the last one stopped.

OUT/run.json          input, preset, models and prompts; another identity is refused
OUT/answers.jsonl     every answer, under the hash of its request (unless --record names another file)
OUT/shards/00000.tar  the Documents of a shard, as webdataset: read them with webdataset:OUT/shards
OUT/logs/00000.jsonl  a line a document, with the rule that refused it; written last, so it stands for a done shard
OUT/times/00000.json  seconds, the only thing that differs between two runs with the same answers

A killed run loses the answers it was waiting for and no other. Shards with documents that failed at the endpoint are
done again by the same command; their other answers are there already. `data stats` counts the logs.
"""

from __future__ import annotations

import itertools
import json
import tarfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duogen_core import __version__
from duogen_core.data.dialogues.engine import ENDPOINT, Engine, Outcome, unread
from duogen_core.data.presets import digest, preset_values
from duogen_core.data.sources import Bad, Source, open_source
from duogen_core.data.synthetic.in_order import in_order
from duogen_core.data.web.shards import add_document
from duogen_core.data.whole_file import whole_file
from duogen_core.errors import DuoGenError
from duogen_core.store import write_atomically

FORMAT, VERSION = "duogen-dialogues-run", 1
PRESETS = Path(__file__).with_name("presets")
SHARD_DOCUMENTS = 64
PICTURES = {"photo_quality": 95}
FOLDERS = ("shards", "logs", "times")


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
class Run:
    folder: Path
    documents: int
    size: int

    @property
    def shards(self) -> int:
        return -(-self.documents // self.size)

    def numbers(self, shard: int) -> range:
        return range(shard * self.size, min((shard + 1) * self.size, self.documents))

    def tar(self, shard: int) -> Path:
        return self.folder / "shards" / f"{shard:05d}.tar"

    def log(self, shard: int) -> Path:
        return self.folder / "logs" / f"{shard:05d}.jsonl"

    def times(self, shard: int) -> Path:
        return self.folder / "times" / f"{shard:05d}.json"

    def is_done(self, shard: int) -> bool:
        """Whether it was written and nothing in it failed for the endpoint's sake, which is worth another attempt."""
        try:
            lines = self.log(shard).read_text("utf-8").splitlines()
        except FileNotFoundError:
            return False
        return all(json.loads(line).get("rule") != ENDPOINT for line in lines)


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
        "duogen": __version__,
    }
    file = folder / "run.json"
    if file.is_file():
        found = _read(file)
        if digest(found) != digest(identity):
            other = ", ".join(name for name in identity if found.get(name) != identity[name])
            raise DuoGenError(f"{folder} holds a run with another {other}; choose another --out, or give the same.")
    elif folder.exists() and any(entry.name not in (*FOLDERS, "answers.jsonl") for entry in folder.iterdir()):
        raise DuoGenError(f"The folder {folder} has something else in it; choose another --out, or empty it first.")
    try:
        for name in FOLDERS:
            (folder / name).mkdir(parents=True, exist_ok=True)
            for left in (folder / name).glob(".*.duogen-tmp"):
                left.unlink(missing_ok=True)
    except OSError as error:
        raise DuoGenError(f"The folder {folder} cannot be made ({error.strerror}); choose another --out.") from None
    value = {"format": FORMAT, "version": VERSION, "items": len(source), "identity": identity}
    write_atomically(file, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())
    return Run(folder, len(source), size)


def _read(file: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(file.read_text("utf-8"))
        if value["format"] != FORMAT or value["version"] != VERSION:
            raise KeyError("format")
        return dict(value["identity"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DuoGenError(f"{file} cannot be read ({error}); was it made by `data dialogues`?") from None


def work(run: Run, source: Source, engine: Engine, threads: int = 1, give_up: int = 8) -> Iterator[Outcome]:
    """Does what is not done yet; yields what became of each document.

    give_up: how many documents in a row may fail because of the endpoint before the run stops with its sentence.
    """
    todo = [shard for shard in range(run.shards) if not run.is_done(shard)]
    numbers = (number for shard in todo for number in run.numbers(shard))
    results = in_order(lambda number: _one(source, engine, number), numbers, threads)
    failed = 0
    for shard in todo:
        started, lines = time.perf_counter(), []
        with whole_file(run.tar(shard)) as stream, tarfile.open(fileobj=stream, mode="w") as archive:
            for number, (named, outcome) in itertools.islice(results, len(run.numbers(shard))):
                failed = failed + 1 if outcome.rule == ENDPOINT else 0
                if failed >= give_up:
                    raise DuoGenError(
                        f"{failed} documents in a row failed at the endpoint, the last with: {outcome.value} Shards "
                        "that are done are whole; the same command goes on."
                    )
                if outcome.document is not None:
                    add_document(archive, f"{number:08d}", outcome.document, PICTURES)
                lines.append(json.dumps({"number": number, **named, **outcome.log()}, ensure_ascii=False))
                yield outcome
        times = {"documents": len(lines), "stages": {"all": time.perf_counter() - started}}
        write_atomically(run.times(shard), json.dumps(times).encode())
        write_atomically(run.log(shard), "".join(f"{line}\n" for line in lines).encode("utf-8", "replace"))


def _one(source: Source, engine: Engine, number: int) -> tuple[dict[str, Any], Outcome]:
    """What the log says of the document first, and what became of it."""
    sample = source.read(number)
    if isinstance(sample, Bad):
        return {"input": sample.label}, unread(sample.sentence)
    meta = sample.document.meta
    named = {"page": str(meta.get("page", "")), "url": str(meta.get("url", "")), "input": source.name}
    title = sample.document.turns[0].text if sample.document.turns else ""
    return {**named, "title": title[:300]}, engine.document(sample.document)
