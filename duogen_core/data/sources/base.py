"""What every source is: `Source`, what it yields (`Sample`, `Bad`), and what a sample must be (`Limits`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from duogen_core.data.runs.machine import gave_out
from duogen_core.data.sources.order import mix, shuffled
from duogen_core.document import Document, Picture, Text
from duogen_core.errors import DuoGenError, is_out_of_memory, shown

MOST_CHARACTERS = 1000  # of a sentence


class Excluded(DuoGenError):
    """Nothing is wrong with the sample, but it is not wanted here."""


@dataclass(frozen=True)
class Bad:
    """A sample that cannot be used, and why, in a sentence that names the file and the field.

    excluded: it could be used, but was not asked for.
    """

    source: str
    index: int
    label: str
    sentence: str
    excluded: bool = False


@dataclass(frozen=True)
class Sample:
    """A document that can be learnt from, and where it came from. skipped: bad samples whose place it took."""

    document: Document
    source: str
    index: int
    label: str
    skipped: tuple[Bad, ...] = ()


OnBad = Callable[[Bad], None]


@dataclass(frozen=True)
class Limits:
    """What a sample may be. Sizes in pixels; an aspect is the longer side over the shorter one."""

    max_side: int = 8192
    max_aspect: float = 200.0  # beyond it the MLLM's image processor refuses the picture
    max_pictures: int = 64
    max_tokens: float = float("inf")  # as `count_tokens` counts them
    count_tokens: Callable[[Document], int] | None = None
    alignment: bool = True  # whether documents that are alignment data (meta.alignment is true) are wanted

    def __post_init__(self) -> None:
        for name in ("max_side", "max_aspect", "max_pictures", "max_tokens"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 1:
                raise DuoGenError(f"{name} is {value!r}; expected a number of at least 1.")

    def check(self, document: Document) -> None:
        """Raise a DuoGenError for a document that cannot be learnt from, Excluded for one that is not wanted."""
        if not self.alignment and document.meta.get("alignment") is True:
            raise Excluded("it is alignment data (meta.alignment), which is left out here.")
        _check_roles([turn.role for turn in document.turns])
        for i, turn in enumerate(document.turns):
            if not any(not isinstance(part, Text) or part.text.strip() for part in turn.parts):
                raise DuoGenError(f"turns[{i}] ({turn.role}) is empty: it has no picture and no text.")
        if not any(turn.text.strip() for turn in document.turns):
            raise DuoGenError("it has no text at all, only pictures; a sample needs a request or an answer in words.")
        if len(document.pictures) > self.max_pictures:
            raise DuoGenError(f"it has {len(document.pictures)} pictures; at most {self.max_pictures} are allowed.")
        for i, turn in enumerate(document.turns):
            for k, part in enumerate(turn.parts):
                if isinstance(part, Picture):
                    self._check_size(*part.size, f"turns[{i}].parts[{k}], a picture,")
        if self.count_tokens is not None and (tokens := self.count_tokens(document)) > self.max_tokens:
            raise DuoGenError(f"it has {tokens:,} tokens; at most {self.max_tokens:,} are allowed. Split it.")

    def _check_size(self, width: int, height: int, where: str) -> None:
        if max(width, height) > self.max_side:
            raise DuoGenError(
                f"{where} is {width}x{height} pixels; at most {self.max_side:,} a side are allowed. Make it smaller, "
                "or raise max_side."
            )
        if max(width, height) > self.max_aspect * min(width, height):
            raise DuoGenError(
                f"{where} is {width}x{height} pixels, more than {self.max_aspect:g} times as long as it is wide; crop "
                "it."
            )


def _check_roles(roles: list[str]) -> None:
    if not roles:
        raise DuoGenError("it has no turns; expected a user turn and an assistant turn.")
    if "assistant" not in roles:
        raise DuoGenError("it has no assistant turn, so there is nothing to learn from it.")
    for i, role in enumerate(roles):
        if role == "system":
            if i:
                raise DuoGenError(f"turns[{i}] has the role system; only the first turn may have it.")
            continue
        before = roles[i - 1] if i else "system"
        expected = "assistant" if before == "user" else "user"
        if role != expected:
            raise DuoGenError(
                f"turns[{i}] has the role {role}; expected {expected}, since user and assistant take turns and the "
                "user begins."
            )


class Source(ABC):
    """A named collection of documents, read one at a time; see the package for the contract."""

    endless = False

    def __init__(self, name: str, limits: Limits | None = None) -> None:
        self.name, self.limits = name, limits or Limits()

    @abstractmethod
    def __len__(self) -> int:
        """How many samples there are, bad ones included. An endless source has none and raises TypeError."""

    @abstractmethod
    def load(self, index: int) -> Document:
        """Sample `index`, strictly read; a DuoGenError with a sentence if that is not possible."""

    @abstractmethod
    def label(self, index: int) -> str:
        """How people find the sample: its file, and the line or member."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Small plain JSON that changes when the samples or their order change, and not when they are moved."""

    def read(self, index: int) -> Sample | Bad:
        """Sample `index`, or what is wrong with it. Raises for nothing that lies in the data."""
        label = self.label(index)
        try:
            document = self.load(index)
            self.limits.check(document)
        except Exception as error:  # a damaged file may upset a decoder in ways nobody has listed
            if is_out_of_memory(error):
                raise gave_out(error, label) from None
            sentence = str(error) if isinstance(error, DuoGenError) else f"{type(error).__name__}: {error}"
            # A label is a file's or a member's name, and a library's error may quote its contents.
            sentence, place = shown(sentence), shown(label)
            sentence = sentence if place in sentence else f"{place}: {sentence}"
            if len(sentence) > MOST_CHARACTERS:  # it may quote what it found, and that may be a whole file
                sentence = f"{sentence[:MOST_CHARACTERS]} …"
            return Bad(self.name, index, label, sentence, isinstance(error, Excluded))
        return Sample(document, self.name, index, label)

    def index_at(self, seed: int, epoch: int, position: int) -> int:
        """The sample that stands at `position` of an epoch: every sample once, in an order of (seed, epoch)."""
        return shuffled(position, len(self), mix(seed, epoch))

    def epoch(self, seed: int, epoch: int, on_bad: OnBad | None = None) -> Epoch:
        return Epoch(self, seed, epoch, on_bad)


class Epoch(Iterator[Sample]):
    """One pass over a source. `position` counts bad samples too; `skip(position)` is where a fresh one goes on."""

    def __init__(self, source: Source, seed: int, epoch: int, on_bad: OnBad | None = None) -> None:
        self.source, self.seed, self.number, self.on_bad = source, seed, epoch, on_bad
        self.position = 0

    def skip(self, n: int) -> Epoch:
        """Pass over n samples without reading them."""
        self.position += n
        return self

    def __next__(self) -> Sample:
        while self.source.endless or self.position < len(self.source):
            found = self.source.read(self.source.index_at(self.seed, self.number, self.position))
            self.position += 1
            if isinstance(found, Sample):
                return found
            if self.on_bad is not None:
                self.on_bad(found)
        raise StopIteration
