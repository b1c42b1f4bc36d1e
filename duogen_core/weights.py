"""Weight files, looked at before anything is loaded: safetensors only, and every fault named.

In: the path of one weight file, or a folder that holds `model.safetensors` (or its shards with an index).
Out: a table {tensor name: Entry(dtype, shape)} read from the header alone, or a WeightError whose sentence names the
file, what is wrong with it and what was expected.
A safetensors file is 8 bytes (header length, little endian), a JSON header, and the tensors' bytes; the header says
where each tensor ends, so a cut-off file is known from its length, without reading the data.
Nothing here unpickles: `.pt`, `.pth`, `.bin`, `.ckpt` and `.pkl` files are refused by name and by content.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from duogen_core.errors import DuoGenError

PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself
SHOWN = 4  # of a long list of faults, how many a message names

_ITEM_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64,
}  # fmt: skip


class WeightError(DuoGenError):
    """A weight file is missing, cut off, foreign, or of a kind that is never read."""


@dataclass(frozen=True)
class Entry:
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """tensors: what the file holds. spans: where each lies, in bytes of the file. metadata: its author's own notes."""

    tensors: dict[str, Entry]
    spans: dict[str, tuple[int, int]]
    metadata: dict[str, str]


def refuse_pickle(path: str | os.PathLike) -> None:
    """Refuses a pickled weight file: reading one runs whatever code its author put in it."""
    path = Path(path)
    pickled = path.suffix.lower() in PICKLE_SUFFIXES
    if not pickled and path.is_file():
        with open(path, "rb") as file:
            start = file.read(4)
        # PyTorch's zip container, or a bare pickle of protocol 2 and later.
        pickled = start == b"PK\x03\x04" or (
            start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
        )
        # A safetensors header of 0x0280..0x0580 bytes begins with the same two bytes, so the ninth byte decides.
        if pickled and start[:1] == b"\x80":
            with open(path, "rb") as file:
                pickled = file.read(9)[8:9] != b"{"
    if pickled:
        raise WeightError(
            f"{path} is a pickled weight file, and DuoGen never reads pickles because they can run code; "
            f"convert it to .safetensors (python -m duogen_core convert FILE OUT) and give that file instead."
        )


def read_header(path: str | os.PathLike, what: str = "weights") -> dict[str, Entry]:
    """The tensors of one safetensors file, from its header; the file's length must be exactly what the header says."""
    return read_whole_header(path, what).tensors


def read_whole_header(path: str | os.PathLike, what: str = "weights") -> Header:
    """Like read_header, with the places of the tensors and the metadata."""
    path = Path(path)
    if not path.exists():
        raise WeightError(f"The {what} are missing: expected the file {path}.{_pickle_beside(path)}")
    if not path.is_file():
        raise WeightError(f"{path} is not a file; expected the {what} as a .safetensors file there.")
    refuse_pickle(path)
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        if len(start) < 8:
            raise WeightError(f"{path} is cut off: it has {size} bytes, fewer than the 8 that open a safetensors file.")
        (length,) = struct.unpack("<Q", start)
        if not 2 <= length <= MAX_HEADER_BYTES:
            raise WeightError(f"{path} is not a safetensors file: its first 8 bytes name a header of {length} bytes.")
        raw = file.read(length)
    if raw[:1] not in (b"{", b""):
        raise WeightError(f"{path} is not a safetensors file: no JSON header follows its first 8 bytes.")
    if len(raw) < length:
        raise WeightError(
            f"{path} is cut off: it has {size} bytes, and its header alone needs {8 + length}. "
            f"Copy or download it again."
        )
    try:
        header = json.loads(raw.decode("utf-8"))
        notes = header.pop("__metadata__", None) or {}
        metadata = {str(key): str(value) for key, value in notes.items()}
        tensors = {name: Entry(item["dtype"], tuple(int(n) for n in item["shape"])) for name, item in header.items()}
        spans = {name: tuple(int(n) for n in item["data_offsets"]) for name, item in header.items()}
        for name, entry in tensors.items():
            if not isinstance(entry.dtype, str) or any(n < 0 for n in entry.shape):
                raise ValueError(f"{name[:80]!r} has no possible type and shape")
    except (UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightError(f"{path} is not a readable safetensors file: its header is broken ({error}).") from None
    end = 0
    for name, (start_at, stop_at) in sorted(spans.items(), key=lambda item: item[1]):
        bits = _ITEM_BITS.get(tensors[name].dtype)
        if start_at != end or stop_at < start_at or (bits and (stop_at - start_at) * 8 != bits * _count(tensors[name])):
            raise WeightError(
                f"{path} is not a sound safetensors file: the header's place for {name!r} does not fit it."
            )
        end = stop_at
    if size < 8 + length + end:
        raise WeightError(
            f"{path} is cut off: it has {size} bytes of the {8 + length + end} its header promises. "
            f"Copy or download it again."
        )
    if size > 8 + length + end:
        raise WeightError(
            f"{path} is not a sound safetensors file: {size - 8 - length - end} bytes follow its last tensor."
        )
    first = 8 + length
    return Header(tensors, {name: (first + a, first + b) for name, (a, b) in spans.items()}, metadata)


def read_folder(folder: str | os.PathLike, stem: str = "model", what: str = "weights") -> dict[str, Entry]:
    """Like read_header, for `stem`.safetensors or the shards named in `stem`.safetensors.index.json."""
    folder = Path(folder)
    index = folder / f"{stem}.safetensors.index.json"
    if not index.is_file():
        return read_header(folder / f"{stem}.safetensors", what)
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightError(f"{index} is not a readable index of weight files ({error}).") from None
    tensors: dict[str, Entry] = {}
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise WeightError(f"{index} names {shard!r}, which is not a file in its own folder.")
        tensors.update(read_header(folder / shard, what))
    return tensors


def check_tensors(
    found: Mapping[str, Entry],
    expected: Mapping[str, tuple[int, ...]],
    path: str | os.PathLike,
    what: str = "weights",
    optional: Iterable[str] = (),
) -> None:
    """Names and shapes must be exactly the expected ones; `optional` names may be absent (tied weights)."""
    optional = set(optional)
    missing = sorted(name for name in expected if name not in found and name not in optional)
    foreign = sorted(name for name in found if name not in expected)
    shapes = [
        f"{name} is {list(found[name].shape)} instead of {list(shape)}"
        for name, shape in sorted(expected.items())
        if name in found and tuple(found[name].shape) != tuple(shape)
    ]
    faults = []
    if missing:
        faults.append(f"{len(missing)} of {len(expected)} tensors are missing ({_some(missing)})")
    if foreign:
        faults.append(f"{len(foreign)} do not belong there ({_some(foreign)})")
    if shapes:
        faults.append(f"{len(shapes)} have another shape ({_some(shapes)})")
    if faults:
        raise WeightError(f"{path} does not hold the {what} that its configuration describes: {'; '.join(faults)}.")


def shapes_of(module) -> dict[str, tuple[int, ...]]:
    """{name: shape} of a torch module's state, as check_tensors expects it (works on the meta device)."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _count(entry: Entry) -> int:
    total = 1
    for n in entry.shape:
        total *= n
    return total


def _some(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _pickle_beside(path: Path) -> str:
    """A hint when the folder holds pickles in place of the safetensors file."""
    try:
        beside = sorted(p.name for p in path.parent.iterdir() if p.suffix.lower() in PICKLE_SUFFIXES)
    except OSError:
        return ""
    if not beside:
        return ""
    return f" {beside[0]} lies there, but DuoGen never reads pickled weights: convert it to .safetensors."
