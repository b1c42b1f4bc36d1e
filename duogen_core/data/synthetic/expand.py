"""Expansion: from about ten seeds of every subcategory to as many requests as wanted, written by a language model.

In: a folder, the taxonomy, a preset, a client. Out: DIR/requests.jsonl (the seeds and what was kept, in the taxonomy's
order), DIR/expand/logs (every request that was judged, with the rule that refused it), DIR/expand/answers.jsonl (the
recording).

It goes in rounds: every subcategory that lacks requests is asked for once, in threads, and then all answers are judged
in the taxonomy's order. So the outcome depends on nothing but the answers, and a run that was killed and is begun again
reads those it had from the recording. (DuoGen, arXiv 2602.00508: 1,500 seeds, 15,270 instructions.)

The rules stand first: each has a name, a threshold of the preset, and the value it decided by.

    verdict = RequestRules(preset, taxonomy).judge(request)     # a Verdict; the first rule that refuses it, or "kept"

They know all requests that were kept before, so the order matters.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any, ClassVar

from duogen_core.data.runs import Engine, Outcome
from duogen_core.data.runs.presets import Preset
from duogen_core.data.runs.run import outcomes
from duogen_core.data.synthetic.requests import (
    KEPT,
    Asking,
    Request,
    Subcategory,
    Taxonomy,
    Verdict,
    request_lines,
    seed_requests,
)
from duogen_core.data.text import NearIndex, Subjects
from duogen_core.files import write_atomically
from duogen_core.llm.answers import AnswerError
from duogen_core.llm.client import Client
from duogen_core.llm.messages import TEMPLATE_MARKS, Message

LINK = re.compile(r"https?://|www\.|\w+@\w+\.\w|\]\(", re.IGNORECASE)
MARKUP = re.compile(r"</?\w+[^<>]*>|```|\$\{|[{}]")
ORDER = re.compile(
    r"\b(ignore|disregard|forget|override)\b.{0,40}\b(instruction|prompt|rule|above|previous)"
    r"|\b(system prompt|developer message|as an ai\b|jailbreak)",
    re.IGNORECASE,
)


class RequestRules:
    def __init__(self, preset: Preset, seeds: Iterable[Request]) -> None:
        self.rules = preset.request
        seeds = list(seeds)
        self.pictures = re.compile(rf"\b(?:{'|'.join(map(re.escape, self.rules['picture_words']))})", re.IGNORECASE)
        self.subjects = Subjects(each.text for each in seeds)
        self.index = NearIndex(self.rules["max_same_wording"])
        self.groups: dict[tuple[str, str], list[str]] = {}
        for each in seeds:
            self.keep(each)

    def keep(self, request: Request) -> None:
        self.index.add(request.text)
        self.groups.setdefault((request.domain, request.subcategory), []).append(request.text)

    def judge(self, request: Request) -> Verdict:
        text, rules = request.text, self.rules
        if len(text) < rules["min_characters"]:
            return Verdict("too_short", len(text))
        if len(text) > rules["max_characters"]:
            return Verdict("too_long", len(text))
        for rule, pattern in (("link", LINK), ("markup", MARKUP), ("markup", TEMPLATE_MARKS), ("order", ORDER)):
            if found := pattern.search(text):
                return Verdict(rule, found[0][:80])
        if not self.pictures.search(text):
            return Verdict("asks_for_no_picture", text[:80])
        if near := self.index.find(text):
            return Verdict("same_wording", f"{near[1]:.2f} {near[0][:80]}")
        group = self.groups.get((request.domain, request.subcategory), [])
        similarity, closest = max(((self.subjects.similarity(text, each), each) for each in group), default=(0.0, ""))
        if similarity >= rules["max_same_subject"]:
            return Verdict("same_subject", f"{similarity:.2f} {closest[:80]}")
        return KEPT


SHOWN_EARLIER = 3  # times as many earlier requests are shown as seeds


@dataclass
class Group:
    """A subcategory while it grows."""

    subcategory: Subcategory
    requests: list[Request]
    dry: int = 0


@dataclass
class Expansion(Engine):
    """count: requests a subcategory is to have, its seeds included. connect: opens the language model."""

    folder: Path
    taxonomy: Taxonomy
    preset: Preset
    connect: Callable[[], Client]
    count: int
    seed: int = 0
    threads: int = 4
    workers: int = 1
    backend: str = "local"
    uses_gpu: bool = False
    groups: list[Group] = field(default_factory=list)
    log: list[dict[str, Any]] = field(default_factory=list)

    kind: ClassVar[str] = "synthetic-expand"
    things: ClassVar[str] = "requests"

    def __post_init__(self) -> None:
        seeds = seed_requests(self.taxonomy)
        self.rules = RequestRules(self.preset, seeds)
        self.asking = Asking("expand.txt")
        of: dict[tuple[str, str], list[Request]] = {}
        for each in seeds:
            of.setdefault((each.domain, each.subcategory), []).append(each)
        self.groups = [Group(one, of[one.domain, one.name]) for one in self.taxonomy.subcategories]

    @cached_property
    def client(self) -> Client:
        return self.connect()

    def clients(self) -> dict[str, Client]:
        return {"writer": self.client}

    @property
    def requests(self) -> list[Request]:
        return [request for group in self.groups for request in group.requests]

    def identity(self) -> dict[str, Any]:
        """What must be the same for a run to be continued."""
        seeds = hashlib.sha256(request_lines(seed_requests(self.taxonomy))).hexdigest()[:16]
        about = {"seeds": seeds, "prompt": self.asking.digest, "model": self.client.endpoint.model, "seed": self.seed}
        return {**about, **self.preset.part("expand", "request")}

    def run(self) -> Iterator[int]:
        """How many requests there are, again and again while they grow."""
        round_ = 0
        self.write()
        while wanting := self.items():
            asked = [[self._messages(group, round_), round_] for group in wanting]
            for outcome, group in zip(outcomes(self, asked, self.threads, self.workers, self.backend), wanting):
                self._judge(group, outcome.entry, round_)
                yield len(self.requests)
            self.write()
            round_ += 1

    def items(self) -> list[Group]:
        """The subcategories that lack requests. Each is asked for with its messages and the number of the round."""
        return [group for group in self.groups if self._wants(group)]

    def do(self, item: list[Any]) -> Outcome:
        messages, round_ = item
        rules = self.preset.expand
        try:
            answer = self.client.ask(
                messages, schema(rules["batch"]), rules["max_tokens"], rules["temperature"], seed=self.seed + round_
            )
        except AnswerError as error:
            return Outcome({"rule": "no_answer", "value": str(error)[:300]})
        return Outcome({"requests": answer.value["requests"]})

    @property
    def refused(self) -> dict[str, int]:
        return dict(Counter(each["rule"] for each in self.log if not each["kept"]).most_common())

    def write(self) -> None:
        lines = "".join(f"{json.dumps(each, ensure_ascii=False)}\n" for each in self.log)
        logs = self.folder / "expand" / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / "requests.jsonl", request_lines(self.requests))
        write_atomically(logs / "00000.jsonl", lines.encode("utf-8", "replace"))

    def _wants(self, group: Group) -> bool:
        return len(group.requests) < self.count and group.dry < self.preset.expand["max_dry"]

    def _messages(self, group: Group, round_: int) -> list[Message]:
        rng = Random(f"{self.seed} {group.subcategory.domain} {group.subcategory.name} {round_}")
        shown = self.preset.expand["examples"]
        seeds = rng.sample(group.subcategory.seeds, min(shown, len(group.subcategory.seeds)))
        earlier = [each.text for each in group.requests[len(group.subcategory.seeds) :]]
        earlier = rng.sample(earlier, min(shown * SHOWN_EARLIER, len(earlier)))
        one, count = group.subcategory, str(self.preset.expand["batch"])
        values = {"domain": one.domain, "subcategory": one.name, "count": count}
        data = {"examples": "\n".join(seeds), "earlier": "\n".join(earlier) or "(none yet)"}
        return self.asking.messages(values, data)

    def _judge(self, group: Group, found: dict[str, Any], round_: int) -> None:
        before = len(group.requests)
        one = group.subcategory
        if "rule" in found:
            self._log(Request(one.domain, one.name, ""), Verdict(found["rule"], found["value"]), round_)
        for text in found.get("requests", ()):
            if len(group.requests) >= self.count:
                break
            request = Request(one.domain, one.name, " ".join(text.split()), self.client.endpoint.model)
            verdict = self.rules.judge(request)
            self._log(request, verdict, round_)
            if verdict.kept:
                self.rules.keep(request)
                group.requests.append(request)
        group.dry = 0 if len(group.requests) > before else group.dry + 1

    def _log(self, request: Request, verdict: Verdict, round_: int) -> None:
        self.log.append({"stage": "requests", **asdict(request), "round": round_, **verdict.log()})


def schema(batch: int) -> dict[str, Any]:
    texts = {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 2 * batch}
    return {
        "type": "object",
        "properties": {"requests": texts},
        "required": ["requests"],
        "additionalProperties": False,
    }
