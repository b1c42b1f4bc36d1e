"""Placement by a language model: it reads the numbered passages and the pictures' words, and names a passage for each.

The same in and out as `placement.place`, with a writer beside. What it answers is checked: every picture once, every
passage one there is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from duogen_core.data.dialogues.draft import Draft
from duogen_core.data.dialogues.placement import Clue, Placement
from duogen_core.data.dialogues.rules import Refused, prompt
from duogen_core.data.llm.messages import messages

SHOWN = 60  # words of a passage, its first ones


def place_by_model(draft: Draft, clues: Sequence[Clue], rules: Mapping[str, Any], writer: Any) -> Placement:
    if not draft.passages or not clues:
        return Placement(draft.places, (0.0,) * len(draft.places), True, True)
    numbers = list(range(1, len(clues) + 1))

    def check(value: Any) -> None:
        named = [entry["image"] for entry in value["places"]]
        if sorted(named) != numbers:
            raise Refused("place.images", named, f"The images are {numbers}, each once; the answer has {named}.")

    data = {"passages": _numbered(draft.passages), "images": _described(clues)}
    asked = messages(prompt("place"), data)
    value = writer.ask(asked, schema(len(clues), len(draft.passages)), 64 + 24 * len(clues), check=check).value
    places = tuple(entry["passage"] for entry in sorted(value["places"], key=lambda entry: entry["image"]))
    return Placement(places, (0.0,) * len(places), False, list(places) == sorted(places))


def schema(pictures: int, passages: int) -> dict[str, Any]:
    fields = {
        "image": {"type": "integer", "minimum": 1, "maximum": pictures},
        "passage": {"type": "integer", "minimum": 1, "maximum": passages},
    }
    entry = {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}
    places = {"type": "array", "items": entry, "minItems": pictures, "maxItems": pictures}
    return {"type": "object", "properties": {"places": places}, "required": ["places"], "additionalProperties": False}


def _numbered(passages: Sequence[str]) -> str:
    return "\n\n".join(f"[{k}] {' '.join(passage.split()[:SHOWN])}" for k, passage in enumerate(passages, 1))


def _described(clues: Sequence[Clue]) -> str:
    lines = []
    for number, clue in enumerate(clues, 1):
        seen = f" | text in it: {clue.seen[:400]}" if clue.seen else ""
        lines.append(f"[image {number}] {clue.core[:300]} | {clue.rest[:600]}{seen}")
    return "\n".join(lines)
