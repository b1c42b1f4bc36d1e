"""GGUF files, looked at before anything is loaded: what llama.cpp and its relatives keep quantised weights in.

In: the path of one .gguf file. Out: a GgufHeader (notes, and each tensor's type, shape and place), or a WeightError
whose sentence names the file, what is wrong with it and what was expected.
A GGUF file is "GGUF", a version, two counts, that many notes (key, type, value), that many tensor descriptions (name,
sides, type, place), and the tensors' bytes from the next multiple of `general.alignment` on. Nothing in it is believed
before it is checked against the length of the file: a count, a length or a place that the file has no bytes for is a
fault, so a hostile header costs no more time or memory than a sound one of its size. The gguf package's own GGUFReader
checks none of that (and takes 5 s and 300 MB for a vocabulary of 150,000), so of that package only what it knows of
types is used here.
The shape is turned round: GGUF counts sides from the innermost, torch from the outermost.
Source: ggml-org/ggml docs/gguf.md; gguf-py.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from duogen_core.weights.headers import Entry, WeightError

SUFFIX = ".gguf"
MAGIC = b"GGUF"
VERSIONS = (2, 3)  # version 1, of 2023, counted in 32 bits
MOST_SIDES = 4
LONGEST_NAME = 65_535
LARGEST_ALIGNMENT = 1 << 20
LARGE_ARRAY = 1024  # items; a longer array is read when it is asked for
SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)

# Language models without vision that are read (llm/gguf_model.py), and how llama.cpp stores them otherwise than
# transformers: rows of queries and keys in pairs, or 1 added to norms.
TEXT_MODELS = {"llama": "pairs", "qwen2": "", "qwen3": "", "phi3": "", "gemma2": "norms", "gemma3": "norms"}

# GGUF's types of notes: struct's letter of those with a fixed length; 8 is a string, 9 an array.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY, _BOOL = 8, 9, 7
# What is stored number by number, under the names of safetensors; every other type is one of blocks.
PLAIN = ("F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64")


@dataclass(frozen=True)
class GgufHeader:
    """notes: the metadata by key; long arrays are `LongArray`. big: numbers have their largest byte first."""

    tensors: dict[str, Entry]
    spans: dict[str, tuple[int, int]]
    notes: dict[str, Any]
    big: bool = False

    @property
    def architecture(self) -> str:
        return str(self.notes.get("general.architecture", ""))

    def number(self, key: str) -> int | float | None:
        """A note of the architecture, if it is there and a number."""
        value = self.notes.get(f"{self.architecture}.{key}")
        return value if isinstance(value, (int, float)) else None


@dataclass(frozen=True)
class LongArray:
    """An array of a header that nobody has asked for yet, such as a vocabulary."""

    path: Path
    kind: int
    count: int
    start: int
    big: bool = field(default=False)

    def __len__(self) -> int:
        return self.count

    def read(self) -> list[Any]:
        with _mapped(self.path) as data:
            return _Reader(self.path, data, self.start, self.big).items(self.kind, self.count)


def is_gguf(path: str | Path) -> bool:
    """Whether a file is one by its name."""
    return Path(path).suffix.lower() == SUFFIX


def is_packed(dtype: str) -> bool:
    """Whether an Entry's type is one of GGUF's blocks of quantised numbers."""
    return dtype not in PLAIN and dtype in _block_names()  # in this order: safetensors need no package gguf


def block_of(dtype: str) -> tuple[int, int]:
    """(numbers, bytes) of a block of this type."""
    return _block_names()[dtype]


@lru_cache(maxsize=1)
def _types() -> dict[int, tuple[str, int, int]]:
    """{number in the file: (name, numbers of a block, bytes of a block)}."""
    try:
        from gguf.constants import GGML_QUANT_SIZES
    except ImportError:
        raise WeightError(
            "GGUF files need the package gguf, which is not installed; run pip install gguf (version 0.17 or newer)."
        ) from None
    return {int(kind): (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}


@lru_cache(maxsize=1)
def _block_names() -> dict[str, tuple[int, int]]:
    return {name: (numbers, size) for name, numbers, size in _types().values() if name not in PLAIN}


@lru_cache
def _can_be_made_whole(kind: int) -> bool:
    """Whether there is a way from blocks to numbers: some types are of llama.cpp's own sums alone, or too new."""
    import gguf
    import numpy as np

    name, _, size = _types()[kind]
    try:
        return (
            name in PLAIN or gguf.dequantize(np.zeros((1, size), np.uint8), gguf.GGMLQuantizationType(kind)) is not None
        )
    except NotImplementedError:
        return False


