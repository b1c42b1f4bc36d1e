"""The answers of one model, by the ids of their requests: of a run, of a file of results, of a folder of documents.

    mine, theirs = open_answers(Path("runs/mine")), open_answers(Path("runs/theirs/results-judge.json"))
    for id in shared_ids(mine, theirs): pair_of(mine, theirs, id)

Answers are read one at a time, when they are asked for. A pair has the request that both answer, and what each model
gave; answers to two different requests under one id are a sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duogen_core.document import Document, Part, Turn
from duogen_core.document.reading import JSON_NAME, load_document
from duogen_core.errors import DuoGenError, shown
from duogen_core.evaluation.benchmarks.reading import alike
from duogen_core.evaluation.results import MAX_NAME, Case, Results, read_results
from duogen_core.evaluation.running import KIND, document_places, is_run, request_of
from duogen_core.files import read_json


@dataclass(frozen=True)
class AnswerSet:
    """name: the model's, for people. ids: in the order of the requests. categories: of those ids that have one."""

    name: str
    benchmark: str
    ids: Sequence[str]
    categories: Mapping[str, str]
    load: Callable[[str], Document]


@dataclass(frozen=True)
class Pair:
    """Two models' answers to one request. request: turns that both begin with, a user's the last of them."""

    id: str
    category: str
    request: tuple[Turn, ...]
    first: tuple[Turn, ...]
    second: tuple[Turn, ...]

    @property
    def same(self) -> bool:
        return len(self.first) == len(self.second) and all(map(alike, self.first, self.second))


def open_answers(place: Path, name: str = "") -> AnswerSet:
    """name: what the model is called, in place of what the answers say."""
    if place.is_file() and place.suffix == ".json" and place.name != JSON_NAME:
        return of_results(read_results(place), name)
    if is_run(place):
        model, benchmark, documents, categories = about_run(place)
        cases = {id: Case(id, "", {}, document=document) for id, document in documents.items()}
        run = Results(benchmark, model, "", {}, (), folder=place)
        return AnswerSet(name or model, benchmark, list(cases), categories, lambda id: run.document(cases[id]))
    if place.is_dir():
        return _of_folder(place, name)
    raise DuoGenError(
        f"{shown(str(place))} holds no answers; expected a run of `evaluate run`, a file of results, or a folder of "
        "documents."
    )


def of_results(results: Results, name: str = "") -> AnswerSet:
    cases = {case.id: case for case in results.cases if case.document is not None}
    if not cases:
        raise DuoGenError(f"The results of {results.model} do not say where its answers lie; give its run instead.")
    categories = {id: case.category for id, case in cases.items() if case.category}
    return AnswerSet(
        name or results.model, results.benchmark, list(cases), categories, lambda id: results.document(cases[id])
    )


def about_run(place: Path) -> tuple[str, str, dict[str, str], dict[str, str]]:
    """Returns of a run: its model, its benchmark, where each answer lies in it by id, and the categories."""
    from duogen_core.data.runs.log import rule_of
    from duogen_core.data.runs.run import open_run

    run = open_run(place, KIND)
    documents: dict[str, str] = {}
    categories: dict[str, str] = {}
    for shard in range(run.shards):
        tar = run.tar(shard).relative_to(place).as_posix()
        for entry in run.entries_of([shard]) if run.log(shard).exists() else ():
            if not rule_of(entry):
                documents[str(entry["id"])] = f"{tar}#{entry['number']:08d}"
                categories |= {str(entry["id"]): str(entry["category"])} if entry.get("category") else {}
    details = run.details or {}
    return str(details.get("model") or "model")[:MAX_NAME], str(details.get("benchmark", "")), documents, categories


def without_answer(place: Path) -> int:
    """How many requests of a run its model failed at: they are in no mean, which would rise with every one of them."""
    from duogen_core.data.runs.log import rule_of
    from duogen_core.data.runs.run import open_run

    run = open_run(place, KIND)
    done = (shard for shard in range(run.shards) if run.log(shard).exists())
    return sum(bool(rule_of(entry)) for entry in run.entries_of(done))


def _of_folder(place: Path, name: str) -> AnswerSet:
    """Documents, which say in their meta which request they answer, or have its id as their name."""
    places: dict[str, Path] = {}
    categories: dict[str, str] = {}
    benchmark = ""
    for one in document_places(place):
        meta: Mapping[str, Any] = {}
        if one.is_dir():
            value = read_json(one / JSON_NAME, "document")
            found = value.get("meta") if isinstance(value, dict) else None
            meta = found if isinstance(found, dict) else {}
        else:
            meta = load_document(one).meta
        id = request_of(meta, one)
        benchmark = benchmark or str(meta.get("benchmark") or "")
        if meta.get("category"):
            categories[id] = str(meta["category"])
        if id in places:
            raise DuoGenError(f"{one} and {places[id]} both answer {shown(id[:80])!r}; leave one of them out.")
        places[id] = one
    return AnswerSet(
        name or place.resolve().name, benchmark, list(places), categories, lambda id: load_document(places[id])
    )


def shared_ids(first: AnswerSet, second: AnswerSet) -> list[str]:
    """The requests that both answer, in the order of the first; none at all is an error."""
    if first.benchmark and second.benchmark and first.benchmark != second.benchmark:
        raise DuoGenError(
            f"The answers of {first.name} are to {first.benchmark}, those of {second.name} to {second.benchmark}; "
            "expected answers to the same requests."
        )
    theirs = set(second.ids)
    found = [id for id in first.ids if id in theirs]
    if not found:
        raise DuoGenError(f"{first.name} and {second.name} have no request in common.")
    return found


def pair_of(first: AnswerSet, second: AnswerSet, id: str) -> Pair:
    one, other = (side.load(id).turns for side in (first, second))
    count = 0
    for mine, theirs in zip(one, other):
        if not alike(mine, theirs):
            break
        count += 1
    asked = count
    while asked and (one[asked - 1].role != "user" or asked in (len(one), len(other))):
        asked -= 1
    if not asked:
        raise DuoGenError(
            f"{first.name} and {second.name} answer different requests under the id {shown(id[:80])!r}; expected "
            "answers to the same one."
        )
    category = first.categories.get(id) or second.categories.get(id, "")
    return Pair(id, category, one[:asked], one[asked:], other[asked:])


def parts_of(turns: Sequence[Turn]) -> list[Part]:
    return [part for turn in turns for part in turn.parts]
