"""What writers really write -> Plan, with patience; part by part while it streams.

    reader = PlanReader(on_part);  reader.put("…");  plan = reader.plan()          or  read_plan(text)

Understood besides our own JSON: thoughts before it, fences and prose around it, raw newlines in strings, too many
commas, other names of the fields, a bare list of parts, and a text that ends too early: what was finished counts, and a
part that was not is left out (`PlanReader.cut` says so). JSON is read by Python's own decoder, value by value. A reply
without JSON of a plan is read as the Markdown form (`duogen_core.planning.markdown`). What cannot be read, and what a
Plan cannot hold, is a PlanError, whose sentence the writer is told when it is asked once more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from duogen_core.document import valid_unicode
from duogen_core.errors import DuoGenError
from duogen_core.llm.answers import AnswerError
from duogen_core.planning.plan import MAX_CAST, MAX_PARTS, Member, Part, Plan, PlannedPicture

MOST = 400_000  # characters of a reply that are looked at
MOST_OPENINGS = 300  # brackets at which JSON may begin
PARTS = ("parts", "steps", "scenes", "pages", "panels", "story", "guide", "instructions")
TEXT = ("text", "instruction", "step", "description", "content", "narration", "caption_text", "explanation")
PICTURE = ("picture", "image", "illustration", "picture_description", "image_description", "image_prompt", "prompt",
           "visual", "caption", "drawing")  # fmt: skip
SHOWS = ("shows", "description", "prompt", "text", "caption", *PICTURE)
NAME, LOOKS = ("name", "character", "who"), ("looks", "look", "appearance", "description")
NOTHING = {"", "null", "none", "n/a", "no picture", "no image", "-"}
THOUGHTS = re.compile(r"\A\s*<think>.*?(</think>|\Z)", re.DOTALL)
FENCE = re.compile(r"^\s*```[a-zA-Z]*\s*|\s*```\s*$")
WHITE = re.compile(r"[\s,]*")
SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’»)\]]*(?=\s|$)|[。！？][”’」』）]*")
DECODER = json.JSONDecoder(strict=False)  # strings may hold raw newlines


class PlanError(AnswerError):
    """The reply is no plan. The writer is shown the sentence when it is asked again."""


def read_plan(text: str) -> Plan:
    reader = PlanReader()
    reader.put(text)
    return reader.plan()


@dataclass
class PlanReader:
    """Collects a reply while it streams. on_part(index, part) is called once for each part, as soon as it is whole."""

    on_part: Callable[[int, Part], None] | None = None
    text: str = ""
    told: int = 0
    cut: bool = False  # whether the reply that `plan` has read ended too early
    looked: int = field(default=0, repr=False)  # length of the text when it was last looked through

    def put(self, piece: str) -> None:
        self.text = (self.text + piece)[:MOST]
        # A part can only have become whole with a closing brace, and looking at every one of them would be quadratic.
        new = len(self.text) - self.looked
        if self.on_part is None or new <= len(self.text) // 64 or "}" not in self.text[self.looked :]:
            return
        self.looked = len(self.text)
        for index, part in enumerate(_parts(_found(self.text))[:MAX_PARTS]):
            if index >= self.told:
                self.told = index + 1
                self.on_part(index, part)

    def plan(self) -> Plan:
        """Returns the plan of all that is whole. Raises PlanError."""
        found = _found(self.text)
        parts = _parts(found)
        if not parts:
            return self._of_markdown(found)
        self.cut = found.cut or len(self.text) == MOST
        title, style = found.value.get("title"), found.value.get("style")
        try:
            plan = Plan(_line(title), parts, _cast(found.value.get("cast")), _line(style))
            Plan.from_json(plan.to_json())  # a document keeps it so, and must be able to read it again
        except DuoGenError as error:
            raise PlanError(str(error)) from None
        if self.on_part is not None:
            for index in range(self.told, len(parts)):
                self.on_part(index, parts[index])
            self.told = len(parts)
        return plan

    def _of_markdown(self, found: _Found | None) -> Plan:
        """found: JSON in the text that is no plan; a text may speak of JSON, too."""
        from duogen_core.planning.markdown import plan_from_markdown

        text = FENCE.sub("", THOUGHTS.sub("", self.text)).strip()
        try:
            plan = plan_from_markdown(text)
        except DuoGenError:
            plan = None
        if plan is not None and plan.pictures:  # any text at all is a Markdown plan of one part
            return plan
        if found is None:
            raise PlanError(
                "The answer is not JSON; answer with one JSON object that has title and parts, and nothing else."
            )
        reason = "it was cut off before its first part was whole" if found.cut else "it has no parts"
        raise PlanError(
            f"The answer holds no plan: {reason}. Answer with one JSON object that has title and parts, each part "
            "with text and picture."
        )


def whole_sentences(text: str) -> str:
    """Returns a text cut back to its last whole sentence; as it is where it holds none, or ends with one."""
    ends = [found.end() for found in SENTENCE_END.finditer(text)]
    return text[: ends[-1]].rstrip() if ends else text


# ------------------------------------------------------------ the JSON in a reply, as far as it is whole


@dataclass
class _Found:
    value: dict[str, Any]
    cut: bool


def _found(text: str) -> _Found | None:
    """Returns the first object with parts, or list of them, that stands in the text; None: there is no JSON."""
    text = THOUGHTS.sub("", text)
    first: _Found | None = None
    end = 0
    for opening in islice(re.finditer(r"[\[{]", text), MOST_OPENINGS):
        if opening.start() < end:
            continue  # inside what was read
        try:
            value, end, cut = _read(text, opening.start())
        except RecursionError:
            continue
        if isinstance(value, list):
            value = {"parts": value} if any(isinstance(each, Mapping) for each in value) else {}
        if not value:  # a bracket of the prose
            end = 0 if cut else end
            continue
        found = _Found(_unwrapped(value), cut)
        if _field(found.value, PARTS):
            return found
        first = first or found
    return first


def _unwrapped(value: dict[str, Any]) -> dict[str, Any]:
    """Some put the plan into an object of its own: {"plan": {…}}."""
    for inner in value.values():
        if not _field(value, PARTS) and isinstance(inner, Mapping) and _field(inner, PARTS):
            return dict(inner)
    return value


def _read(text: str, start: int) -> tuple[Any, int, bool]:
    """Reads a value from its first character on: (value, end, cut). Of an object or list that is not whole, the
    members that are; anything else that is not whole is None."""
    if text[start] not in "{[":
        try:
            return (*DECODER.raw_decode(text, start), False)
        except (ValueError, RecursionError):
            return None, len(text), True
    try:
        return (*DECODER.raw_decode(text, start), False)
    except RecursionError:
        return ({} if text[start] == "{" else []), len(text), True
    except ValueError:
        pass
    is_object, place = text[start] == "{", start + 1
    members: dict[str, Any] = {}
    items: list[Any] = []
    while True:
        place = WHITE.match(text, place).end()
        if place >= len(text):
            return (members if is_object else items), place, True
        if text[place] in "}]":
            return (members if is_object else items), place + 1, False
        key = None
        if is_object:
            key, place, cut = _read(text, place)
            colon = re.compile(r"\s*:\s*").match(text, place)
            if cut or not isinstance(key, str) or colon is None or colon.end() >= len(text):
                return members, len(text), True
            place = colon.end()
        value, place, cut = _read(text, place)
        # Of an inner object that was cut off, only the list of parts is of use: half a part is none.
        if not cut or (is_object and isinstance(value, (list, dict)) and value and key is not None):
            if is_object:
                members[key] = value
            else:
                items.append(value)
        if cut:
            return (members if is_object else items), len(text), True


# ------------------------------------------------------------ fields by any name


def _parts(found: _Found | None) -> tuple[Part, ...]:
    if found is None:
        return ()
    value = _field(found.value, PARTS)
    if isinstance(value, Mapping):  # {"1": {…}, "2": {…}}
        value = list(value.values())
    parts = []
    for each in value if isinstance(value, list) else ():
        if isinstance(each, str):
            each = {"text": each}
        if not isinstance(each, Mapping):
            continue
        text = _text(_field(each, TEXT))
        picture = _picture(_field(each, PICTURE))
        if text or picture:
            parts.append(Part(text, picture))
    return tuple(parts)


def _picture(value: Any) -> PlannedPicture | None:
    more: dict[str, Any] = {}
    if isinstance(value, list):
        value = value[0] if len(value) == 1 else " ".join(_text(each) for each in value)
    if isinstance(value, Mapping):
        size = value.get("size")
        sides = size if isinstance(size, list) and len(size) == 2 and all(type(s) is int for s in size) else None
        if sides and all(64 <= side <= 4096 for side in sides):
            more["size"] = tuple(sides)
        value = _field(value, SHOWS)
    shows = _line(value)
    if shows.casefold().rstrip(".") in NOTHING:
        return None
    return PlannedPicture(shows, **more)


def _cast(value: Any) -> tuple[Member, ...]:
    members: dict[str, Member] = {}
    if isinstance(value, Mapping):  # {"Fox": "a small red fox"}
        value = [{"name": name, "looks": looks} for name, looks in value.items()]
    for each in value if isinstance(value, list) else ():
        if isinstance(each, str):
            each = dict(zip(("name", "looks"), re.split(r"\s*[:–—]\s*", each, maxsplit=1)))
        if isinstance(each, Mapping):
            name, looks = _line(_field(each, NAME)), _line(_field(each, LOOKS))
            if name and name.casefold() not in NOTHING:
                members.setdefault(name.casefold(), Member(name, looks))
    return tuple(members.values())[:MAX_CAST]


def _field(value: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    known = {str(key).strip().casefold().replace(" ", "_").replace("-", "_"): each for key, each in value.items()}
    return next((known[name] for name in names if name in known), None)


def _text(value: Any) -> str:
    if isinstance(value, list):
        value = "\n".join(str(each) for each in value if isinstance(each, str))
    text = value if isinstance(value, str) else str(value) if isinstance(value, (int, float)) else ""
    return valid_unicode(text).strip()


def _line(value: Any) -> str:
    return " ".join(_text(value).split())
