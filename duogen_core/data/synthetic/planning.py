"""Plans: the interleaved answer to a request before its pictures are drawn. On disk a line of plans.jsonl each.

    {"number": 0, "request": {...}, "kept": true, "plan": {"steps": [{"text": "…", "picture": "…"}], "closing": ""}}

Refused ones stand there too, with the rule and its value. `steps` hold a text and the prompt of the picture after it
("" where none is wanted).

Rules for the answer that a language model planned: each a name, a threshold of the preset, and a logged value.

    for rule, value in broken(plan, request, preset.answer, subjects): ...     # lazily; the first one decides

A language model's JSON may fit its schema and still be prose, nonsense, the same picture over and over, or an echo of
orders that stood in the request. What these rules cannot see is whether an answer is true.

Planning: a language model writes the interleaved answer to every request; rules look at it before anything is drawn.

In: a folder with requests, a client. Out: DIR/plans.jsonl (a line a request, refused ones with the rule), the same in
DIR/plan/logs for `data stats` and `data view`, and DIR/plan/answers.jsonl (the recording). An answer depends on its
request alone, and answers are compared in the order of the requests, so threads and kills change nothing: what was
answered is read from the recording.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar

from duogen_core.data.runs import Engine, Outcome
from duogen_core.data.runs.presets import Preset
from duogen_core.data.runs.run import outcomes
from duogen_core.data.runs.shards import whole_file
from duogen_core.data.synthetic.expand import LINK, ORDER
from duogen_core.data.synthetic.requests import KEPT, Asking, Request, Verdict, request_from
from duogen_core.data.text import NearIndex, Subjects, word_pairs
from duogen_core.errors import DuoGenError
from duogen_core.llm.answers import AnswerError
from duogen_core.llm.client import Client
from duogen_core.llm.messages import TEMPLATE_MARKS
from duogen_core.net.client import EndpointError


@dataclass(frozen=True)
class Step:
    text: str
    picture: str = ""


@dataclass(frozen=True)
class Plan:
    steps: tuple[Step, ...]
    closing: str = ""

    @property
    def prompts(self) -> tuple[str, ...]:
        return tuple(step.picture for step in self.steps if step.picture)

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(text for text in (*(step.text for step in self.steps), self.closing) if text)

    def to_json(self) -> dict[str, Any]:
        return {"steps": [{"text": one.text, "picture": one.picture} for one in self.steps], "closing": self.closing}


@dataclass(frozen=True)
class Entry:
    """A line of plans.jsonl that was kept: what is to be drawn. seed: the random seed of its first picture."""

    number: int
    request: Request
    plan: Plan
    seed: int
    model: str
    prompt: str  # the digest of the prompt that had it written


def plan_from(value: Any) -> Plan:
    """A Plan from JSON that fits SCHEMA; white space at the ends goes."""
    steps = tuple(Step(each["text"].strip(), " ".join(each["picture"].split())) for each in value["steps"])
    return Plan(steps, value["closing"].strip())


def schema(most_steps: int) -> dict[str, Any]:
    step = {
        "type": "object",
        "properties": {"text": {"type": "string"}, "picture": {"type": "string"}},
        "required": ["text", "picture"],
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {
            "steps": {"type": "array", "items": step, "minItems": 1, "maxItems": 2 * most_steps},
            "closing": {"type": "string"},
        },
        "required": ["steps", "closing"],
        "additionalProperties": False,
    }


def read_plans(file: Path) -> Iterator[Entry]:
    """The plans that were kept, in order."""
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                entry = _entry(line, f"Line {number} of {file}")
                if entry is not None:
                    yield entry
    except FileNotFoundError:
        raise DuoGenError(f"{file} does not exist; run `data synthetic plan` with the same folder first.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DuoGenError(f"The plans {file} cannot be read: {getattr(error, 'strerror', None) or error}.") from None


def _entry(line: str, where: str) -> Entry | None:
    try:
        value = json.loads(line)
        if not value["kept"]:
            return None
        plan = plan_from(value["plan"])
        numbers = int(value["number"]), int(value["seed"])
        texts = str(value["model"]), str(value["prompt"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DuoGenError(f"{where} is not a plan; run `data synthetic plan` again.") from None
    request = request_from(json.dumps(value["request"]), where)
    return Entry(numbers[0], request, plan, numbers[1], *texts)


PICTURE_MARKS = ("![", "<img", "<BOV>", "[image", "[picture", "<image", "<picture")
PAINTER_MARKS = ("embedding:", "<lora:", "<hypernet:", "__")  # what image programs take for more than words
DATA_MARKS = ("<data", "</data")


def judge(plan: Plan, request: Request, preset: Preset, subjects: Subjects) -> Verdict:
    return next(broken(plan, request, preset.answer, subjects), KEPT)


def broken(plan: Plan, request: Request, rules: Mapping[str, Any], subjects: Subjects) -> Iterator[Verdict]:
    yield from _counts(plan, rules)
    yield from _lengths(plan, rules)
    yield from _marks(plan)
    yield from _repeats(plan, request, rules)
    covered = subjects.covered(request.text, " ".join((*plan.texts, *plan.prompts)))
    if covered < rules["min_on_subject"]:
        yield Verdict("off_subject", round(covered, 3))


def _counts(plan: Plan, rules: Mapping[str, Any]) -> Iterator[Verdict]:
    for rule, count in (("steps", len(plan.steps)), ("pictures", len(plan.prompts))):
        if count < rules[f"min_{rule}"]:
            yield Verdict(f"few_{rule}", count)
        if count > rules[f"max_{rule}"]:
            yield Verdict(f"many_{rule}", count)


def _lengths(plan: Plan, rules: Mapping[str, Any]) -> Iterator[Verdict]:
    lengths = [len(step.text) for step in plan.steps]
    if min(lengths) < rules["min_characters"]:
        yield Verdict("short_text", min(lengths))
    if max(*lengths, len(plan.closing)) > rules["max_characters"]:
        yield Verdict("long_text", max(*lengths, len(plan.closing)))
    prompts = [len(prompt) for prompt in plan.prompts]
    if min(prompts, default=rules["min_prompt"]) < rules["min_prompt"]:
        yield Verdict("short_prompt", min(prompts))
    if max(prompts, default=0) > rules["max_prompt"]:
        yield Verdict("long_prompt", max(prompts))


def _marks(plan: Plan) -> Iterator[Verdict]:
    everything = (*plan.texts, *plan.prompts)
    for text in everything:
        if found := LINK.search(text):
            yield Verdict("link", found[0][:80])
        if found := TEMPLATE_MARKS.search(text):
            yield Verdict("template_mark", found[0][:80])
        if found := ORDER.search(text):
            yield Verdict("order", found[0][:80])
        for rule, marks in (("picture_mark", PICTURE_MARKS), ("data_mark", DATA_MARKS)):
            for mark in marks:
                if mark.casefold() in text.casefold():
                    yield Verdict(rule, mark)
    for prompt in plan.prompts:
        for mark in PAINTER_MARKS:
            if mark in prompt.casefold():
                yield Verdict("painter_mark", mark)


def _repeats(plan: Plan, request: Request, rules: Mapping[str, Any]) -> Iterator[Verdict]:
    texts = [step.text for step in plan.steps]
    for rule, among, most in (
        ("same_text", texts, rules["max_same_text"]),
        ("same_prompt", plan.prompts, rules["max_same_prompt"]),
    ):
        worst = max((same(*both) for both in combinations(among, 2)), default=0.0)
        if worst >= most:
            yield Verdict(rule, round(worst, 3))
    echo = max(same(text, request.text) for text in (*texts, *plan.prompts))
    if echo >= rules["max_same_request"]:
        yield Verdict("same_request", round(echo, 3))


def same(one: str, other: str) -> float:
    """The share of word pairs that two texts have in common."""
    first, second = word_pairs(one), word_pairs(other)
    return len(first & second) / (len(first | second) or 1)


REFUSED = "endpoint_refused"  # one request may offend an endpoint's filter; all of them say that something is wrong
MOST_REFUSED = 3


@dataclass
class Planning(Engine):
    """Items are numbers of the requests. connect: opens the language model."""

    folder: Path
    requests: Sequence[Request]
    preset: Preset
    connect: Callable[[], Client]
    seed: int = 0
    threads: int = 4
    workers: int = 1
    backend: str = "local"
    rules: Counter[str] = field(default_factory=Counter)  # what refused answers; "" for kept ones
    pictures: int = 0
    uses_gpu: bool = False

    kind: ClassVar[str] = "synthetic-plan"
    things: ClassVar[str] = "requests"

    def __post_init__(self) -> None:
        self.asking = Asking("answer.txt")
        self.answers = NearIndex(self.preset.answer["max_same_answer"])

    @cached_property
    def client(self) -> Client:
        return self.connect()

    @cached_property
    def subjects(self) -> Subjects:
        return Subjects(each.text for each in self.requests)

    def clients(self) -> dict[str, Client]:
        return {"writer": self.client}

    def identity(self) -> dict[str, Any]:
        """There may be more requests when a run is continued, or fewer."""
        model = self.client.endpoint.model
        return {"prompt": self.asking.digest, "model": model, "seed": self.seed, **self.preset.part("answer")}

    def items(self) -> range:
        return range(len(self.requests))

    def do(self, number: int) -> Outcome:
        """The plan, and its verdict by itself: what earlier answers say is not looked at here."""
        plan, verdict = self._ask(self.requests[number])
        request = self.requests[number]
        about = {"model": self.client.endpoint.model, "prompt": self.asking.digest}
        entry = {
            "stage": "answers",
            "number": number,
            "request": asdict(request),
            "seed": request.drawn_seed(self.seed),
            **about,
            **verdict.log(),
        }
        return Outcome(entry | ({"plan": plan.to_json()} if plan is not None else {}))

    def run(self) -> Iterator[bool]:
        """Whether the plan of each request was kept; the file appears when all are done."""
        logs = self.folder / "plan" / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        for left in (*logs.glob(".*.duogen-tmp"), *self.folder.glob(".plans.jsonl.*.duogen-tmp")):
            left.unlink(missing_ok=True)  # of a run that was killed
        with whole_file(logs / "00000.jsonl") as log, whole_file(self.folder / "plans.jsonl") as plans:
            for entry in self._compared():
                line = (json.dumps(entry, ensure_ascii=False) + "\n").encode("utf-8", "replace")
                for stream in (log, plans):
                    stream.write(line)
                yield entry["kept"]

    def _compared(self) -> Iterator[dict[str, Any]]:
        """Every entry in order, after a look at the answers before it."""
        refused = 0
        for outcome in outcomes(self, self.items(), self.threads, self.workers, self.backend):
            entry = outcome.entry
            if entry["kept"]:
                plan = plan_from(entry.pop("plan"))
                entry.pop("kept")
                entry |= self._alone(plan).log()  # the rule stands before the plan
                entry["plan"] = plan.to_json()
                self.pictures += len(plan.prompts) if entry["kept"] else 0
            rule = entry.get("rule", "")
            refused = refused + 1 if rule == REFUSED else 0
            if refused == MOST_REFUSED:
                raise DuoGenError(f"{MOST_REFUSED} requests in a row were refused: {entry['value']}")
            self.rules[rule] += 1
            yield entry

    def _ask(self, request: Request) -> tuple[Plan | None, Verdict]:
        rules = self.preset.answer
        values = {
            "domain": request.domain,
            "subcategory": request.subcategory,
            "least": str(rules["min_pictures"]),
            "most": str(rules["max_pictures"]),
        }
        asked = self.asking.messages(values, {"request": request.text})
        last: list[Plan] = []

        def check(value: Any) -> None:
            last[:] = [plan_from(value)]
            verdict = judge(last[0], request, self.preset, self.subjects)
            if not verdict.kept:
                raise Broken(verdict)

        seed = request.drawn_seed(self.seed) % 2**31
        how = schema(rules["max_steps"]), rules["max_tokens"], rules["temperature"], seed
        try:
            self.client.ask(asked, *how, check=check)
        except AnswerError as error:
            broken = error.__cause__
            if isinstance(broken, Broken):
                return last[0], broken.verdict
            return None, Verdict("no_answer", str(error)[:300])
        except EndpointError as error:
            if error.again:
                raise
            return None, Verdict(REFUSED, str(error)[:300])
        return last[0], KEPT

    def _alone(self, plan: Plan) -> Verdict:
        """An answer that says what the answer to an earlier request said is refused."""
        text = "\n".join(plan.texts)
        if near := self.answers.find(text):
            return Verdict("same_answer", f"{near[1]:.2f} {near[0][:80]}")
        self.answers.add(text)
        return KEPT


class Broken(AnswerError):
    """The answer fits the schema and breaks a rule; the sentence is what the model is told."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(f"The answer breaks the rule “{verdict.rule.replace('_', ' ')}” ({verdict.value}).")
        self.verdict = verdict
