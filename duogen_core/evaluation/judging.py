"""A judge looks at the answers of a run: a model that sees, here or at an endpoint, recorded answers of one, or a
detector of objects (for GenEval).

`JudgeEngine` asks what the benchmark asks (`Benchmark.asks`), each answer checked against its schema and kept under
the hash of its request, so a run that was stopped asks nothing twice and pays for nothing twice. Out: a `Score` for
each answer, a line of the run's log each. Without a judge, only what can be checked without one is scored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duogen_core.data.runs import Engine, Outcome
from duogen_core.data.runs.folder import FOLDERS, read_run, with_version
from duogen_core.data.runs.presets import digest
from duogen_core.document import Document
from duogen_core.errors import DuoGenError
from duogen_core.evaluation.benchmarks import Answered, Ask, Benchmark, Item, Score, benchmark
from duogen_core.evaluation.running import Forward, answered, checked_items, item_digest
from duogen_core.llm.answers import AnswerError
from duogen_core.llm.client import Client
from duogen_core.llm.messages import fitted, messages, picture_part
from duogen_core.net.client import EndpointError

if TYPE_CHECKING:
    from duogen_core.evaluation.detector import Detector

KIND = "judging"
FAILED, ENDPOINT = "judge_failed", "endpoint"  # no answer that fits; no answer at all: asked again next time
SIDE = 1024  # pixels of the longer side of an image that a judge is shown


class JudgeEngine(Engine):
    """Items are numbers of answers. connect: opens the judge; detect: a detector in its place; neither: nobody is
    asked."""

    kind, size_name, things = KIND, "shard", "answers"
    tried_again = (ENDPOINT, FAILED)

    def __init__(
        self, name: str, file: Path, answers: Path, connect: Callable[[], Client] | None, uses_gpu: bool = False,
        detect: Callable[[], Detector] | None = None, about: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """about: what else the judge's replies depend on, such as the precision that it is run in."""
        self.name, self.file, self.answers, self.connect, self.uses_gpu = name, file, answers, connect, uses_gpu
        self.detect, self.about_judge = detect, dict(about or {})

    @cached_property
    def bench(self) -> Benchmark:
        return benchmark(self.name)

    @cached_property
    def judge(self) -> Client | None:
        return self.connect() if self.connect else None

    @cached_property
    def detector(self) -> Detector | None:
        return self.detect() if self.detect else None

    def clients(self) -> dict[str, Client]:
        return {"judge": self.judge} if self.judge is not None else {}

    @cached_property
    def about(self) -> list[tuple[str, str, str]]:
        """(id, digest, digest of what is asked of it) of every answer."""
        return [
            (item.id, item_digest(item, document), digest([asked(ask) for ask in self._asks(item, document)]))
            for item, document in self._answered()
        ]

    def _answered(self) -> Iterator[Answered]:
        return answered(self.answers, self.bench, checked_items(self.bench, self.file))

    def identity(self) -> dict[str, Any]:
        answers = [[id_, answer] for id_, answer, _ in self.about]
        questions = digest([question for _, _, question in self.about])
        return {"benchmark": self.name, "answers": digest(answers), "questions": questions, **self._by()}

    def details(self) -> dict[str, Any]:
        return {"benchmark": self.name, **self._by(), "about": [list(one) for one in self.about]}

    def _by(self) -> dict[str, Any]:
        if self.detector is not None:
            return {"judge": self.detector.name, **self.detector.about}
        return judge_identity(self.judge) | self.about_judge

    def _asks(self, item: Item, document: Document) -> list[Ask]:
        nobody = self.judge is None and self.detector is None
        return [] if nobody else self.bench.asks(item, document)

    def items(self) -> range:
        return range(len(self.about))

    def read(self, items: Iterable[int]) -> Iterator[Answered]:
        return Forward(self._answered).read(items)

    def do(self, answer: Answered) -> Outcome:
        item, document = answer
        named = {"id": item.id, "category": item.category}
        said: dict[str, Any] = {}
        tokens: Counter[str] = Counter()
        for ask in self._asks(item, document):
            if self.detector is not None:
                said[ask.key] = self.detector.reply(ask)
                continue
            try:
                found = self.judge.ask(messages_for(ask), ask.schema, max_tokens=ask.max_tokens)
            except AnswerError as error:
                # Out of scale, or prose in the place of JSON, at every attempt: this answer has no score.
                sentence = f"{ask.key}: {error}"[:400]
                return Outcome({**named, "kept": False, "rule": FAILED, "value": sentence})
            except EndpointError as error:
                if not error.again:
                    raise
                sentence = str(error)[:400]
                return Outcome({**named, "kept": False, "rule": ENDPOINT, "value": sentence}, failed=sentence)
            said[ask.key] = found.value
            tokens.update(prompt=found.prompt_tokens, completion=found.completion_tokens)
        score = self.bench.score(item, document, said)
        return Outcome({**named, "kept": True, **entry_of(score), "tokens": dict(tokens)})


