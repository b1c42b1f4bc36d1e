"""Where pictures belong: each goes to just after the passage it shows, as far as its words say which that is.

    place(draft, clues, rules) -> Placement          by words alone
    place_by_model(draft, clues, rules, writer)      a language model names a passage for each; the same in and out
    copies(draft, scores, rules) -> {index of a picture to drop: the difference it was decided by}

A picture's words are its alt text and captions, and what can be read in it. A passage fits them by the rare words they
share (BM25 over the page's own passages), most of all those in its headings and at its start. The first passage to
repeat the request announces what others show, so the request's words count little in it. Two things are decided by
evidence, a page at a time: whether the page's places are trusted (then only a picture with a much better place moves),
and whether the pictures' order is kept (where that costs next to nothing of the fit). mmc4 assigns pictures to
sentences in this manner with CLIP; DuoGen asks a model.

`data web` drops a copy right after its picture; one that stood elsewhere on the page stands beside it only now. What a
copy is, is decided as there; with text between them, two may be screens that differ in a number, one for each step, and
both stay. Of two copies side by side the one that fits better stays.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from duogen_core.data.dialogues.draft import Draft
from duogen_core.data.dialogues.rules import RefusedAnswer, prompt
from duogen_core.data.pictures.duplicates import Fingerprint, are_same, fingerprints_of
from duogen_core.data.text import words_of
from duogen_core.document import Picture
from duogen_core.llm.messages import messages

NUMBERED = re.compile(r"^\s*(?:figure|fig\.?|table|image|picture|screenshot)\s*[\d.-]+[.:]?\s*", re.IGNORECASE)
SENTENCE = re.compile(r"(?<=[.!?])\s")
SATURATION, LENGTH = 1.2, 0.3  # BM25's k1 and b
RARITY = 2  # the power of a word's weight: one that stands in one passage counts for many that stand in all


@dataclass(frozen=True)
class Clue:
    """What a picture says about itself: its name (`core`), all that is written about it, and what is read in it."""

    core: str
    rest: str = ""
    seen: str = ""


@dataclass(frozen=True)
class Placement:
    """places as in Draft; scores: how well each picture fits where it was put; why, for the log."""

    places: tuple[int, ...]
    scores: tuple[float, ...]
    trusted: bool
    in_order: bool


def clue_of(picture: Picture) -> Clue:
    texts = {name: str(picture.meta.get(name) or "") for name in ("alt", "title", "caption", "description")}
    caption = SENTENCE.split(NUMBERED.sub("", texts["caption"]))[0]
    core = texts["alt"] or caption or texts["title"] or SENTENCE.split(texts["description"])[0]
    return Clue(core, ". ".join(texts.values()), str(picture.meta.get("visible_text") or ""))


def place(draft: Draft, clues: Sequence[Clue], rules: Mapping[str, Any]) -> Placement:
    """Pictures without a clue stay where they are, or between their neighbours when the order is kept."""
    if not draft.passages or not clues:
        return Placement(draft.places, (0.0,) * len(draft.places), True, True)
    fits = fit(draft, clues, rules)
    here = [_beside(row, place) for row, place in zip(fits, draft.places)]
    best = sum(max(row) for row in fits)
    trusted = sum(here) >= rules["trust"] * best
    order = sorted(range(len(clues)), key=lambda index: draft.places[index])
    rows, now = [fits[index] for index in order], [draft.places[index] for index in order]
    free, kept = _each_best(rows, now), _best_in_order(rows, now)
    in_order = _total(rows, kept) >= (1 - rules["order_loss"]) * _total(rows, free)
    chosen = dict(zip(order, kept if in_order else free))
    places = tuple(
        chosen[index]
        if not trusted or _at(row, chosen[index]) - here[index] >= rules["stay"]
        else _after(row, draft.places[index], rules["next"])
        for index, row in enumerate(fits)
    )
    return Placement(places, tuple(round(_at(row, k), 4) for row, k in zip(fits, places)), trusted, in_order)


def fit(draft: Draft, clues: Sequence[Clue], rules: Mapping[str, Any]) -> list[list[float]]:
    """[pictures][passages]: how well they fit; 0 where they share no word."""
    bags = [Counter(words_of(passage)) for passage in draft.passages]
    leads, starts, sections = _leads(draft.passages, int(rules["start_words"]))
    spread = Counter(word for bag in bags for word in bag)
    lengths = [sum(bag.values()) for bag in bags]
    mean = sum(lengths) / len(lengths) or 1.0
    title = set(words_of(draft.title))
    restating = next((k for k, passage in enumerate(draft.passages) if _restates(passage, title, rules)), None)

    def worth(word: str) -> float:
        rare = math.log(1 + (len(bags) - spread[word] + 0.5) / (spread[word] + 0.5)) ** RARITY
        return rare * (rules["title_weight"] if word in title else 1.0)

    fits = []
    for clue in clues:
        words = _weighted(clue, rules)
        whole = sum(weight * worth(word) for word, weight in words.items() if spread[word]) or 1.0
        row = []
        for k, bag in enumerate(bags):
            score = 0.0
            for word, weight in words.items():
                times = bag[word]
                if word in leads[k]:
                    times += rules["heading_weight"]
                elif word in starts[k]:
                    times += rules["start_weight"]
                if times:
                    long = SATURATION * (1 - LENGTH + LENGTH * lengths[k] / mean)
                    told = rules["restated_weight"] if k == restating and word in title else 1.0
                    score += told * weight * worth(word) * times * (SATURATION + 1) / (times + long)
                elif word in sections[k]:
                    score += weight * worth(word) * rules["section_weight"]
            row.append(score / whole)
        most = max(row)
        fits.append([max(score - 0.05 * most * k / len(row), 0.0) for k, score in enumerate(row)])  # rather early
    return fits


def _weighted(clue: Clue, rules: Mapping[str, Any]) -> dict[str, float]:
    words = dict.fromkeys(words_of(clue.core), 1.0)
    for text, weight in ((clue.rest, rules["rest_weight"]), (clue.seen, rules["seen_weight"])):
        for word in words_of(text):
            words.setdefault(word, weight)
    return words


def _restates(passage: str, title: set[str], rules: Mapping[str, Any]) -> bool:
    """Whether a passage, under its headings, says the title again; a title of few words is a name, not a request."""
    if len(title) < rules["request_words"]:
        return False
    return len(title & set(words_of(_split(passage)[1]))) >= rules["restated_share"] * len(title)


def _split(passage: str) -> tuple[list[str], str]:
    """Its headings, and what stands under them."""
    *headings, body = passage.split("\n\n") if not passage.startswith("```") else [passage]
    return headings, body


def _leads(passages: Sequence[str], most: int) -> tuple[list[set[str]], list[set[str]], list[set[str]]]:
    """Of each passage: the words of its headings, of its start, and of the heading of the section it stands in."""
    leads, starts, sections = [], [], []
    section: set[str] = set()
    for passage in passages:
        headings, body = _split(passage)
        leads.append(set(words_of(" ".join(headings))))
        starts.append(set(words_of(" ".join(body.split()[:most]))))
        section = leads[-1] if passage.startswith("#") else section
        sections.append(section)
    return leads, starts, sections


def _each_best(rows: Sequence[Sequence[float]], now: Sequence[int]) -> list[int]:
    return [
        max(range(len(row)), key=lambda k: (row[k], -abs(k + 1 - place))) + 1 if max(row) > 0 else place
        for row, place in zip(rows, now)
    ]


def _best_in_order(rows: Sequence[Sequence[float]], now: Sequence[int]) -> list[int]:
    """The places that fit best of all that do not change the order; of equal ones, those nearest to where they are."""
    length = len(rows[0])
    totals, steps = [0.0] * length, []
    for row, place in zip(rows, now):
        best, before, new = -math.inf, 0, []
        step = []
        for k in range(length):
            if totals[k] > best:
                best, before = totals[k], k
            new.append(best + row[k] - 1e-3 * abs(k + 1 - place) / length)
            step.append(before)
        totals = new
        steps.append(step)
    k = max(range(length), key=lambda k: totals[k])
    places = []
    for step in reversed(steps):
        places.append(k + 1)
        k = step[k]
    return places[::-1]


def _beside(row: Sequence[float], place: int) -> float:
    """How well a picture fits the passages before and after its place."""
    return max(row[max(place - 1, 0) : place + 1], default=0.0)


def _after(row: Sequence[float], place: int, need: float) -> int:
    """The same place, or just after the next passage where the picture stands before the text it shows."""
    return place + 1 if place < len(row) and row[place] - _at(row, place) >= need else place


def _at(row: Sequence[float], place: int) -> float:
    return row[place - 1] if place else 0.0


def _total(rows: Sequence[Sequence[float]], places: Sequence[int]) -> float:
    return sum(_at(row, place) for row, place in zip(rows, places))


# ------------------------------------------------------------ by a language model

SHOWN = 60  # words of a passage, its first ones


def place_by_model(draft: Draft, clues: Sequence[Clue], rules: Mapping[str, Any], writer: Any) -> Placement:
    if not draft.passages or not clues:
        return Placement(draft.places, (0.0,) * len(draft.places), True, True)
    numbers = list(range(1, len(clues) + 1))

    def check(value: Any) -> None:
        named = [entry["image"] for entry in value["places"]]
        if sorted(named) != numbers:
            raise RefusedAnswer("place.images", named, f"The images are {numbers}, each once; the answer has {named}.")

    data = {"passages": _numbered(draft.passages), "images": _described(clues)}
    asked = messages(prompt("place"), data)
    whole, held = schema(len(clues), len(draft.passages)), narrower(len(clues), len(draft.passages))
    value = writer.ask(asked, whole, 64 + 24 * len(clues), check=check, narrower=held).value
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


def narrower(pictures: int, passages: int) -> dict[str, Any]:
    """The schema that a model run here is held to: every image once, in the order of their numbers."""
    value = schema(pictures, passages)
    entry = value["properties"]["places"].pop("items")
    entries = [entry | {"properties": {**entry["properties"], "image": {"const": k + 1}}} for k in range(pictures)]
    value["properties"]["places"] |= {"prefixItems": entries, "items": False}
    return value


def _numbered(passages: Sequence[str]) -> str:
    return "\n\n".join(f"[{k}] {' '.join(passage.split()[:SHOWN])}" for k, passage in enumerate(passages, 1))


def _described(clues: Sequence[Clue]) -> str:
    lines = []
    for number, clue in enumerate(clues, 1):
        seen = f" | text in it: {clue.seen[:400]}" if clue.seen else ""
        lines.append(f"[image {number}] {clue.core[:300]} | {clue.rest[:600]}{seen}")
    return "\n".join(lines)


# ------------------------------------------------------------ copies

RULE = "duplicate"


def copies(draft: Draft, scores: Sequence[float], rules: Mapping[str, Any]) -> dict[int, float]:
    """Of equal fits the first stays."""
    dropped: dict[int, float] = {}
    if not rules["drop"]:
        return dropped

    @cache
    def fingerprints(index: int) -> tuple[Fingerprint, ...]:
        return fingerprints_of(draft.pictures[index].pixels)

    last: int | None = None
    for index in sorted(range(len(draft.pictures)), key=lambda index: draft.places[index]):
        if last is not None and draft.places[last] == draft.places[index]:
            same, difference = are_same(fingerprints(last), fingerprints(index), rules)
            if same:
                worse = last if scores[index] > scores[last] else index
                dropped[worse] = difference
                last = index if worse == last else last
                continue
        last = index
    return dropped
