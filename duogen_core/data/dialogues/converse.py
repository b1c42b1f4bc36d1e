"""A Draft cut into exchanges, and the Document of these: a model writes what the user says, and where each answer ends.

    converse(draft, rules, writer, brings) -> Exchange, Exchange, …     the answers are the Draft's own passages
    compose(draft, exchanges, meta) -> Document
    validate(document, …)     a last look: every picture that no rule took out once, no new link, enough left

So no word of an answer changes here. brings: whether the user is to bring a picture; it is taken out of the answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Template
from typing import Any

from duogen_core.data.dialogues import rules as rule
from duogen_core.data.dialogues.draft import Draft, join
from duogen_core.data.dialogues.rewrite import mark, told
from duogen_core.data.dialogues.rules import RefusedAnswer, Values, check_clean, prompt
from duogen_core.document import (
    Document,
    Part,
    Picture,
    Text,
    Turn,
)
from duogen_core.llm.messages import messages

SCHEMA = {
    "type": "object",
    "properties": {
        "exchanges": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "properties": {
                    "request": {"type": "string", "minLength": 3, "maxLength": 2000},
                    "last_passage": {"type": "integer", "minimum": 1},
                    "request_images": {"type": "array", "items": {"type": "integer"}},
                },
                "required": ["request", "last_passage", "request_images"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["exchanges"],
    "additionalProperties": False,
}


WHOLE = r"^\S[^\n]*[.!?。！？]$"  # requests end as a sentence does, and do not stop in the middle of a word
CHARACTERS_PER_WORD = 5


def narrower(passages: int, numbers: Sequence[int], brings: bool, rules: Mapping[str, Any]) -> dict[str, Any]:
    """The schema that a model run here is held to: the last exchange ends with the last passage, pictures only where
    the user is to bring one. (That the others rise is left to the check.)"""
    longest = CHARACTERS_PER_WORD * int(rules["max_request_words"])
    request = {"type": "string", "minLength": 8, "maxLength": longest, "pattern": WHOLE}
    none = {"const": []}
    one = {"type": "array", "items": {"enum": list(numbers)}, "minItems": 1, "maxItems": 1}

    def exchange(last: dict[str, Any], images: dict[str, Any]) -> dict[str, Any]:
        fields = {"request": request, "last_passage": last, "request_images": images}
        return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}

    counts = []
    for count in range(1, min(int(rules["max_exchanges"]), passages) + 1):
        for bringing in range(count) if brings else [None]:
            exchanges = [
                exchange(
                    {"const": passages}
                    if k == count - 1
                    else {"type": "integer", "minimum": k + 1, "maximum": passages - 1},
                    one if k == bringing else none,
                )
                for k in range(count)
            ]
            counts.append(
                {"type": "array", "prefixItems": exchanges, "items": False, "minItems": count, "maxItems": count}
            )
    fields = {"exchanges": {"anyOf": counts}}
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


@dataclass(frozen=True)
class Exchange:
    """What the user says, with which pictures (indexes), and the passages [first, last) that answer."""

    request: str
    pictures: tuple[int, ...]
    first: int
    last: int


def plain(draft: Draft) -> tuple[Exchange, ...]:
    """Without a model: the title asks, everything answers."""
    return (Exchange(draft.title, (), 0, len(draft.passages)),)


def converse(
    draft: Draft, rules: Mapping[str, Any], writer: Any, values: Values, brings: bool = False
) -> tuple[Exchange, ...]:
    order = sorted(range(len(draft.pictures)), key=lambda index: draft.places[index])
    numbers = dict(enumerate(order, 1))
    shown = _numbered(draft, numbers)
    known = "\n".join([shown, draft.title, *map(told, draft.pictures)])

    def check(value: Any) -> None:
        _check(value["exchanges"], draft, numbers, known, rules, values, brings)

    picture = prompt("with_picture" if brings else "without_picture")
    ours = {"most": rules["max_exchanges"], "words": rules["max_request_words"], "picture": picture}
    asked = messages(Template(prompt("dialogue")).safe_substitute(ours), {"answer": shown, "title": draft.title})
    tokens = 128 + int(rules["max_exchanges"]) * (4 * int(rules["max_request_words"]) + 48)
    exchanges = []
    first = 0
    held = narrower(len(draft.passages), list(numbers), brings, rules)
    for entry in writer.ask(asked, SCHEMA, tokens, check=check, narrower=held).value["exchanges"]:
        pictures = tuple(numbers[number] for number in entry["request_images"])
        exchanges.append(Exchange(" ".join(entry["request"].split()), pictures, first, entry["last_passage"]))
        first = entry["last_passage"]
    return tuple(exchanges)


def _check(
    exchanges: list[dict], draft: Draft, numbers: Mapping[int, int], known: str, rules: Mapping, values: Values, brings
) -> None:
    ends = [entry["last_passage"] for entry in exchanges]
    total = len(draft.passages)
    if ends[-1] != total or ends != sorted(set(ends)):
        raise RefusedAnswer("dialogue.passages", ends, f"last_passage must rise and end with {total}, not be {ends}.")
    sentence = f"There are {len(ends)} exchanges; at most {rules['max_exchanges']} are allowed."
    values.ask("dialogue.max_exchanges", len(ends), sentence, high=rules["max_exchanges"])
    brought = [number for entry in exchanges for number in entry["request_images"]]
    if len(brought) != int(brings) or any(number not in numbers for number in brought):
        wanted = "exactly one image that there is" if brings else "no image"
        raise RefusedAnswer("dialogue.images", brought, f"request_images must name {wanted} in all, not {brought}.")
    first = 0
    for entry in exchanges:
        request, last = entry["request"], entry["last_passage"]
        if any(not _within(draft.places[numbers[number]], first, last) for number in entry["request_images"]):
            sentence = "The image that the user brings must be one of the passages that answer that request."
            raise RefusedAnswer("dialogue.images", entry["request_images"], sentence)
        rule.check_clean("dialogue", request, f"{draft.text}\n{draft.title}")
        words = len(request.split())
        sentence = f"A request has {words} words; at most {rules['max_request_words']} are allowed."
        values.ask("dialogue.max_request_words", words, sentence, high=rules["max_request_words"])
        sentence = "A request has little to do with the passages that answer it; ask for what they say."
        values.ask("dialogue.min_overlap", rule.overlap(request, known), sentence, low=rules["min_overlap"])
        first = last


def _within(place: int, first: int, last: int) -> bool:
    return first < place <= last or (place == 0 and first == 0)


def _numbered(draft: Draft, numbers: Mapping[int, int]) -> str:
    lines = []
    for k in range(len(draft.passages) + 1):
        if k:
            lines.append(f"[{k}] {draft.passages[k - 1]}")
        lines += [mark(n, draft.pictures[index]) for n, index in numbers.items() if draft.places[index] == k]
    return "\n\n".join(lines)


# ------------------------------------------------------------ the Document


def compose(draft: Draft, exchanges: Sequence[Exchange], meta: Mapping[str, Any]) -> Document:
    turns: list[Turn] = []
    brought = {index for exchange in exchanges for index in exchange.pictures}
    for exchange in exchanges:
        pictures = [draft.pictures[index] for index in exchange.pictures]
        turns.append(Turn("user", (*pictures, Text(exchange.request))))
        turns.append(Turn("assistant", tuple(_answer(draft, exchange, brought))))
    return Document(tuple(turns), meta=meta)


def _answer(draft: Draft, exchange: Exchange, brought: set[int]) -> list[Part]:
    parts: list[Part] = []
    run: list[str] = []
    for k in range(exchange.first, exchange.last + 1):
        if k > exchange.first:
            run.append(draft.passages[k - 1])
        if k == exchange.first and k > 0:
            continue  # pictures at a cut stand at the end of the exchange before it
        after = [picture for i, picture in enumerate(draft.pictures) if draft.places[i] == k and i not in brought]
        if after:
            parts += [Text(join(run))] if run else []
            parts += after
            run = []
    return parts + ([Text(join(run))] if run else [])


def validate(
    document: Document, original: Document, rules: Mapping[str, Any], values: Values, dropped: Sequence[Picture] = ()
) -> None:
    """Raises RefusedAnswer. Whatever the steps before did or looked at, this holds for every Document that is written.

    dropped: pictures of the original that a rule took out.
    """
    have, had, out = (
        Counter(picture.digest for picture in of) for of in (document.pictures, original.pictures, dropped)
    )
    if have + out != had:
        due = had.total() - out.total()
        raise RefusedAnswer(
            "document.images", have.total(), f"It has {have.total()} pictures, not the {due} it should have."
        )
    source = "\n".join(turn.text for turn in original.turns)
    answers = [turn for turn in document.turns if turn.role == "assistant"]
    check_clean("document", "\n".join(turn.text for turn in document.turns), source)
    words = sum(len(turn.text.split()) for turn in answers)
    values.ask("document.min_words", words, f"The answers have {words} words.", low=rules["min_words"])
    pictures = sum(len(turn.pictures) for turn in answers)
    values.ask("document.min_pictures", pictures, f"The answers have {pictures} pictures.", low=rules["min_pictures"])
    total = len(document.pictures)
    values.ask("document.max_pictures", total, f"It has {total} pictures.", high=rules["max_pictures"])
    if empty := [number for number, turn in enumerate(document.turns) if not turn.text.strip()]:
        raise RefusedAnswer("document.empty_turn", empty[0], f"Turn {empty[0]} has no text.")
