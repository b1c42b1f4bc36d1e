"""Planning: a language model writes the interleaved answer to every request; rules look at it before anything is drawn.

In: a folder with requests, a client. Out: DIR/plans.jsonl (a line a request, refused ones with the rule), the same in
DIR/plan/logs for `data stats` and `data view`, and DIR/plan/answers.jsonl (the recording). An answer depends on its
request alone, and answers are compared in the order of the requests, so threads and kills change nothing: what was
answered is read from the recording.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from duogen_core.data.llm.answers import AnswerError
from duogen_core.data.llm.client import Client
from duogen_core.data.net.endpoint import EndpointError
from duogen_core.data.runs.in_order import in_order
from duogen_core.data.runs.shards import whole_file
from duogen_core.data.synthetic.plan_rules import judge
from duogen_core.data.synthetic.plans import Plan, plan_from, schema
from duogen_core.data.synthetic.requests import KEPT, Asking, Preset, Request, Verdict
from duogen_core.data.text.similarity import NearIndex, Subjects
from duogen_core.errors import DuoGenError

REFUSED = "endpoint_refused"  # one request may offend an endpoint's filter; all of them say that something is wrong
MOST_REFUSED = 3


@dataclass
class Planning:
    folder: Path
    requests: Sequence[Request]
    preset: Preset
    client: Client
    seed: int = 0
    threads: int = 4
    rules: Counter[str] = field(default_factory=Counter)  # what refused answers; "" for kept ones
    pictures: int = 0

    def __post_init__(self) -> None:
        self.asking = Asking("answer.txt")
        self.subjects = Subjects(each.text for each in self.requests)
        self.answers = NearIndex(self.preset.answer["max_same_answer"])

    def identity(self) -> dict[str, Any]:
        """What must be the same for a run to be gone on with. There may be more requests, or fewer."""
        model = self.client.endpoint.model
        return {"prompt": self.asking.digest, "model": model, "seed": self.seed, **self.preset.part("answer")}

    def run(self) -> Iterator[bool]:
        """Whether the plan of each request was kept; the file appears when all are done."""
        logs = self.folder / "plan" / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        for left in (*logs.glob(".*.duogen-tmp"), *self.folder.glob(".plans.jsonl.*.duogen-tmp")):
            left.unlink(missing_ok=True)  # of a run that was killed
        with whole_file(logs / "00000.jsonl") as log, whole_file(self.folder / "plans.jsonl") as plans:
            for line, kept in self._lines():
                for stream in (log, plans):
                    stream.write(line)
                yield kept

    def _lines(self) -> Iterator[tuple[bytes, bool]]:
        refused = 0
        for number, (request, (plan, verdict)) in enumerate(in_order(self._ask, self.requests, self.threads)):
            verdict = self._alone(plan) if plan is not None and verdict.kept else verdict
            refused = refused + 1 if verdict.rule == REFUSED else 0
            if refused == MOST_REFUSED:
                raise DuoGenError(f"{MOST_REFUSED} requests in a row were refused: {verdict.value}")
            self.rules[verdict.rule] += 1
            about = {"model": self.client.endpoint.model, "prompt": self.asking.digest}
            entry = {
                "stage": "answers",
                "number": number,
                "request": asdict(request),
                "seed": request.drawn_seed(self.seed),
                **about,
            }
            entry |= verdict.log()
            if plan is not None:
                entry["plan"] = plan.to_json()
                self.pictures += len(plan.prompts) if verdict.kept else 0
            yield (json.dumps(entry, ensure_ascii=False) + "\n").encode("utf-8", "replace"), verdict.kept

    def _ask(self, request: Request) -> tuple[Plan | None, Verdict]:
        """Runs in threads: what earlier answers say is not looked at here."""
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
