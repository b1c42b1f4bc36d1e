"""What every source is: `Source`, what it yields (`Sample`, `Bad`), and what a sample must be (`Limits`).

Below them what sources share: which files they read (`find_files`, `digest`), and orders that can be entered anywhere
(a shuffle without a list, weighted choices by number): pure functions of their arguments, the same on every machine
and with every version of Python and numpy.
"""

from __future__ import annotations

import glob
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

import numpy as np

from duogen_core.document import Document, Picture, Text
from duogen_core.document.reading import headers_only
from duogen_core.errors import DuoGenError, is_out_of_memory, shown, system_failure

MAX_CHARACTERS = 1000  # of a sentence
ROUNDS = 6  # of the Feistel network that shuffles


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
    wanted: Callable[[Document], bool] | None = None  # False for documents to leave out, such as those held out

    def __post_init__(self) -> None:
        for name in ("max_side", "max_aspect", "max_pictures", "max_tokens"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 1:
                raise DuoGenError(f"{name} is {value!r}; expected a number of at least 1.")

    def check(self, document: Document) -> None:
        """Raises a DuoGenError for a document that cannot be learnt from, Excluded for one that is not wanted."""
        if not self.alignment and document.meta.get("alignment") is True:
            raise Excluded("it is alignment data (meta.alignment), which is left out here.")
        if self.wanted is not None and not self.wanted(document):
            raise Excluded("it is not one of those that are read here, since a share of the documents is held out.")
        _check_roles([turn.role for turn in document.turns])
        for i, turn in enumerate(document.turns):
            if not any(not isinstance(part, Text) or part.text.strip() for part in turn.parts):
                raise DuoGenError(f"turns[{i}] ({turn.role}) is empty: it has no image and no text.")
        if not any(turn.text.strip() for turn in document.turns):
            raise DuoGenError("it has no text at all, only images; a sample needs a request or an answer in words.")
        if len(document.pictures) > self.max_pictures:
            raise DuoGenError(f"it has {len(document.pictures)} images; at most {self.max_pictures} are allowed.")
        for i, turn in enumerate(document.turns):
            for k, part in enumerate(turn.parts):
                if isinstance(part, Picture):
                    self._check_size(*part.size, f"turns[{i}].parts[{k}], an image,")
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
    drawn = False  # by code when they are asked for: there is nothing to look over
    lanes: int | None = None  # streams that it is read in; None: every draw can be read anywhere, at the same cost

    def __init__(self, name: str, limits: Limits | None = None) -> None:
        self.name, self.limits = name, limits or Limits()

    @abstractmethod
    def __len__(self) -> int:
        """Counts the samples, bad ones included. An endless source has no length and raises TypeError."""

    @abstractmethod
    def load(self, index: int) -> Document:
        """Reads sample `index` strictly; raises a DuoGenError with a sentence if that is not possible."""

    @abstractmethod
    def label(self, index: int) -> str:
        """Says how people find the sample: its file, and the line or member."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Returns small plain JSON that changes when the samples or their order change, not when they are moved."""

    def read(self, index: int) -> Sample | Bad:
        """Returns sample `index`, or what is wrong with it. Never raises for what is wrong with the data."""
        label = self.label(index)
        try:
            document = self.load(index)
            self.limits.check(document)
        except Exception as error:  # a damaged file may upset a decoder in ways nobody has listed
            if is_out_of_memory(error):
                raise system_failure(error, label) from None
            sentence = str(error) if isinstance(error, DuoGenError) else f"{type(error).__name__}: {error}"
            # A label is a file's or a member's name, and a library's error may quote its contents.
            sentence, place = shown(sentence), shown(label)
            sentence = sentence if place in sentence else f"{place}: {sentence}"
            if len(sentence) > MAX_CHARACTERS:  # it may quote what it found, and that may be a whole file
                sentence = f"{sentence[:MAX_CHARACTERS]} …"
            return Bad(self.name, index, label, sentence, isinstance(error, Excluded))
        return Sample(document, self.name, index, label)

    def header(self, index: int) -> Sample | Bad:
        """Returns sample `index` with the sizes of its pictures alone: for counting tokens without decoding a pixel.

        What is wrong behind the header of a picture is found by `read` only.
        """
        with headers_only():
            return self.read(index)

    def index_at(self, seed: int, epoch: int, position: int) -> int:
        """Returns the sample at `position` of an epoch: every sample once, in an order of (seed, epoch)."""
        return shuffled_index(position, len(self), stable_hash(seed, epoch))

    def pick(self, seed: int, nth: int, attempt: int = 0, chance: int = 0) -> int:
        """Returns the sample of draw `nth`, epoch after epoch, each in an order of its own.

        attempt: from 1 on, what stands in the place of bad samples, chosen by `chance`, 64 bits.
        """
        if attempt:
            return chance % len(self)
        epoch, position = divmod(nth, len(self))
        return self.index_at(seed, epoch, position)

    def reader(self, nth: int, readers: int) -> int | None:
        """Says which of so many readers had best read draw `nth`: each has lanes of its own or, where there are more
        readers than lanes, some of the draws of one."""
        if self.lanes is None:
            return None
        lane, place = nth % self.lanes, nth // self.lanes
        if readers <= self.lanes:
            return lane % readers
        return lane + self.lanes * (place % -(-(readers - lane) // self.lanes))

    def raw(self, index: int) -> Any:
        """Returns a sample of a lane as it is stored, for `hold` of a copy of this source in another process."""
        raise TypeError(f"{self.name} has no lanes")

    def hold(self, raws: Mapping[int, Any]) -> None:  # noqa: B027 (only sources with lanes have any)
        """Takes samples that another process has read, by their numbers, in the place of those before."""

    def refresh(self) -> None:  # noqa: B027
        """Looks at what other processes have noted in the folder of `keep` by now."""

    def look(self, count: int) -> list[Sample | Bad]:
        """Reads some samples from all over the source, to see whether it can be used; of one that is drawn, none."""
        if self.endless:
            return []
        count = min(count, len(self))
        return [self.read(k * len(self) // count) for k in range(count)]

    def keep(self, folder: Path) -> None:  # noqa: B027 (most have nothing to note)
        """Names a folder of the run in which the source may note what a later session would have to find again."""

    def epoch(self, seed: int, epoch: int, on_bad: OnBad | None = None) -> Epoch:
        return Epoch(self, seed, epoch, on_bad)


class Epoch(Iterator[Sample]):
    """One pass over a source. `position` counts bad samples too; `skip(position)` is where a fresh one goes on."""

    def __init__(self, source: Source, seed: int, epoch: int, on_bad: OnBad | None = None) -> None:
        self.source, self.seed, self.number, self.on_bad = source, seed, epoch, on_bad
        self.position = 0

    def skip(self, n: int) -> Epoch:
        """Passes over n samples without reading them."""
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


def stable_hash(*key: object) -> int:
    """Returns 64 bits that depend on every part of the key."""
    return int.from_bytes(blake2b(repr(key).encode(), digest_size=8).digest(), "little")


def shuffled_index(position: int, size: int, key: int) -> int:
    """Returns where `position` of 0 … size - 1 goes in the shuffle named by `key`; no two go to the same place.

    A Feistel network permutes the numbers of an even number of bits; results outside the range go through it again.
    """
    if not 0 <= position < size:
        raise IndexError(f"position {position} of {size}")
    bits = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << bits) - 1
    while True:
        left, right = position >> bits, position & mask
        for number in range(ROUNDS):
            left, right = right, left ^ (stable_hash(key, number, right) & mask)
        position = left << bits | right
        if position < size:
            return position


def weighted_choices(weights: np.ndarray, count: int, key: int) -> np.ndarray:
    """Draws `count` numbers of weights, int64, each as often as its weight says."""
    bits = np.random.Philox(key=key).random_raw(count)
    uniform = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    edges = np.cumsum(weights, dtype=np.float64)
    # side="right" and the clip: a weight of zero is never chosen, and rounding never leads past the last one.
    return np.searchsorted(edges / edges[-1], uniform, side="right").clip(max=int(np.flatnonzero(weights)[-1]))


def find_files(pattern: str, suffixes: Sequence[str], what: str) -> list[Path]:
    """Returns the files that `pattern` names: one file, all of a folder with one of these endings, or a pattern's.

    A pattern is a glob, or has one range as webdataset writes it: train-{000..146}.tar, each of which must be there.
    """
    if "://" in pattern:
        raise DuoGenError(f"{pattern} is an address, and this kind of source is local; stream:{pattern} reads those.")
    place = Path(pattern)
    if (span := re.search(r"\{(\d+)\.\.(\d+)\}", pattern)) and not place.exists():
        first, last = span.groups()
        if len(last) > 7:
            raise DuoGenError(f"{pattern} names more than ten million files; is the range right?")
        names = [
            f"{n:0{len(first)}d}".join((pattern[: span.start()], pattern[span.end() :]))
            for n in range(int(first), int(last) + 1)
        ]
        return [file for name in names for file in find_files(name, suffixes, what)]
    try:
        if place.is_dir():
            found = [file for file in place.iterdir() if file.name.endswith(tuple(suffixes)) and file.is_file()]
        elif place.is_file():
            found = [place]
        elif place.exists():
            raise DuoGenError(f"{pattern} is not a file; expected {what}.")
        else:
            found = [Path(name) for name in glob.glob(pattern, recursive=True) if Path(name).is_file()]
    except (OSError, ValueError) as error:
        if isinstance(error, DuoGenError):
            raise
        raise DuoGenError(f"{pattern} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    if not found:
        if place.is_dir():
            raise DuoGenError(f"The folder {pattern} has no file that ends in {' or '.join(suffixes)}.")
        raise DuoGenError(f"{pattern} does not exist; check the path. Expected {what}.")
    return sorted(found)


def digest(names: Iterable[object]) -> str:
    found = sha256()
    for name in names:
        found.update(repr(name).encode("utf-8", "surrogatepass") + b"\n")
    return found.hexdigest()[:16]
