"""Document: the one value that flows everywhere (prompt, context, result, training sample, evaluation case).

Ordered turns (system, user, assistant) of ordered parts (Text, Picture). All of it is immutable: every stage returns
a longer Document. Pictures are uint8 RGB arrays [H, W, 3], read-only. `meta` and `generation` hold plain JSON values;
they are copied on the way in and must not be changed afterwards. On disk: `duogen_core.document.store`.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np

from duogen_core.document.picture_file import decode_picture, encode_png, read_picture_bytes
from duogen_core.errors import DuoGenError

Role = Literal["system", "user", "assistant"]
ROLES: tuple[str, ...] = get_args(Role)


# Lists and mappings in one another in a `meta`. Fewer than a JSON file may have (`files.MAX_DEPTH`), so that every
# document that can be made can also be read again.
MAX_DEPTH = 150

# Where a value stands: the place it is in, and its name there. A string is made of it only for an error: names may be
# long, and with every level there would be a longer string.
_Place = tuple[Any, str]


def plain_json(value: Any, where: str = "meta") -> Any:
    """A deep copy of `value` made of JSON types only, so that what is saved is exactly what is loaded again."""
    return _plain(value, (None, where), 1)


def _plain(value: Any, place: _Place, depth: int) -> Any:
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        return _checked_text(value, place)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise DuoGenError(f"{_said(place)} is {value}, which JSON cannot hold; use a finite number or null.")
        return float(value)
    if isinstance(value, (Mapping, list, tuple)) and depth > MAX_DEPTH:
        raise DuoGenError(
            f"{_said(place)[:200]} is nested too deeply; at most {MAX_DEPTH} lists and mappings may stand in one "
            "another."
        )
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise DuoGenError(f"{_said(place)} has the key {key!r}, but JSON keys are strings.")
            _checked_text(key, place)
        return {key: _plain(item, (place, f".{key}"), depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, (place, f"[{i}]"), depth + 1) for i, item in enumerate(value)]
    if isinstance(value, np.generic) and not isinstance(plain := value.item(), np.generic):
        return _plain(plain, place, depth)
    if isinstance(value, os.PathLike):
        return _checked_text(os.fspath(value), place)
    raise DuoGenError(
        f"{_said(place)} is a {type(value).__name__}, which JSON cannot hold; use strings, numbers and lists."
    )


def _said(place: _Place | str) -> str:
    names: list[str] = []
    while not isinstance(place, str):
        above, name = place
        names.append(name)
        place = "" if above is None else above
    return "".join(reversed(names)) or place


def is_text(text: str) -> bool:
    """Whether a string is Unicode: files and JSON may hold half a character pair, which nothing can be written as."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def valid_unicode(text: str) -> str:
    """Returns a text of a model as it can be kept: JSON may hold half a character pair, which becomes a "?"."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _checked_text(text: Any, place: _Place | str) -> str:
    if not isinstance(text, str):
        raise DuoGenError(f"{_said(place)} must be a string, not {type(text).__name__}.")
    if not is_text(text):
        raise DuoGenError(f"{_said(place)} is not valid Unicode (it holds half a character pair); enter it again.")
    return str(text)


def _checked_mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise DuoGenError(f"{where} must be a mapping of names to values, not {type(value).__name__}.")
    return plain_json(value, where)


@dataclass(frozen=True)
class Text:
    """A stretch of text, verbatim."""

    text: str
    meta: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", _checked_text(self.text, "A text part"))
        object.__setattr__(self, "meta", _checked_mapping(self.meta, "meta"))


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture: uint8 RGB [H, W, 3]. Two pictures are equal when their pixels and their meta are."""

    pixels: np.ndarray = field(repr=False)
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        pixels = self.pixels
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            found = f"{pixels.dtype} {list(pixels.shape)}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
            raise DuoGenError(f"An image must be a uint8 array [height, width, 3], not {found}.")
        if 0 in pixels.shape:
            raise DuoGenError(f"An image must have at least one pixel, not the shape {list(pixels.shape)}.")
        # An array nobody can write to is shared, anything else is copied: a Document never changes under its readers.
        if pixels.flags.writeable or pixels.base is not None or not pixels.flags.c_contiguous:
            pixels = np.array(pixels, order="C", copy=True)
            pixels.flags.writeable = False
        object.__setattr__(self, "pixels", pixels)
        object.__setattr__(self, "meta", _checked_mapping(self.meta, "meta"))

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], meta: Mapping[str, Any] | None = None) -> Picture:
        """Reads a picture file strictly (see `duogen_core.document.picture_file`)."""
        data, name = read_picture_bytes(path)
        return cls.from_bytes(data, name=name, meta=meta)

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "picture", meta: Mapping[str, Any] | None = None) -> Picture:
        """Decodes the bytes of a picture file strictly; `name` is what error messages call it."""
        return cls(decode_picture(data, name), meta or {})

    def to_png(self) -> bytes:
        """A PNG with `seed` and step `text` of the meta in its text fields. Same picture, same bytes."""
        return encode_png(self.pixels, {key: str(self.meta[key]) for key in ("seed", "text") if key in self.meta})

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]

    @cached_property
    def digest(self) -> str:
        """A hash of size and pixels, without the meta: what caches key on."""
        header = f"{self.pixels.shape[1]}x{self.pixels.shape[0]}:".encode()
        return hashlib.sha256(header + self.pixels.tobytes()).hexdigest()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Picture):
            return NotImplemented
        return self is other or (self.meta == other.meta and np.array_equal(self.pixels, other.pixels))

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Picture({self.size[0]}x{self.size[1]}, meta={self.meta!r})"


