"""Weight files, looked at before anything is loaded: safetensors only, and every fault named.

In: the path of one weight file (folders and shards: weights/reading.py).
Out: a table {tensor name: Entry(dtype, shape)} read from the header alone, or a WeightError whose sentence names the
file, what is wrong with it and what was expected.
A safetensors file is 8 bytes (header length, little endian), a JSON header, and the tensors' bytes; the header says
where each tensor ends, so a cut-off file is known from its length, without reading the data. A file that goes on behind
its last tensor is read, with a warning.
Nothing here unpickles: `.pt`, `.pth`, `.bin`, `.ckpt` and `.pkl` files are refused by name and by content.
"""

from __future__ import annotations

import logging
import os
import stat
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from duogen_core.errors import DuoGenError
from duogen_core.files import parse_json

PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself
HEADER_DEPTH = 5  # of lists and objects in one another: a header has three
SHOWN = 4  # of a long list of faults, how many a message names

_ITEM_BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32,
    "C64": 64, "U64": 64, "I64": 64, "F64": 64,
}  # fmt: skip


class WeightError(DuoGenError):
    """A weight file is missing, cut off, foreign, or of a kind that is never read."""


@dataclass(frozen=True)
class Entry:
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """tensors: what the file holds. spans: where each lies, in bytes of the file. metadata: its author's own notes.

    rest: how many bytes follow the last tensor; none in a file as the safetensors library writes it.
    """

    tensors: dict[str, Entry]
    spans: dict[str, tuple[int, int]]
    metadata: dict[str, str]
    rest: int = 0


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
    """The tensors of one safetensors file, from its header, if the file is not shorter than that says."""
    return read_whole_header(path, what).tensors


def read_whole_header(path: str | os.PathLike, what: str = "weights") -> Header:
    """Like read_header, with the places of the tensors and the metadata.

    Bytes behind the last tensor are no fault, as ComfyUI reads such files too; a warning is logged, once a file.
    """
    path = Path(path)
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise WeightError(f"The {what} are missing: expected the file {path}.{_pickle_beside(path)}") from None
    except (OSError, ValueError) as error:  # a name that no file can have, a link that leads to itself
        raise WeightError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error}).") from None
    if not stat.S_ISREG(status.st_mode):
        raise WeightError(f"{path} is not a file; expected the {what} as a .safetensors file there.")
    refuse_pickle(path)
    size = status.st_size
    with open(path, "rb") as file:
        start = file.read(8)
        if len(start) < 8:
            raise WeightError(f"{path} is cut off: it has {size} bytes, fewer than the 8 that open a safetensors file.")
        (length,) = struct.unpack("<Q", start)
        if not 2 <= length <= MAX_HEADER_BYTES:
            raise WeightError(
                f"{path} is not a safetensors file: it does not begin with the length of a header. Choose another "
                "file, or copy or download this one again."
            )
        raw = file.read(length)
    if raw[:1] not in (b"{", b""):
        raise WeightError(f"{path} is not a safetensors file: no JSON header follows its first 8 bytes.")
    if len(raw) < length:
        raise WeightError(
            f"{path} is cut off: it has {size} bytes, and its header alone needs {8 + length}. "
            f"Copy or download it again."
        )
    try:
        header = parse_json(raw, "it", depth=HEADER_DEPTH)
        notes = header.pop("__metadata__", None) or {}
        metadata = {str(key): str(value) for key, value in notes.items()}
        found = {name: _entry(name, item) for name, item in header.items()}
    except (ValueError, AttributeError) as error:
        raise WeightError(f"{path} is not a readable safetensors file: its header is broken ({error}).") from None
    tensors = {name: entry for name, (entry, _) in found.items()}
    spans = {name: span for name, (_, span) in found.items()}
    end = 0
    for name, (start_at, stop_at) in sorted(spans.items(), key=lambda item: item[1]):
        bits = _ITEM_BITS[tensors[name].dtype]
        if start_at != end or stop_at < start_at or (stop_at - start_at) * 8 != bits * _count(tensors[name]):
            raise WeightError(
                f"{path} is not a sound safetensors file: the header's place for {name!r} does not fit it."
            )
        end = stop_at
    end += 8 + length
    if size < end:
        raise WeightError(
            f"{path} is cut off: it has {size} bytes of the {end} its header promises. Copy or download it again."
        )
    if size > end:
        _warn_of_rest(str(path), size - end)
    first = 8 + length
    return Header(tensors, {name: (first + a, first + b) for name, (a, b) in spans.items()}, metadata, size - end)


