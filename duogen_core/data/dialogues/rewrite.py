"""The text of a Draft written anew by a model, in pieces of passages: tags, links and what is only of the page go.

    rewrite(draft, rules, writer, values) -> a Draft with new passages; the pictures and their order are the same

The pictures stand in the text as numbered marks with their words. A piece whose answer no rule lets through is asked
for again, and refuses the page in the end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from duogen_core.data.dialogues import rules as rule
from duogen_core.data.dialogues.draft import Draft, join, paragraphs
from duogen_core.data.dialogues.rules import Values, prompt
from duogen_core.document import Picture
from duogen_core.llm.messages import messages

TOKENS_PER_WORD, TOKENS_PER_PICTURE = 3, 16
FOOTNOTE = re.compile(r"(?<![\w\]])\[\d+\]")  # but not a[0]
ROOM = 30  # characters more than the rules allow of a stretch of text, which may be a heading alone
SCHEMA = {
    "type": "object",
    "properties": {
        "passages": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "properties": {
                    "text": {"type": "string", "minLength": 1},
                    "images": {"type": "array", "items": {"type": "integer"}},
                },
                "required": ["text", "images"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["passages"],
    "additionalProperties": False,
}


def narrower(draft: Draft, first: int, last: int, inside: Sequence[int], rules: Mapping[str, Any]) -> dict[str, Any]:
    """The schema that a model run here is held to: a passage for each stretch of text between pictures, as long as the
    rules allow, each with its own pictures. So it cannot lose, repeat or reorder them, nor write without end."""
    numbers = dict(enumerate(inside, 1))
    ends = sorted({draft.places[index] for index in inside if draft.places[index] > first} | {last})
    passages, start = [], first
    for end in ends:
        text = join(draft.passages[start:end])
        low, high = rules["min_length"] * len(text) + 1, rules["max_length"] * len(text) + ROOM
        # Pictures before all text, at the top of the page, come after its first stretch.
        shown = [number for number, index in numbers.items() if start < draft.places[index] <= end or start == first]
        shown = [number for number in shown if draft.places[numbers[number]] <= end]
        written = {"type": "string", "minLength": int(low), "maxLength": int(high)}
        if "[" not in FOOTNOTE.sub("", text):  # small models copy marks of the prompt: "[image 3: …]"
            # As one pattern: beside a length, each with states of its own, masks would cost hundred times as much.
            written = {"type": "string", "pattern": f"^[^\\[]{{{int(low)},{int(high)}}}$"}
        fields = {"text": written, "images": {"const": shown}}
        passages.append(
            {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}
        )
        start = end
    whole = {"type": "array", "prefixItems": passages, "items": False, "minItems": len(passages)}
    fields = {"passages": whole | {"maxItems": len(passages)}}
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def rewrite(draft: Draft, rules: Mapping[str, Any], writer: Any, values: Values) -> Draft:
    order = sorted(range(len(draft.pictures)), key=lambda index: draft.places[index])
    passages: list[str] = []
    places: dict[int, int] = {}
    for first, last in pieces(draft.passages, int(rules["chunk_words"])):
        inside = [index for index in order if _belongs(draft.places[index], first, last)]
        for text, images in _piece(draft, first, last, inside, rules, writer, values):
            passages += paragraphs(text)
            places |= {index: len(passages) for index in images}
    return replace(draft, passages=tuple(passages), places=tuple(places[index] for index in range(len(places))))


def pieces(passages: Sequence[str], most: int) -> Iterator[tuple[int, int]]:
    """Ranges of passages of at most so many words, a single longer one apart."""
    first = words = 0
    for k, passage in enumerate(passages):
        count = len(passage.split())
        if k > first and words + count > most:
            yield first, k
            first, words = k, 0
        words += count
    yield first, len(passages)


def _belongs(place: int, first: int, last: int) -> bool:
    return first < place <= last or (place == 0 and first == 0)


def _piece(
    draft: Draft, first: int, last: int, inside: list[int], rules: Mapping[str, Any], writer: Any, values: Values
):
    """Pairs of text and the pictures (indexes) after it."""
    numbers = dict(enumerate(inside, 1))
    source = join(draft.passages[first:last])
    known = "\n".join([source, draft.title, *(told(draft.pictures[index]) for index in inside)])

    def check(value: Any) -> None:
        named = [number for passage in value["passages"] for number in passage["images"]]
        text = "\n\n".join(passage["text"] for passage in value["passages"])
        rule.check_ids("rewrite.images", named, list(numbers))
        rule.check_clean("rewrite", text, f"{source}\n{draft.title}")
        low, high = rules["min_length"], rules["max_length"]
        ratio = rule.length_ratio(text, source)
        sentence = f"The text has {ratio:.0%} of the words of the material; it must have {low:.0%} to {high:.0%}."
        values.ask("rewrite.min_length", ratio, sentence, low=low)
        values.ask("rewrite.max_length", ratio, sentence, high=high)
        sentence = "The text says other things than the material; say only what is in it, in its words."
        values.ask("rewrite.min_overlap", rule.overlap(text, known), sentence, low=rules["min_overlap"])
        sentence = "The text has numbers that are not in the material; keep to those that are."
        values.ask("rewrite.max_new_numbers", rule.new_numbers(text, known), sentence, high=rules["max_new_numbers"])

    shown = _with_marks(draft, first, last, inside)
    tokens = 256 + TOKENS_PER_WORD * len(source.split()) + TOKENS_PER_PICTURE * len(inside)
    asked, held = messages(prompt("rewrite"), {"guide": shown}), narrower(draft, first, last, inside, rules)
    value = writer.ask(asked, SCHEMA, tokens, check=check, narrower=held).value
    return [
        (passage["text"].strip(), [numbers[number] for number in passage["images"]]) for passage in value["passages"]
    ]


def _with_marks(draft: Draft, first: int, last: int, inside: Sequence[int]) -> str:
    lines: list[str] = []
    for k in range(first, last + 1):
        if k > first:
            lines.append(draft.passages[k - 1])
        lines += [mark(n, draft.pictures[index]) for n, index in enumerate(inside, 1) if draft.places[index] == k]
    return "\n\n".join(lines)


def mark(number: int, picture: Picture) -> str:
    return f"[image {number}: {told(picture)}]"


def told(picture: Picture) -> str:
    """What is known of a picture, in one line."""
    texts = (str(picture.meta.get(name) or "") for name in ("caption", "alt", "description"))
    return " ".join(" | ".join(dict.fromkeys(text for text in texts if text)).split())[:600] or "a picture"
