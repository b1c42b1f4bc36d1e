"""The field's benchmarks: one file each behind one contract, in the official formats both ways.

A **benchmark** reads the official requests, writes what a model answered in the official layout of a submission, reads
such a submission back, and reads what the official scorer says of it. It is a subclass of `Benchmark` and gives

    name, title, source    on the command line; for people; where its requests and its scorer are, and their licence
    metrics                what an answer is scored by, each with the official scale
    items(file)            the official requests -> every `Item`, in the order of the file
    export(answers, …)     (item, Document) pairs -> the official layout: what the scorer reads without an error, with
                           no item left out, whatever the model did (an answer without an image is one, too)
    read(place, items)     the official layout -> (item, Document) pairs, whoever wrote it
    results(file, items)   the official scorer's file -> a `Score` for each item that it has scored
    asks(item, document)   what a judge of ours is asked of an answer: our wording, the official fields and scale
    score(item, …)         what it said, and what can be checked without one -> a `Score`
    summary(scores)        the official sums: the scorer's own figures, from its own scores

Everything that comes in is hostile: requests, submissions and results are read strictly, a `DuoGenError` says in one
sentence which file and item is wrong and what was expected, and no name in them leaves the folder.
What a user sees of all of them at once is docs/evaluation.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from duogen_core.document import Document, Part, Picture
from duogen_core.errors import DuoGenError

NAMES = (
    "ueval", "opening", "isg", "comm", "interleavedbench", "mmie", "geneval", "geneval2", "imgedit", "gedit", "weave",
    "unimmmu", "realunify", "howto",
)  # fmt: skip


@dataclass(frozen=True)
class Item:
    """One request.

    id: the official one, as text; no two items of a file have the same. prompt: what the model gets; it ends with the
    user's turn. record: the official entry as it was read, for what the submission needs of it. category: the official
    group, for tables. images: how many the answer must have; None where that is up to the model.
    later: further turns of the user, each asked when the one before is answered. images_later: how many each of their
    answers must have, where they differ from the first (`due` says it for every turn).
    """

    id: str
    prompt: Document
    record: Mapping[str, Any] = field(default_factory=dict)
    category: str = ""
    images: int | None = None
    later: tuple[tuple[Part, ...], ...] = ()
    images_later: tuple[int | None, ...] = ()

    def due(self, turn: int) -> int | None:
        """How many images the answer to this turn must have, the first being 0; None where that is up to the model."""
        return self.images_later[turn - 1] if turn and self.images_later else self.images

    def replies(self, document: Document) -> list[tuple[Part, ...]]:
        """The parts of each turn that the model gave after the prompt, the answer to it first."""
        turns = document.turns[len(self.prompt.turns) :]
        return [turn.parts for turn in turns if turn.role == "assistant"]

    def parts(self, document: Document) -> list[Part]:
        """All that the model gave: texts and pictures in their order."""
        return [part for reply in self.replies(document) for part in reply]

    def pictures(self, document: Document) -> list[Picture]:
        return [part for part in self.parts(document) if isinstance(part, Picture)]

    def text(self, document: Document) -> str:
        """The texts of the answer alone, as `joined` makes one of them."""
        return joined(self.parts(document))

    def conversation(self, replies: Sequence[Sequence[Part]]) -> Document:
        """The prompt with a reply for each turn of the user, later ones between them; one that is missing is empty."""
        document = self.prompt
        for turn in range(1 + len(self.later)):
            document = document.begin_turn("assistant", replies[turn] if turn < len(replies) else ())
            if turn < len(self.later):
                document = document.begin_turn("user", self.later[turn])
        return document


def joined(parts: Iterable[Part]) -> str:
    """The texts alone, a blank line where a picture stands between two of them."""
    texts = [""]
    for part in parts:
        if isinstance(part, Picture):
            texts.append("")
        else:
            texts[-1] += part.text
    return "\n\n".join(text.strip() for text in texts if text.strip())


Answered = tuple[Item, Document]


@dataclass(frozen=True)
class Metric:
    """What an answer is scored by. by: "judge" asks a model that sees, "check" needs none. lower: less is better."""

    low: float
    high: float
    says: str
    by: str = "judge"
    lower: bool = False


@dataclass(frozen=True)
class Ask:
    """One question to a judge about one answer.

    key: which, within the item. prompt: a prompt of ours (`llm.messages`), with places for `data`; pictures: what it
    shows, each after a line that says which one it is. schema: the JSON Schema of the reply, on the official scale.
    """

    key: str
    prompt: str
    data: Mapping[str, str]
    schema: Mapping[str, Any]
    pictures: tuple[tuple[str, Picture], ...] = ()
    max_tokens: int = 1000


@dataclass(frozen=True)
class Score:
    """values: by the names of `Benchmark.metrics`, on the official scale; None where it does not apply (that is left
    out of every mean, and counted). reasons: what the judge said, by metric. detail: anything that `summary` needs."""

    id: str
    category: str
    values: Mapping[str, float | None]
    reasons: Mapping[str, str] = field(default_factory=dict)
    detail: Mapping[str, Any] = field(default_factory=dict)


class Benchmark(ABC):
    name: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str]
    metrics: ClassVar[Mapping[str, Metric]]
    OURS: ClassVar[Path | None] = None  # the requests that are shipped, where --requests need not be given

    @abstractmethod
    def items(self, file: Path) -> Iterator[Item]:
        """Reads the official requests and the user's pictures that belong to them (beside the file, as published)."""

    @abstractmethod
    def export(self, answers: Iterable[Answered], out: Path, model: str) -> Path:
        """Writes the submission into the new folder `out`, an answer at a time, and returns what the scorer is given.

        The caller hands a folder that is swapped in when this returns, so nothing half-written is ever seen.
        model: what the submission calls the model under test, a plain name."""

    @abstractmethod
    def read(self, place: Path, items: Sequence[Item]) -> Iterator[Answered]:
        """Reads a submission (a folder or its main file). An item without an answer there is left out."""

    @abstractmethod
    def results(self, file: Path, items: Sequence[Item]) -> list[Score]:
        """Reads what the official scorer wrote (a file, or the folder of it). items: without their prompts, whose
        pictures would fill the memory."""

    def asks(self, item: Item, document: Document) -> list[Ask]:
        """What a judge is asked of this answer; nothing where checks alone say all."""
        return []

    @abstractmethod
    def score(self, item: Item, document: Document, said: Mapping[str, Any]) -> Score:
        """Scores an answer. said: the judge's reply to each `Ask` by its key (a value that fits its schema). Without
        a judge it is empty: then only metrics by "check" have values."""

    def summary(self, scores: Iterable[Score]) -> dict[str, float]:
        """The official figures by name: here the mean of every metric, over all items and within each category
        ("category: metric")."""
        values: dict[str, list[float]] = {}
        for score in scores:
            for name, value in score.values.items():
                if value is not None:
                    values.setdefault(name, []).append(value)
                    if score.category:
                        values.setdefault(f"{score.category}: {name}", []).append(value)
        return {name: sum(found) / len(found) for name, found in sorted(values.items(), key=_overall_first)}


def with_mean(title: str, names: Iterable[str], figures: Mapping[str, float]) -> dict[str, float]:
    """The figures, after the mean of those of these names that are there."""
    found = [figures[name] for name in names if name in figures]
    return {title: sum(found) / len(found), **figures} if found else dict(figures)


def _overall_first(entry: tuple[str, Any]) -> tuple[bool, str]:
    return ": " in entry[0], entry[0]


def benchmark(name: str) -> Benchmark:
    """Returns the benchmark of this name."""
    if name not in NAMES:
        raise DuoGenError(f"There is no benchmark {name!r}; choose from {', '.join(NAMES)}.")
    found: Callable[[], Benchmark] = import_module(f"duogen_core.evaluation.benchmarks.{name}").BENCHMARK
    return found()


def by_id(file: Path, items: Iterable[Item]) -> dict[str, Item]:
    """Returns items by their id; two with the same one are an error, since an answer would belong to both."""
    found: dict[str, Item] = {}
    for item in items:
        if item.id in found:
            raise DuoGenError(f"{file} has two requests with the id {item.id[:80]!r}; every id must be there once.")
        found[item.id] = item
    if not found:
        raise DuoGenError(f"{file} has no requests.")
    return found