def entry_of(score: Score) -> dict[str, Any]:
    return {"values": dict(score.values), "reasons": dict(score.reasons), "detail": dict(score.detail)}


def score_of(entry: dict[str, Any]) -> Score:
    """The score that a line of the log holds."""
    return Score(
        str(entry["id"]), str(entry["category"]), entry["values"], entry.get("reasons", {}), entry.get("detail", {})
    )


def messages_for(ask: Ask) -> list[dict[str, Any]]:
    """What a judge is told: each image after the line that says which one it is."""
    if not ask.pictures:
        return messages(ask.prompt, ask.data)
    *system, user = messages(ask.prompt, ask.data)
    parts: list[dict[str, Any]] = [{"type": "text", "text": user["content"]}]
    for name, picture in ask.pictures:
        parts += [{"type": "text", "text": name}, picture_part(fitted(picture.pixels, SIDE))]
    return [*system, {"role": "user", "content": parts}]


def make_way(folder: Path, engine: Engine, size: int, made: Sequence[str] = ()) -> bool:
    """Clears a judging whose answers are others by now (a run that went on has more), if nothing else has changed.

    The replies, answers.jsonl, stay: what was judged before is read from them, and only what is new is asked and paid.
    engine.about: (id, digest of the answer, perhaps that of what is asked of it). made: other files, made of the logs.
    """
    if not (folder / "run.json").exists():
        return False
    before, about = read_run(folder, engine.kind, lambda value: (value["identity"], value["details"].get("about", ())))
    now = with_version({**engine.identity(), engine.size_name: size})
    differ = {name for name in {*before, *now} if before.get(name) != now.get(name)}
    asked_before = {tuple(one[:2]): one[2:] for one in about}
    if all(asked_before.get(one[:2], list(one[2:])) == list(one[2:]) for one in engine.about if one[2:]):
        differ -= {"questions"} if any(one[2:] for one in engine.about) else set()
    if differ != {"answers"}:
        return False
    files = [file for name in FOLDERS for file in (folder / name).glob("*")]
    # run.json is the last: until then the same command finds the same to do.
    for file in (*files, *(folder / name for name in made), folder / "run.json"):
        file.unlink(missing_ok=True)
    return True


def asked(ask: Ask) -> list[Any]:
    """What is asked, as plain JSON: a prompt that was changed in the code is another judging."""
    return [ask.key, ask.prompt, dict(ask.data), ask.schema, [name for name, _ in ask.pictures]]


def judge_identity(judge: Client | None) -> dict[str, Any]:
    """Who judges, and how long it may think."""
    if judge is None:
        return {"judge": ""}
    return {"judge": judge.endpoint.model, **({"options": judge.endpoint.options} if judge.endpoint.options else {})}


def check_sees(judge: Client) -> None:
    if not judge.sees:
        raise DuoGenError(
            f"The judge {judge.endpoint.model} takes no images; name a model that sees, such as a Qwen-VL."
        )
