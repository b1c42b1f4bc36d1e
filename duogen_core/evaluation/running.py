"""A benchmark's requests through a model, as a run of shards; submissions out of it and into it.

    RunEngine      each request -> the Document of the model's answer (`models`)
    ImportEngine   each answer of somebody's submission -> the same
    answered(…)    what such a run, or any documents of the user's, hold -> (item, Document) pairs
    export(…)      those pairs -> the official layout, whole or not at all

A run goes on where it was stopped, with the same bytes (`duogen_core.data.runs`). A document knows which request it
answers: its meta has {"benchmark", "id", "category"}.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from duogen_core.data.runs import Engine, Outcome
from duogen_core.data.runs.presets import digest
from duogen_core.data.runs.run import open_run
from duogen_core.data.sources.tars import WebDataset
from duogen_core.data.synthetic.painter import PainterError
from duogen_core.document import Document, Picture
from duogen_core.document.reading import JSON_NAME, load_document
from duogen_core.errors import DuoGenError, shown
from duogen_core.evaluation.benchmarks import Answered, Benchmark, Item, benchmark
from duogen_core.evaluation.benchmarks.reading import begins_with
from duogen_core.evaluation.models import Model
from duogen_core.evaluation.results import MAX_ID, MAX_NAME
from duogen_core.files import TEMPORARY, discard, read_json, swap_folders, write_atomically, write_errors

KIND = "benchmark"
FAILED = "answer_failed"  # the rule of an item that the model raised an error for: it is asked again next time
SHARD = 8


class BenchmarkEngine(Engine):
    """Items are numbers of requests, in the order of the file; what `do` gets is read in a second pass through it,
    so that the pictures of few requests are in memory at once."""

    kind, size_name, things = KIND, "shard", "requests"
    tried_again = (FAILED,)

    def __init__(self, name: str, file: Path, limit: int | None = None) -> None:
        self.name, self.file, self.limit = name, file, limit

    @cached_property
    def bench(self) -> Benchmark:
        return benchmark(self.name)

    @cached_property
    def about(self) -> list[tuple[str, str]]:
        """(id, digest) of every request of the run."""
        return [entry for _, entry in self._chosen((item.id, item_digest(item)) for item in self.all_items())]

    def all_items(self) -> Iterator[Item]:
        return checked_items(self.bench, self.file)

    def _chosen(self, entries: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """All of them, or as many as the limit says, spread over the file: requests stand there by category."""
        if self.limit is None:
            return enumerate(entries)
        entries = list(entries)
        numbers = spread(len(entries), self.limit)
        return enumerate(entries[number] for number in numbers)

    def identity(self) -> dict[str, Any]:
        return {"benchmark": self.name, "requests": digest(self.about)}

    def details(self) -> dict[str, Any]:
        return {"benchmark": self.name, "file": self.file.name}

    def items(self) -> range:
        return range(len(self.about))

    def chosen_items(self) -> Iterator[Item]:
        """The requests of the run, one at a time."""
        chosen = {id_ for id_, _ in self.about}
        return (item for item in self.all_items() if item.id in chosen)

    def encode(self, picture: Picture) -> tuple[bytes, str]:
        return picture.to_png(), "png"

    def outcome(self, item: Item, document: Document, seconds: float) -> Outcome:
        """The document as it is kept, and its line in the log."""
        marks = {"benchmark": self.name, "id": item.id, "category": item.category}
        document = replace(document, meta={**document.meta, **marks})
        pictures = [
            {"class": "drawn", "size": list(one.size), "digest": one.digest[:16]} for one in item.pictures(document)
        ]
        entry = {
            "id": item.id, "category": item.category, "kept": True, "words": len(item.text(document).split()),
            "pictures": pictures, "stop": str(document.generation.get("stop_reason", "")),
        }  # fmt: skip
        return Outcome(entry, [("", document)], seconds=Counter(answer=seconds))


class RunEngine(BenchmarkEngine):
    """open_model: makes the model under test, in whichever process answers. seed: of the run; every request has its
    own, made of it and of the request's id, so that it does not depend on which other requests are asked. about: what
    else its answers depend on, such as the precision that it is run in."""

    keeps_lock = True  # drawing computes: several workers are processes, each with the model

    def __init__(
        self, name: str, file: Path, open_model: Callable[[], Model], seed: int = 0, limit: int | None = None,
        uses_gpu: bool = True, about: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(name, file, limit)
        self.open_model, self.seed, self.uses_gpu, self.about_model = open_model, seed, uses_gpu, dict(about or {})

    @cached_property
    def model(self) -> Model:
        return self.open_model()

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "seed": self.seed, **self.model.identity(), **self.about_model}

    def details(self) -> dict[str, Any]:
        return {**super().details(), "model": self.model.name}

    @cached_property
    def forward(self) -> Forward:
        return Forward(self.chosen_items)

    def read(self, items: Iterable[int]) -> Iterator[Item]:
        return self.forward.read(items)

    def do(self, item: Item) -> Outcome:
        begun = time.perf_counter()
        try:
            document = self.model.answer(item, seed_of(self.seed, item.id))
        except PainterError as error:
            if error.stop:
                raise
            return self._failed(item, error)
        except DuoGenError as error:
            return self._failed(item, error)
        return self.outcome(item, document, time.perf_counter() - begun)

    def _failed(self, item: Item, error: DuoGenError) -> Outcome:
        said = str(error)[:400]
        entry = {"id": item.id, "category": item.category, "kept": False, "rule": FAILED, "value": said}
        return Outcome(entry, failed=said)


class ImportEngine(BenchmarkEngine):
    """submission: the folder or main file in the official layout. Requests without an answer there are left out."""

    def __init__(self, name: str, file: Path, submission: Path, model: str) -> None:
        super().__init__(name, file)
        self.submission, self.model = submission, model

    @cached_property
    def about(self) -> list[tuple[str, str]]:
        items = list(self.all_items())
        found = [(item.id, item_digest(item, document)) for item, document in self.bench.read(self.submission, items)]
        if not found:  # where images are found by their place, another folder has none of them
            raise DuoGenError(f"{self.submission} answers none of the requests of {self.file}; check both paths.")
        return found

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "model": self.model}

    def details(self) -> dict[str, Any]:
        """in_order: whether the submission has its answers in the order of the requests (`answered`)."""
        place = {item.id: number for number, item in enumerate(self.all_items())}
        numbers = [place[id_] for id_, _ in self.about]
        return {**super().details(), "model": self.model, "in_order": numbers == sorted(numbers)}

    def read(self, items: Iterable[int]) -> Iterator[Answered]:
        return Forward(lambda: self.bench.read(self.submission, list(self.all_items()))).read(items)

    def do(self, answer: Answered) -> Outcome:
        item, document = answer
        return self.outcome(item, document, 0.0)


def checked_items(bench: Benchmark, file: Path) -> Iterator[Item]:
    """The requests of a file, none of them twice; a file without any is an error."""
    seen: set[str] = set()
    for item in bench.items(file):
        if item.id in seen:
            raise DuoGenError(
                f"{file} has two requests with the id {shown(item.id[:80])!r}; every id must be there once."
            )
        if len(item.id) > MAX_ID or len(item.category) > MAX_NAME:  # no file of results could hold it
            what = f"id {shown(item.id[:40])!r}" if len(item.id) > MAX_ID else f"category {shown(item.category[:40])!r}"
            raise DuoGenError(
                f"{file}: the {what} … of a request is too long; expected {MAX_ID} and {MAX_NAME} characters at most."
            )
        seen.add(item.id)
        yield item
    if not seen:
        raise DuoGenError(f"{file} has no requests.")


def spread(count: int, limit: int) -> list[int]:
    """`limit` numbers below `count`, at even distances."""
    limit = min(limit, count)
    return [k * count // limit for k in range(limit)]


class Forward:
    """The values of an iterator by their number; one that lies behind opens it anew.

    A process is given one shard after the other: it must not read a file from its beginning for each of them."""

    def __init__(self, opened: Callable[[], Iterable[Any]]) -> None:
        self.opened, self.values, self.next = opened, iter(()), 0

    def read(self, numbers: Iterable[int]) -> Iterator[Any]:
        for number in numbers:
            if number < self.next or self.next == 0:
                self.values, self.next = iter(self.opened()), 0
            for value in self.values:
                self.next += 1
                if self.next == number + 1:
                    yield value
                    break
            else:
                self.next = 0
                raise DuoGenError("A file that this run reads has become shorter while it was read; begin it again.")


def seed_of(seed: int, id_: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {id_}".encode()).digest()[:4], "big")


def item_digest(item: Item, document: Document | None = None) -> str:
    """Of the words and pictures that are asked, or of those of an answer that is there."""
    turns = [turn.parts for turn in (document or item.prompt).turns]
    parts = itertools.chain(*turns, *item.later)
    said = [part.digest if isinstance(part, Picture) else part.text for part in parts]
    return digest([item.id, [item.due(turn) for turn in range(1 + len(item.later))], said])


# ------------------------------------------------------------ answers that are there


def answered(place: Path, bench: Benchmark, items: Iterable[Item]) -> Iterator[Answered]:
    """Yields the answers of a run, of a folder of documents, or of one document (a folder or a .zip).

    A document says in its meta which request it answers; one that does not has the request's id as its name. Answers
    of a run stand in the order of the requests (of `evaluate import`: if those of the submission do), so that only the
    pictures of one request need be in memory.
    """
    known: dict[str, Item] = {}
    more = iter(items)
    in_its_order = is_run(place) and (open_run(place, KIND).details or {}).get("in_order", True)
    given: dict[str, str] = {}
    for name, document in documents_of(place):
        of = document.meta.get("benchmark")
        if of is not None and of != bench.name:
            raise DuoGenError(f"{name} answers a request of {shown(str(of)[:40])}, not of {bench.name}.")
        wanted = request_of(document.meta, Path(name))
        item = known.get(wanted)
        while item is None and (found := next(more, None)) is not None:
            if found.id == wanted:
                item = found
            if not in_its_order:
                known[found.id] = found
        if item is None and wanted in given:
            raise DuoGenError(f"{name} and {given[wanted]} both answer {shown(wanted[:80])!r}; leave one of them out.")
        if item is None:
            raise DuoGenError(
                f"{name} answers {shown(wanted[:80])!r}, which no request has; a document says in meta.benchmark and "
                "meta.id which request it answers, or has the request's id as its name."
            )
        if wanted in given:
            raise DuoGenError(f"{name} and {given[wanted]} both answer {shown(wanted[:80])!r}; leave one of them out.")
        given[wanted] = name
        if of is not None and not begins_with(document, item.prompt):
            raise DuoGenError(
                f"{name} answers a request {shown(wanted[:80])!r} with other words or images than this file has; give "
                "the file of requests that the run was made with."
            )
        if document.turns[: len(item.prompt.turns)] != item.prompt.turns:
            document = _asked_here(item, document, name)
        yield item, document


def _asked_here(item: Item, document: Document, name: str) -> Document:
    """The answer of a document whose request has other words (perhaps as a template framed it)."""
    before = sum(turn.role == "assistant" for turn in item.prompt.turns)
    replies = [turn for turn in document.turns if turn.role == "assistant"][before:]
    if len(replies) != 1 + len(item.later):
        raise DuoGenError(
            f"{name} has {len(replies)} answers, and {item.id!r} asks {1 + len(item.later)}; it is another request."
        )
    made = item.prompt
    for number, turn in enumerate(replies):
        made = made.begin_turn("assistant", turn.parts)
        if number < len(item.later):
            made = made.begin_turn("user", item.later[number])
    return replace(made, meta=document.meta, generation=document.generation)


def is_run(place: Path) -> bool:
    return (place / "shards").is_dir() and (place / "run.json").is_file()


def documents_of(place: Path) -> Iterator[tuple[str, Document]]:
    """Yields (where, document) of whatever holds answers."""
    if is_run(place):
        source = WebDataset(str(place / "shards"))
        for index in range(len(source)):
            yield source.label(index), source.load(index)
    else:
        for one in document_places(place):
            yield str(one), load_document(one)


def document_places(place: Path) -> list[Path]:
    """The documents of a folder (folders and .zip files), or the one that the place is."""
    if (place / JSON_NAME).is_file() or place.is_file():
        return [place]
    if not place.is_dir():
        raise DuoGenError(f"{place} does not exist; expected a run of `evaluate run`, or documents.")
    found = sorted(one for one in place.iterdir() if (one / JSON_NAME).is_file() or one.suffix == ".zip")
    if not found:
        raise DuoGenError(f"{place} holds no document and no run of `evaluate run`; check the path.")
    return found


def request_of(meta: Mapping[str, Any], place: Path) -> str:
    """The id of the request that a document answers: its meta says it, or the name of its folder or .zip."""
    if meta.get("benchmark") is not None:
        return str(meta.get("id"))
    if place.name == JSON_NAME:
        place = place.absolute().parent
    return place.stem if place.suffix == ".zip" and not place.is_dir() else place.absolute().name


def export(bench: Benchmark, answers: Iterable[Answered], out: Path, model: str, *, replaced: bool = False) -> Path:
    """Writes the submission to `out` and returns what the scorer is given.

    replaced: what an earlier call wrote there gives way, once the new one is whole, and what others have put there
    since stays (a scorer's results may have cost money); otherwise `out` is not there yet, or empty."""
    if out.name in ("", ".."):
        raise DuoGenError(f"--out {shown(str(out))} must be the name of a new folder.")
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not replaced)):
        raise DuoGenError(f"{out} is there already; choose another --out, so that nothing of yours is overwritten.")
    new, old = (out.with_name(f".{out.name}.{secrets.token_hex(4)}.{kind}{TEMPORARY}") for kind in ("new", "old"))
    try:
        with write_errors(out):
            new.mkdir(parents=True)
            main = bench.export(answers, new, model)
            if replaced:
                ours = sorted(name for name, _ in _files_in(new))
                _keep_others(out, new)
            swap_folders(new, out, old)
            if replaced:
                write_atomically(_written(out), (json.dumps(ours, indent=0) + "\n").encode())
    finally:
        discard(new)
        discard(old)
    return out / main.relative_to(new)


def _written(out: Path) -> Path:
    """Where the names of the submission's files stand, so that those of others can be told from them."""
    return out.with_name(f"{out.name}.files.json")


def _files_in(folder: Path) -> Iterator[tuple[str, Path]]:
    return ((file.relative_to(folder).as_posix(), file) for file in folder.rglob("*") if file.is_file())


def _keep_others(out: Path, new: Path) -> None:
    """Copies what others have put into a submission to the one that takes its place."""
    names = read_json(_written(out), "list of files") if _written(out).exists() else []
    ours = {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()
    for name, file in _files_in(out) if out.is_dir() else ():
        if name not in ours and not (new / name).exists():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, new / name)