def _entry(name: str, item: object) -> tuple[Entry, tuple[int, int]]:
    """A tensor's type and shape, and where it lies behind the header."""
    if not isinstance(item, dict):
        raise ValueError(f"{name[:80]!r} is {type(item).__name__}, not an object")
    dtype, shape, span = (item.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or not _whole_numbers(shape):
        raise ValueError(f"{name[:80]!r} has no possible type and shape")
    if dtype not in _ITEM_BITS:  # it would be copied as it is into a file that no library reads
        raise ValueError(f"{name[:80]!r} is of the type {dtype[:80]!r}, which no safetensors file has")
    if not _whole_numbers(span) or len(span) != 2:
        raise ValueError(f"{name[:80]!r} has no possible data_offsets; expected two whole numbers")
    return Entry(dtype, tuple(shape)), tuple(span)


def _whole_numbers(value: object) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)


@lru_cache(maxsize=256)  # several readers look at the same file: one warning is enough
def _warn_of_rest(path: str, count: int) -> None:
    logging.getLogger(__name__).warning(
        "%s: %d bytes follow its last tensor and are left alone; if it does not work as it should, download it again.",
        path,
        count,
    )


def check_tensors(
    found: Mapping[str, Entry],
    expected: Mapping[str, tuple[int, ...]],
    path: str | os.PathLike,
    what: str = "weights",
    optional: Iterable[str] = (),
) -> None:
    """Names and shapes must be exactly the expected ones, and the numbers must have a point.

    optional: names that may be absent (tied weights).
    """
    optional = set(optional)
    missing = sorted(name for name in expected if name not in found and name not in optional)
    foreign = sorted(name for name in found if name not in expected)
    shapes = [
        f"{name} is {list(found[name].shape)} instead of {list(shape)}"
        for name, shape in sorted(expected.items())
        if name in found and tuple(found[name].shape) != tuple(shape)
    ]
    # Whole numbers are weights of few bits whose scale is missing, and would be taken for the weights themselves.
    whole = [f"{name} is {found[name].dtype}" for name in sorted(expected) if name in found and _is_whole(found[name])]
    faults = []
    if missing:
        faults.append(f"{len(missing)} of {len(expected)} tensors are missing ({_some(missing)})")
    if foreign:
        faults.append(f"{len(foreign)} do not belong there ({_some(foreign)})")
    if shapes:
        faults.append(f"{len(shapes)} have another shape ({_some(shapes)})")
    if whole:
        faults.append(f"{len(whole)} are whole numbers, without a note of how they were quantised ({_some(whole)})")
    if faults:
        raise WeightError(f"{path} does not hold the {what} that its configuration describes: {'; '.join(faults)}.")


# Names in configurations that say how often something is built, and how wide it is.
COUNTS = ("n_controlnet_blocks", "num_layers", "num_hidden_layers", "depth", "num_res_blocks", "layers_per_block")
WIDTHS = (
    "hidden_size", "intermediate_size", "head_dim", "attention_head_dim", "num_attention_heads", "num_key_value_heads",
    "num_heads", "out_hidden_size", "vocab_size", "num_position_embeddings", "in_channels", "out_channels",
    "text_embed_dim", "adaln_lora_dim", "base_dim", "decoder_base_dim", "z_dim", "patch_size", "cross_width",
)  # fmt: skip


def check_sizes(config: Mapping[str, object], found: Mapping[str, Entry], where: str | os.PathLike) -> None:
    """Refuses a configuration of more layers, or wider ones, than the weights beside it can be of.

    Called before anything is built: a billion layers would be built for hours, on the meta device too. Every layer has
    a tensor of its own, and every width is at most a side of one (of twice that: two numbers may be packed into one).
    """
    longest = max((side for entry in found.values() for side in entry.shape), default=0)
    for name, value in config.items():
        if isinstance(value, Mapping):
            check_sizes(value, found, where)
        # What is built in a moment is left to check_tensors, which says more exactly what does not fit.
        limit = max(len(found), 200) if name in COUNTS else max(2 * longest, 2**20) if name in WIDTHS else None
        for number in value if isinstance(value, (list, tuple)) else [value]:
            if limit is not None and isinstance(number, (int, float)) and not number <= limit:
                raise WeightError(
                    f"{where} says {name} {number:,}, but the weights beside it are {len(found):,} tensors whose "
                    f"longest side is {longest:,}; they belong to two models, or the number is wrong."
                )


def shapes_of(module) -> dict[str, tuple[int, ...]]:
    """{name: shape} of a torch module's state, as check_tensors expects it (works on the meta device)."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _is_whole(entry: Entry) -> bool:
    return entry.dtype == "BOOL" or entry.dtype[:1] in "IU"


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