class PictureHeader(Picture):
    """A picture of which only the size was read: whatever counts tokens needs no pixels, and has none here."""

    def __init__(self, size: tuple[int, int], meta: Mapping[str, Any] | None = None) -> None:
        object.__setattr__(self, "_size", (int(size[0]), int(size[1])))
        object.__setattr__(self, "meta", _checked_mapping(meta or {}, "meta"))

    @property
    def pixels(self) -> np.ndarray:  # type: ignore[override]
        raise RuntimeError("Of this picture only the header was read; it has no pixels.")

    @property
    def size(self) -> tuple[int, int]:
        return self._size

    __eq__, __hash__ = object.__eq__, object.__hash__


Part = Text | Picture


@dataclass(frozen=True)
class Turn:
    """What one speaker says: parts in order."""

    role: Role
    parts: tuple[Part, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise DuoGenError(f"A turn has the role {self.role!r}; expected one of {', '.join(ROLES)}.")
        if isinstance(self.parts, (str, Text, Picture)):
            raise DuoGenError("The parts of a turn are a sequence of Text and Picture, not a single one.")
        object.__setattr__(self, "parts", tuple(self.parts))
        for i, part in enumerate(self.parts):
            if not isinstance(part, (Text, Picture)):
                raise DuoGenError(f"Part {i} of a turn is a {type(part).__name__}; expected Text or Picture.")
        object.__setattr__(self, "meta", _checked_mapping(self.meta, "meta"))

    @property
    def text(self) -> str:
        """All text of the turn, joined without anything between."""
        return "".join(part.text for part in self.parts if isinstance(part, Text))

    @property
    def pictures(self) -> tuple[Picture, ...]:
        return tuple(part for part in self.parts if isinstance(part, Picture))


@dataclass(frozen=True)
class Document:
    """Turns in order, how the answer was made (`generation`), and anything else about it (`meta`)."""

    turns: tuple[Turn, ...] = ()
    generation: Mapping[str, Any] = field(default_factory=dict, hash=False)
    meta: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "turns", tuple(self.turns))
        for i, turn in enumerate(self.turns):
            if not isinstance(turn, Turn):
                raise DuoGenError(f"Turn {i} of a document is a {type(turn).__name__}; expected Turn.")
        object.__setattr__(self, "generation", _checked_mapping(self.generation, "generation"))
        object.__setattr__(self, "meta", _checked_mapping(self.meta, "meta"))

    def begin_turn(self, role: Role, parts: Iterable[Part] = ()) -> Document:
        """A Document with one more turn."""
        return replace(self, turns=(*self.turns, Turn(role, tuple(parts))))

    def append(self, part: Part) -> Document:
        """A Document whose last turn has one more part."""
        last = self.last_turn
        return replace(self, turns=(*self.turns[:-1], replace(last, parts=(*last.parts, part))))

    def replace_generation(self, **values: Any) -> Document:
        """A Document with these values set in `generation`; the others stay."""
        return replace(self, generation={**self.generation, **values})

    @property
    def last_turn(self) -> Turn:
        if not self.turns:
            raise DuoGenError("The document has no turn yet; begin one with a role first.")
        return self.turns[-1]

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All pictures of all turns, in order of appearance: the order of the files on disk and of latent frames."""
        return tuple(picture for turn in self.turns for picture in turn.pictures)

    @property
    def text(self) -> str:
        """All text of the last turn."""
        return self.last_turn.text