def read_gguf_header(path: str | Path, what: str = "weights") -> GgufHeader:
    """Reads and checks everything before the tensors' bytes, and that these are all there."""
    path = Path(path)
    try:
        regular = path.is_file()
        if not regular and not path.exists():
            raise WeightError(f"The {what} are missing: expected the file {path}.")
        if not regular:
            raise WeightError(f"{path} is not a file; expected the {what} as a .gguf file there.")
        with open(path, "rb") as file:
            start = file.read(24)
    except (OSError, ValueError) as error:
        if isinstance(error, WeightError):
            raise
        raise WeightError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error}).") from None
    if start[:4] != MAGIC:
        raise WeightError(f"{path} is not a GGUF file: it begins with {start[:4]!r}; expected {MAGIC!r}.")
    if len(start) < 24:
        raise WeightError(f"{path} is cut off: it has {len(start)} bytes, fewer than the 24 that open a GGUF file.")
    # A version below 65536 shows the order of its bytes.
    big = start[4:6] == b"\0\0"
    order = ">" if big else "<"
    (version,) = struct.unpack(f"{order}I", start[4:8])
    if version not in VERSIONS:
        raise WeightError(f"{path} is a GGUF file of version {version}; expected version 2 or 3.")
    tensor_count, note_count = struct.unpack(f"{order}QQ", start[8:24])
    with _mapped(path) as data:
        reader = _Reader(path, data, 24, big)
        notes = dict(_notes(reader, note_count))
        described = list(_tensors(reader, tensor_count))
        return _placed(path, reader, len(data), notes, described)


def _mapped(path: Path) -> mmap.mmap:
    try:
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise WeightError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error}).") from None


class _Reader:
    """Reads a header from its bytes, and nothing behind their end."""

    def __init__(self, path: Path, data: mmap.mmap, at: int, big: bool) -> None:
        self.path, self.data, self.at, self.order = path, data, at, ">" if big else "<"

    def fault(self, what: str) -> WeightError:
        return WeightError(f"{self.path} is not a readable GGUF file: {what}.")

    def need(self, count: int, what: str) -> None:
        left = len(self.data) - self.at
        if count > left:
            raise WeightError(
                f"{self.path} is cut off or broken: {what} at byte {self.at} needs {count} bytes, and {left} are left. "
                f"Copy or download it again."
            )

    def numbers(self, letter: str, count: int, what: str) -> tuple[Any, ...]:
        size = struct.calcsize(f"<{letter}")
        self.need(size * count, what)
        found = struct.unpack_from(f"{self.order}{count}{letter}", self.data, self.at)
        self.at += size * count
        return found

    def number(self, letter: str, what: str) -> Any:
        return self.numbers(letter, 1, what)[0]

    def string(self, what: str) -> str:
        length = self.number("Q", what)
        self.need(length, what)
        self.at += length
        return self.data[self.at - length : self.at].decode("utf-8", "replace")

    def items(self, kind: int, count: int) -> list[Any]:
        if kind == _STRING:
            return [self.string("a string of an array") for _ in range(count)]
        found = self.numbers(_NUMBERS[kind], count, "an array")
        return [bool(each) for each in found] if kind == _BOOL else list(found)

    def value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self.string(f"the text of {key!r}")
        if kind in _NUMBERS:
            found = self.number(_NUMBERS[kind], f"the value of {key!r}")
            return bool(found) if kind == _BOOL else found
        if kind != _ARRAY:
            raise self.fault(f"{key!r} is of the type {kind}, which GGUF does not have")
        (inner,), (count,) = self.numbers("I", 1, f"the array {key!r}"), self.numbers("Q", 1, f"the array {key!r}")
        if inner != _STRING and inner not in _NUMBERS:
            raise self.fault(f"{key!r} is an array of the type {inner}; expected numbers or texts")
        size = 8 if inner == _STRING else struct.calcsize(f"<{_NUMBERS[inner]}")  # of one item, at least
        self.need(size * count, f"the array {key!r} of {count:,} items")
        if count <= LARGE_ARRAY:
            return self.items(inner, count)
        start = self.at
        if inner != _STRING:
            self.at += size * count
        else:
            unpack, data, at = struct.Struct(f"{self.order}Q").unpack_from, self.data, self.at
            end = len(data) - 8
            for _ in range(count):
                if at > end:
                    self.at = min(at, len(data))
                    self.need(8, f"the array {key!r} of {count:,} items")
                at += 8 + unpack(data, at)[0]
            self.at = min(at, len(data))
            self.need(at - self.at, f"the array {key!r}")
        return LongArray(self.path, inner, count, start, self.order == ">")


