"""Exchanges -> the Document, and a last look: every picture that no rule took out once, no new link, enough left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from duogen_core.data.dialogues.converse import Exchange
from duogen_core.data.dialogues.draft import Draft, join
from duogen_core.data.dialogues.rules import Refused, Values, check_clean
from duogen_core.document import (
    Document,
    Part,
    Picture,
    Text,
    Turn,
)


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
    """Raises Refused. Whatever the steps before did or looked at, this holds for every Document that is written.

    dropped: pictures of the original that a rule took out.
    """
    have, had, out = (
        Counter(picture.digest for picture in of) for of in (document.pictures, original.pictures, dropped)
    )
    if have + out != had:
        due = had.total() - out.total()
        raise Refused("document.images", have.total(), f"It has {have.total()} pictures, not the {due} it should have.")
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
        raise Refused("document.empty_turn", empty[0], f"Turn {empty[0]} has no text.")
