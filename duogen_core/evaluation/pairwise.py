"""Two models' answers to the same requests before a judge, each pair in both orders.

The judge is any model that sees (`llm.client.Client`). It says for each of the five metrics of the DuoGen paper (text
completeness, image completeness, image consistency, image quality, image-text consistency) which answer is better, or
that neither is; what a metric means stands in our own words, and its absolute scale, 0 to 5, is that of the benchmark
`howto`. A verdict counts if it holds in both orders, and is a tie otherwise: so a judge that likes what it sees first
decides nothing. How often it follows the position is measured, `position_bias`, and belongs beside every figure.

`PairEngine` is a run as those of `duogen_core.data.runs`: a line a pair, every reply kept under the hash of what was
asked, so that one that was stopped goes on and nothing is judged twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from duogen_core.data.runs import Engine, Outcome
from duogen_core.data.runs.presets import digest
from duogen_core.document import Part, Picture, Turn
from duogen_core.errors import DuoGenError
from duogen_core.evaluation.answer_sets import AnswerSet, Pair, open_answers, pair_of, parts_of, shared_ids
from duogen_core.evaluation.benchmarks import Ask
from duogen_core.evaluation.judging import ENDPOINT, FAILED, judge_identity, messages_for
from duogen_core.evaluation.ratings import Rated
from duogen_core.llm.answers import AnswerError
from duogen_core.llm.client import Client
from duogen_core.net.client import EndpointError

KIND = "comparing"
METRICS = {
    "text completeness": "whose text alone leads the reader further: all that is needed, every step, the result, and what the request itself demands",  # noqa: E501
    "image completeness": "whose images show the way more completely: an image for each step that changes what is seen, and the result",  # noqa: E501
    "image consistency": "in whose images the same things, people and places look more the same from image to image",
    "image quality": "whose images are better made, each by itself: sharp, without broken, melted or doubled things",
    "image-text consistency": "whose images show more exactly what the text around them says",
}
FIRST, SECOND, TIE = "first", "second", "tie"
MAX_TOKENS = 1500
PROMPT = """Two answers to the same request are to be compared: the first answer and the second answer. Each is a text with images in it; "[Image 1]" in an answer is where that image stands.

The request:
${request}

The first answer:
${first}

The second answer:
${second}

The images follow, each after a line that says whose it is. Say for each of these points which answer is better:
${points}

An answer that lacks what a point is about is worse on that point. Which answer stands first means nothing, and length alone is worth nothing. Say "tie" where you see no difference that a reader would notice.
For each point:
- reason: first, one sentence that names the difference.
- better: then "first", "second" or "tie"."""  # noqa: E501


def asked_of(pair: Pair, turned: bool = False) -> Ask:
    """The question about a pair. turned: the second model's answer comes first. Without any image in either answer
    only the text is asked about."""
    first, second = (pair.second, pair.first) if turned else (pair.first, pair.second)
    named: list[tuple[str, Picture]] = []
    sides = (("The user's image", pair.request), ("First answer, image", first), ("Second answer, image", second))
    for name, turns in sides:
        named += [(f"{name} {number}:", one) for number, one in enumerate(_pictures(turns), 1)]
    metrics = list(METRICS) if _pictures(first) or _pictures(second) else ["text completeness"]
    points = "\n".join(f"- {_field(name)}: {METRICS[name]}" for name in metrics)
    one = {
        "type": "object",
        "properties": {"reason": {"type": "string", "maxLength": 400}, "better": {"enum": [FIRST, SECOND, TIE]}},
        "required": ["reason", "better"],
        "additionalProperties": False,
    }
    fields = [_field(name) for name in metrics]
    schema = {
        "type": "object",
        "properties": dict.fromkeys(fields, one),
        "required": fields,
        "additionalProperties": False,
    }
    data = {"request": _words(pair.request), "first": _words(first), "second": _words(second)}
    prompt = PROMPT.replace("${points}", points)
    return Ask("turned" if turned else "as given", prompt, data, schema, tuple(named), MAX_TOKENS)


def _field(metric: str) -> str:
    return metric.replace(" ", "_").replace("-", "_")


def _pictures(turns: Iterable[Turn]) -> list[Picture]:
    return [picture for turn in turns for picture in turn.pictures]


def _words(turns: tuple[Turn, ...]) -> str:
    """The words of some turns, with "[Image 1]" where their images stand; what a user says in between is marked."""
    found, number = "", 0
    for turn in turns:
        if turn.role == "user" and found:
            found += "\n\nThe user: "
        parts: list[Part] = parts_of([turn])
        for part in parts:
            if isinstance(part, Picture):
                number += 1
                found += f"\n[Image {number}]\n"
            else:
                found += part.text
        found += "\n"
    return found.strip() or "(no text)"


# ------------------------------------------------------------ what was said


def verdicts(said: Mapping[str, Any]) -> dict[str, str]:
    """The reply to one order -> which position was better, by metric."""
    return {name: said[_field(name)]["better"] for name in METRICS if _field(name) in said}


def agreed(as_given: Mapping[str, str], turned: Mapping[str, str]) -> dict[str, str]:
    """Which model is better, by metric: what was said in both orders, a tie otherwise."""
    other = {FIRST: SECOND, SECOND: FIRST, TIE: TIE}
    return {name: verdict if verdict == other[turned[name]] else TIE for name, verdict in as_given.items()}


def position_bias(entries: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Of each metric, and of "all" together, over the pairs that were asked in both orders:

    pairs: how many. same: the verdict held when the answers changed places. first, second: it followed the place, the
    answer that came first (second) was better both times. half: a winner in one order, a tie in the other.
    """
    counts: dict[str, Counter[str]] = {"all": Counter()}
    for entry in entries:
        if entry.get("same"):
            continue
        for name, verdict in entry["as_given"].items():
            back = entry["turned"][name]
            if verdict == back == TIE or {verdict, back} == {FIRST, SECOND}:
                kind = "same"
            elif verdict == back:
                kind = verdict
            else:
                kind = "half"
            for group in (name, "all"):
                counts.setdefault(group, Counter())[kind] += 1
    found = {}
    for name, count in counts.items():
        total = sum(count.values())
        if total:
            found[name] = {"pairs": total, **{kind: count[kind] / total for kind in ("same", FIRST, SECOND, "half")}}
    return found