def _notes(reader: _Reader, count: int) -> Iterator[tuple[str, Any]]:
    reader.need(13 * count, f"a list of {count:,} notes")
    seen = set()
    for _ in range(count):
        key = reader.string("the name of a note")
        if not key or len(key) > LONGEST_NAME:
            raise reader.fault(f"a note has a name of {len(key):,} characters")
        if key in seen:
            raise reader.fault(f"it has the note {key[:80]!r} twice")
        seen.add(key)
        yield key, reader.value(reader.number("I", f"the type of {key[:80]!r}"), key[:80])


def _tensors(reader: _Reader, count: int) -> Iterator[tuple[str, tuple[int, ...], int, int]]:
    """(name, sides from the outermost, number of the type, place behind the header)."""
    reader.need(24 * count, f"a list of {count:,} tensors")
    for _ in range(count):
        name = reader.string("the name of a tensor")
        if not name or len(name) > LONGEST_NAME:
            raise reader.fault(f"a tensor has a name of {len(name):,} characters")
        sides = reader.number("I", f"the sides of {name[:80]!r}")
        if sides > MOST_SIDES:
            wan = "; give a Wan in safetensors" if name.endswith("patch_embedding.weight") else ""
            raise reader.fault(f"{name[:80]!r} has {sides} sides; expected at most {MOST_SIDES}{wan}")
        shape = tuple(reversed(reader.numbers("Q", sides, f"the sides of {name[:80]!r}")))
        kind, place = (
            reader.number("I", f"the type of {name[:80]!r}"),
            reader.number("Q", f"the place of {name[:80]!r}"),
        )
        if math.prod(shape) >= 2**63 or place >= 2**63:
            raise reader.fault(f"{name[:80]!r} has an impossible shape {list(shape)}")
        yield name, shape, kind, place


def _placed(
    path: Path,
    reader: _Reader,
    size: int,
    notes: dict[str, Any],
    described: list[tuple[str, tuple[int, ...], int, int]],
) -> GgufHeader:
    alignment = notes.get("general.alignment", 32)
    if type(alignment) is not int or not 1 <= alignment <= LARGEST_ALIGNMENT or alignment & (alignment - 1):
        raise reader.fault(f"its general.alignment is {str(alignment)[:40]}; expected a power of two")
    first = -(-reader.at // alignment) * alignment
    tensors: dict[str, Entry] = {}
    spans: dict[str, tuple[int, int]] = {}
    for name, shape, kind, place in described:
        if name in tensors:
            raise reader.fault(f"it has the tensor {name[:80]!r} twice")
        if kind not in _types():
            raise reader.fault(f"{name[:80]!r} is of the type {kind}, which the installed gguf package does not know")
        dtype, numbers, bytes_ = _types()[kind]
        if not _can_be_made_whole(kind):
            raise reader.fault(f"{name[:80]!r} is {dtype}, which the installed gguf package cannot make whole")
        row = shape[-1] if shape else 1
        if row % numbers:
            raise reader.fault(f"{name[:80]!r} is {dtype} with rows of {row}; expected a multiple of {numbers}")
        if place % alignment:
            raise reader.fault(f"{name[:80]!r} does not begin at a multiple of {alignment} bytes")
        tensors[name] = Entry(dtype, shape)
        spans[name] = (first + place, first + place + math.prod(shape) // numbers * bytes_)
    end = 0
    for name, (start_at, stop_at) in sorted(spans.items(), key=lambda item: item[1]):
        if start_at < end:
            raise reader.fault(f"the place of {name[:80]!r} overlaps that of another tensor")
        end = stop_at
    if end > size:
        raise WeightError(
            f"{path} is cut off: it has {size} bytes of the {end} its header promises. Copy or download it again."
        )
    return GgufHeader(tensors, spans, notes, reader.order == ">")


def files_of(path: Path, header: GgufHeader) -> list[Path]:
    """All files of a set that was split, in order, from the path of any of them; [path] of one that was not."""
    count = header.notes.get("split.count", 1)
    match = SPLIT.search(path.name)
    if type(count) is not int or count <= 1:
        if match and int(match[2]) > 1 and "split.count" not in header.notes:
            raise WeightError(
                f"{path} is a piece cut from a GGUF file, not a part written by llama.cpp's gguf-split; join the "
                f"pieces in order (cat) and give the whole file."
            )
        return [path]
    if match is None or int(match[2]) != count:
        raise WeightError(
            f"{path} is part of a set of {count} files, which its name does not say; expected "
            f"…-00001-of-{count:05}.gguf."
        )
    stem = path.name[: match.start()]
    return [path.with_name(f"{stem}-{number:05}-of-{match[2]}{path.suffix}") for number in range(1, count + 1)]
