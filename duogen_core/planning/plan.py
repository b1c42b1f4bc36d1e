"""Plan: an answer of texts and pictures before anything is drawn. Ours; the shape of its JSON:

    {"title": "A paper boat", "style": "flat drawing", "cast": [{"name": "Paper", "looks": "a square white sheet"}],
     "parts": [{"text": "Fold it in half.", "picture": "A square white sheet, folded in half on a table."},
               {"text": "Done.", "picture": null},
               {"text": "…", "picture": {"shows": "…", "looks_at": [{"picture": 1, "why": "cast"}], "size": [64, 48]}}]}

style is the user's: writers are never asked for one. cast: whoever or whatever stays the same from picture to picture.
looks_at: earlier pictures of this answer, counted from 1, which the painter is to see; `references` finds them where
it is left out.
`plan_schema` is what a writer fills in: the short form, in which a picture is one string.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from duogen_core.document import plain_json
from duogen_core.document.pending import SIDES
from duogen_core.errors import DuoGenError

if TYPE_CHECKING:
    from duogen_core.planning.requests import Wish

Why = Literal["cast", "before"]
WHY = ("cast", "before")
MAX_PARTS, MAX_CAST = 100, 20
MAX_TEXT = 20_000  # characters of one text of a plan
MOST_REFERENCES = 3  # of those that are found; what edit models take


@dataclass(frozen=True)
class Member:
    """One of the cast: a person, animal, object or place that looks the same in every picture."""

    name: str
    looks: str = ""


@dataclass(frozen=True)
class Reference:
    """An earlier picture of this answer, counted from 1, and why the painter sees it."""

    picture: int
    why: Why = "before"


@dataclass(frozen=True)
class PlannedPicture:
    shows: str
    looks_at: tuple[Reference, ...] | None = None
    size: tuple[int, int] | None = None  # (width, height)


@dataclass(frozen=True)
class Part:
    text: str
    picture: PlannedPicture | None = None


@dataclass(frozen=True)
class Plan:
    """See the module. Checked when made: a DuoGenError says which part is wrong, and how."""

    title: str
    parts: tuple[Part, ...]
    cast: tuple[Member, ...] = ()
    style: str = ""

    def __post_init__(self) -> None:
        if not self.parts:
            raise DuoGenError("The plan has no parts; expected at least one part with a text or an image.")
        if len(self.parts) > MAX_PARTS:
            raise DuoGenError(
                f"The plan has {len(self.parts)} parts; expected at most {MAX_PARTS}; make several plans of it."
            )
        if len(self.cast) > MAX_CAST:
            raise DuoGenError(f"The plan's cast has {len(self.cast)} members; expected at most {MAX_CAST}.")
        names = [member.name.casefold() for member in self.cast]
        for member in self.cast:
            if not member.name.strip():
                raise DuoGenError("A member of the plan's cast has no name; expected a name and its looks.")
            if names.count(member.name.casefold()) > 1:
                raise DuoGenError(f"The plan's cast names {member.name!r} twice; leave one of them out.")
        drawn = 0
        for number, part in enumerate(self.parts, 1):
            if part.picture is None:
                if not part.text.strip():
                    raise DuoGenError(f"Part {number} of the plan is empty; expected a text, an image, or both.")
                continue
            if not part.picture.shows.strip():
                raise DuoGenError(f"The image of part {number} of the plan says not what it shows; describe it.")
            for reference in part.picture.looks_at or ():
                if not 1 <= reference.picture <= drawn:
                    known = f"earlier images are 1 to {drawn}" if drawn else "no image comes before it"
                    raise DuoGenError(f"The image of part {number} looks at image {reference.picture}, but {known}.")
            for side in part.picture.size or ():
                if not SIDES[0] <= side <= SIDES[1]:
                    raise DuoGenError(
                        f"The image of part {number} has a side of {side} pixels; expected {SIDES[0]} to {SIDES[1]}."
                    )
            drawn += 1

    @property
    def pictures(self) -> tuple[PlannedPicture, ...]:
        return tuple(part.picture for part in self.parts if part.picture is not None)

    def with_style(self, style: str) -> Plan:
        return replace(self, style=style.strip()) if style.strip() else self

    def with_part(self, index: int, part: Part) -> Plan:
        return replace(self, parts=(*self.parts[:index], part, *self.parts[index + 1 :]))

    def to_json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "style": self.style,
            "cast": [{"name": member.name, "looks": member.looks} for member in self.cast],
            "parts": [{"text": part.text, "picture": _picture_json(part.picture)} for part in self.parts],
        }

    @staticmethod
    def from_json(value: Any) -> Plan:
        """Reads the JSON strictly: exactly these names and types. For what models write: `reading.read_plan`."""
        plan = _object(value, "The plan", {"title", "style", "cast", "parts"}, {"parts"})
        cast = [
            _object(each, f"Member {number} of the plan's cast", {"name", "looks"}, {"name"})
            for number, each in enumerate(_list(plan.get("cast", []), "The plan's cast"), 1)
        ]
        parts = []
        for number, each in enumerate(_list(plan["parts"], "The plan's parts"), 1):
            where = f"Part {number} of the plan"
            part = _object(each, where, {"text", "picture"}, set())
            parts.append(Part(_text(part.get("text", ""), f"The text of p{where[1:]}"), _picture(part, where)))
        return Plan(
            _text(plan.get("title", ""), "The plan's title"),
            tuple(parts),
            tuple(
                Member(_text(one["name"], "A name"), _text(one.get("looks", ""), "A member's looks")) for one in cast
            ),
            _text(plan.get("style", ""), "The plan's style"),
        )


def references(plan: Plan, number: int) -> tuple[Reference, ...]:
    """Returns which earlier pictures the plan's picture `number` (from 1) looks at: its own list, else found.

    Found are the picture before it, which shows the state before the step, and for each of the cast that it names the
    first picture that does, where their looks were set. At most MOST_REFERENCES, in the order of the pictures.
    """
    picture = plan.pictures[number - 1]
    if picture.looks_at is not None:
        return picture.looks_at
    if number == 1:
        return ()
    found: dict[int, Why] = {number - 1: "before"}
    for member in plan.cast:
        if not appears(member, picture.shows):
            continue
        first = next((k for k, one in enumerate(plan.pictures[: number - 1], 1) if appears(member, one.shows)), None)
        if first is not None and len(found) < MOST_REFERENCES:
            found.setdefault(first, "cast")
    return tuple(Reference(k, found[k]) for k in sorted(found))


def appears(member: Member, text: str) -> bool:
    """Whether a text names one of the cast: whole words, in any case; an article of the name does not count."""
    name = re.sub(r"^(the|a|an|der|die|das|ein|eine|el|la|los|las|un|una)\s+", "", member.name.strip().casefold())
    if not name:
        return False
    if re.search(r"[぀-鿿가-힯]", name):  # written without spaces
        return name in text.casefold()
    return re.search(rf"(?<!\w){re.escape(name)}(e?s|'s|n|en|er)?(?!\w)", text.casefold()) is not None


# ------------------------------------------------------------ the schema that a writer fills in

# What a small model writes into a field of its own accord is often no sentence: numbers ("1. Fold …"), names of files
# ("step_1.jpg"), JSON in a string, half of one. So a model that is held to the schema is held to sentences, too: words
# with single spaces between, the first without a digit, a full stop at the end. A caption is one sentence, without a
# point in it, which every file name has; a text is one or two.
SHOWN = "picture_description"  # "picture" alone is the name of a file to models that were taught code
UNSPACED = {"zh", "ja", "th"}  # languages without spaces between words
NAME, TITLE = r'[^"\\\n<>{}_]{1,40}', r'[^"\\\n<>{}_]{1,80}'
LOOKS = r'[^"\\\n<>{}_]{3,100}'
CAST = 1, 4
FEWEST, MOST = 3, 6  # parts of a guide or story where the request names no number
TITLE_TOKENS, PART_TOKENS, MEMBER_TOKENS = 60, 130, 60  # budgets: a grammar alone does not end a text in time


def plan_schema(wish: Wish, sentences: bool = True) -> dict[str, Any]:
    """The JSON schema of an answer to this request: as many parts as it asks for, each with a picture, or none.

    sentences: with patterns that only whole sentences fit, for models that cannot but write what fits.
    """
    plain = _schema(_parts(wish, pictures=False, sentences=sentences), sentences)
    drawn = _schema(_parts(wish, pictures=True, sentences=sentences), sentences, cast=True)
    if wish.pictured is not None:
        return drawn if wish.pictured else plain
    return {
        "anyOf": [
            {
                **schema,
                "properties": {"kind": {"type": "string", "enum": [kind]}, **schema["properties"]},
                "required": ["kind", *schema["required"]],
            }
            for kind, schema in (("plain", plain), ("illustrated", drawn))
        ]
    }


def sentence_patterns(language: str) -> tuple[str, str]:
    """What a text, and what a caption, has to look like in a language: whole sentences of whole words.

    Chinese, Japanese and Korean letters are for these languages alone: small models fall into them within a word.
    """
    never = rf"\s\"\\<>{{}}_|\[\]*=`.!?…。！？{'' if language in UNSPACED | {'ko', ''} else '぀-ヿ㐀-鿿가-힯'}"
    addresses = "/:;()&#"  # what files and addresses have, and captions do not
    long_word, seen = rf"[^{never}]{{1,24}}(\.[0-9a-z]{{1,4}}){{0,2}}", f"[^{never}{addresses}]{{1,24}}"  # 1.5, e.g
    end = "[.!?…]['’”]?"  # of somebody's words
    first = f"[^{never}0-9#(-][^{never}]{{0,23}}"
    text = f"{first}( {long_word}){{1,22}}{end}( {first}( {long_word}){{1,22}}{end})?"
    caption = f"[^{never}{addresses}0-9-][^{never}{addresses}0-9-]{{0,23}}( {seen}){{4,26}}[.!]"
    unspaced = f"[^{never}0-9#(-][^{never}]{{3,80}}[。！？]"
    if language in UNSPACED:
        return f"^{unspaced}({unspaced})?$", f"^{unspaced}$"
    if not language:  # a request of few words may be in any
        return f"^({text}|{unspaced}({unspaced})?)$", f"^({caption}|{unspaced})$"
    return f"^{text}$", f"^{caption}$"


def token_budget(wish: Wish) -> int:
    """How many tokens a plan of this request may take; more than a sound one needs."""
    if wish.pictured is False:
        return TITLE_TOKENS + counts(wish, pictures=False)[1] * PART_TOKENS
    return TITLE_TOKENS + CAST[1] * MEMBER_TOKENS + counts(wish, pictures=True)[1] * PART_TOKENS * 2


def counts(wish: Wish, pictures: bool) -> tuple[int, int]:
    """How few and how many parts a plan may have. Without pictures a plain answer is short, a guide still a guide."""
    long = pictures or wish.kind in ("howto", "story")
    fewest, most = wish.parts(FEWEST, MOST) if long else wish.parts(1, 3)
    return max(1, min(fewest, MAX_PARTS)), max(1, min(most, MAX_PARTS))


def _parts(wish: Wish, pictures: bool, sentences: bool) -> dict[str, Any]:
    text, caption = sentence_patterns(wish.language) if sentences else ("", "")
    fields = {"text": _string(text)} | ({SHOWN: _string(caption)} if pictures else {})
    fewest, most = counts(wish, pictures)
    return {"type": "array", "items": _fields(fields), "minItems": fewest, "maxItems": most}


def _schema(parts: Mapping[str, Any], sentences: bool, cast: bool = False) -> dict[str, Any]:
    name, looks = (_string(f"^{pattern}$" if sentences else "") for pattern in (NAME, LOOKS))
    members = {"type": "array", "items": _fields({"name": name, "looks": looks}), "minItems": CAST[0]}
    cast_field = {"cast": {**members, "maxItems": CAST[1]}} if cast else {}
    title = _string(f"^{TITLE}$" if sentences else "")
    return _fields({"title": title, **cast_field, "parts": dict(parts)})


def _string(pattern: str) -> dict[str, Any]:
    return {"type": "string", **({"pattern": pattern} if pattern else {})}


def _fields(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


# ------------------------------------------------------------ reading the JSON strictly


def _picture_json(picture: PlannedPicture | None) -> Any:
    if picture is None:
        return None
    more: dict[str, Any] = {}
    if picture.looks_at is not None:
        more["looks_at"] = [{"picture": one.picture, "why": one.why} for one in picture.looks_at]
    if picture.size is not None:
        more["size"] = list(picture.size)
    return {"shows": picture.shows, **more} if more else picture.shows


def _picture(part: Mapping[str, Any], where: str) -> PlannedPicture | None:
    value = part.get("picture")
    if value is None or value == "":
        return None
    where = f"The image of p{where[1:]}"
    if isinstance(value, str):
        return PlannedPicture(_text(value, where))
    picture = _object(value, where, {"shows", "looks_at", "size"}, {"shows"})
    looks_at = None
    if "looks_at" in picture:
        looks_at = tuple(
            _reference(_object(one, f"{where}, looks_at", {"picture", "why"}, {"picture"}), where)
            for one in _list(picture["looks_at"], f"{where}, looks_at")
        )
    size = None
    if "size" in picture:
        size = picture["size"]
        if not isinstance(size, list) or len(size) != 2 or not all(type(side) is int for side in size):
            raise DuoGenError(f"{where} has a size that is not [width, height] in whole pixels.")
    return PlannedPicture(_text(picture["shows"], where), looks_at, tuple(size) if size else None)


def _reference(value: Mapping[str, Any], where: str) -> Reference:
    number, why = value["picture"], value.get("why", "before")
    if type(number) is not int or why not in WHY:
        raise DuoGenError(f"{where} looks at something that is not an image's number with a why of {' or '.join(WHY)}.")
    return Reference(number, why)


def _object(value: Any, where: str, known: set[str], needed: set[str]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise DuoGenError(f"{where} is not a JSON object; expected one with {', '.join(sorted(known))}.")
    if unknown := sorted(set(value) - known):
        raise DuoGenError(f"{where} has the unknown field {unknown[0]!r:.60}; known are {', '.join(sorted(known))}.")
    if missing := sorted(needed - set(value)):
        raise DuoGenError(f"{where} has no {missing[0]}; add it.")
    return value


def _list(value: Any, where: str) -> Sequence[Any]:
    if not isinstance(value, list):
        raise DuoGenError(f"{where} is not a list; expected a JSON array.")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise DuoGenError(f"{where} is not a text; expected a string.")
    if len(value) > MAX_TEXT:
        raise DuoGenError(f"{where} has {len(value):,} characters; expected at most {MAX_TEXT:,}.")
    return plain_json(value, where)