def rated(entries: Iterable[Mapping[str, Any]], first: str, second: str, judge: str) -> list[Rated]:
    """What counts of the judge's verdicts, as ratings; answers that are the same are ties."""
    side = {FIRST: "left", SECOND: "right", TIE: "tie"}
    return [
        Rated(str(entry["id"]), first, second, name, side[verdict], judge)
        for entry in entries
        for name, verdict in agreed(entry["as_given"], entry["turned"]).items()
    ]


# ------------------------------------------------------------ the run


class PairEngine(Engine):
    """Items are numbers of pairs. connect: opens the judge. names: what the models are called, "" for their own."""

    kind, size_name, things = KIND, "shard", "pairs"
    tried_again = (ENDPOINT, FAILED)

    def __init__(
        self, first: Path, second: Path, connect: Callable[[], Client], names: tuple[str, str] = ("", ""),
        uses_gpu: bool = False, about: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """about: what else the judge's replies depend on."""
        self.first, self.second, self.connect, self.names, self.uses_gpu = first, second, connect, names, uses_gpu
        self.about_judge = dict(about or {})

    @cached_property
    def sides(self) -> tuple[AnswerSet, AnswerSet]:
        first, second = open_answers(self.first, self.names[0]), open_answers(self.second, self.names[1])
        if first.name == second.name:
            raise DuoGenError(
                f"Both models are called {first.name[:80]!r}; give each a name of its own, such as --names mine theirs."
            )
        return first, second

    @cached_property
    def judge(self) -> Client:
        return self.connect()

    def clients(self) -> dict[str, Client]:
        return {"judge": self.judge}

    @cached_property
    def ids(self) -> list[str]:
        return shared_ids(*self.sides)

    @cached_property
    def about(self) -> list[tuple[str, str]]:
        """(id, digest) of every pair."""
        return [(id, pair_digest(self.pair(id))) for id in self.ids]

    def pair(self, id: str) -> Pair:
        return pair_of(*self.sides, id)

    def identity(self) -> dict[str, Any]:
        asked_about = digest([PROMPT, METRICS])
        by = judge_identity(self.judge) | self.about_judge
        return {
            "models": [side.name for side in self.sides],
            "answers": digest(self.about),
            "questions": asked_about,
            **by,
        }

    def details(self) -> dict[str, Any]:
        first, second = self.sides
        return {
            "benchmark": first.benchmark or second.benchmark,
            "models": [first.name, second.name],
            "about": [list(one) for one in self.about],
        }

    def items(self) -> range:
        return range(len(self.ids))

    def read(self, items: Iterable[int]) -> Iterator[Pair]:
        return (self.pair(self.ids[number]) for number in items)

    def do(self, pair: Pair) -> Outcome:
        named = {"id": pair.id, "category": pair.category}
        if pair.same:  # nothing to ask
            ties = dict.fromkeys(METRICS if _pictures(pair.first) else ["text completeness"], TIE)
            return Outcome({**named, "kept": True, "same": True, "as_given": ties, "turned": ties, "reasons": {}})
        said: dict[str, Any] = {}
        tokens: Counter[str] = Counter()
        for ask in (asked_of(pair), asked_of(pair, turned=True)):
            try:
                found = self.judge.ask(messages_for(ask), ask.schema, max_tokens=ask.max_tokens)
            except AnswerError as error:
                return Outcome({**named, "kept": False, "rule": FAILED, "value": f"{ask.key}: {error}"[:400]})
            except EndpointError as error:
                if not error.again:
                    raise
                sentence = str(error)[:400]
                return Outcome({**named, "kept": False, "rule": ENDPOINT, "value": sentence}, failed=sentence)
            said[ask.key] = found.value
            tokens.update(prompt=found.prompt_tokens, completion=found.completion_tokens)
        as_given, turned = said["as given"], said["turned"]
        reasons = {
            name: [one[_field(name)]["reason"] for one in (as_given, turned)]
            for name in METRICS
            if _field(name) in as_given
        }
        found_ = {"as_given": verdicts(as_given), "turned": verdicts(turned), "reasons": reasons}
        return Outcome({**named, "kept": True, **found_, "tokens": dict(tokens)})


def pair_digest(pair: Pair) -> str:
    sides = (pair.request, pair.first, pair.second)
    said = [[part.digest if isinstance(part, Picture) else part.text for part in parts_of(side)] for side in sides]
    return digest([pair.id, said])
