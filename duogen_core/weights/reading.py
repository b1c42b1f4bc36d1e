"""Weights in one safetensors or GGUF file or in several, read as late as possible.

In: a file, or a folder that holds one set of weights. Out: `WeightFiles`: names, types and shapes from the headers
alone; tensors one by one, mapped from the disk (so what was not touched takes no memory). Whoever reads them says
`check_unchanged` at the end: a file that was written to meanwhile is an error, not a mixture of two models.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duogen_core.files import read_json
from duogen_core.weights.gguf import GgufHeader, block_of, files_of, is_gguf, is_packed, read_gguf_header
from duogen_core.weights.headers import (
    HEADER_DEPTH,
    MAX_HEADER_BYTES,
    Entry,
    WeightError,
    read_whole_header,
    refuse_pickle,
)
from duogen_core.weights.writing import CHUNK, Piece

if TYPE_CHECKING:
    from torch import Tensor

DIFFUSERS_STEM = "diffusion_pytorch_model"
STEMS = (DIFFUSERS_STEM, "model")  # diffusers' and transformers' names of a folder's weights
MAX_NOTE = 65_536


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: its file, and its first and last byte there."""

    file: Path
    start: int
    stop: int


class WeightFiles:
    def __init__(self, files: Iterable[Path], what: str = "weights") -> None:
        self.files = tuple(files)
        self.what = what
        self.entries: dict[str, Entry] = {}
        self.places: dict[str, Place] = {}
        self.metadata: dict[str, str] = {}
        self.rest: dict[Path, int] = {}  # files that go on behind their last tensor, and by how many bytes
        self._seen = {file: _stamp(file) for file in self.files}
        for file in self.files:
            header = read_whole_header(file, what)
            twice = next((name for name in header.tensors if name in self.entries), None)
            if twice is not None:
                raise WeightError(f"{file} and {self.places[twice].file.name} both hold {twice!r}; give one model.")
            self.entries.update(header.tensors)
            self.places.update({name: Place(file, *span) for name, span in header.spans.items()})
            self.metadata.update(header.metadata)
            if header.rest:
                self.rest[file] = header.rest

    @property
    def bytes(self) -> int:
        return sum(place.stop - place.start for place in self.places.values())

    def tensors(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) in the order of the files; of `names` alone when given."""
        from safetensors import SafetensorError, safe_open

        wanted = set(self.entries if names is None else names)
        for file in self.files:
            here = [name for name in self.entries if name in wanted and self.places[name].file == file]
            if not here:
                continue
            self.check_unchanged(file)
            try:
                if file in self.rest:  # the safetensors library refuses such files
                    yield from self._mapped(file, here)
                    continue
                with safe_open(str(file), framework="pt") as opened:
                    for name in here:
                        yield name, opened.get_tensor(name)
            except (SafetensorError, OSError, RuntimeError) as error:
                raise WeightError(f"{file} cannot be read ({error}); copy or download it again.") from error

    def _mapped(self, file: Path, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """As safe_open does it: mapped, and private, so that writing to a tensor leaves the file alone."""
        import torch
        from safetensors.torch import _TYPES

        size = max(place.stop for place in self.places.values() if place.file == file)
        data = torch.empty(0, dtype=torch.uint8)
        if size:
            data.set_(torch.UntypedStorage.from_file(str(file), shared=False, nbytes=size))
        # The library's own table lacks two that it reads, for old versions of torch.
        types = {**_TYPES, "F8_E8M0": getattr(torch, "float8_e8m0fnu", None), "C64": torch.complex64}
        for name in names:
            place, entry = self.places[name], self.entries[name]
            dtype = types.get(entry.dtype)
            if dtype is None:
                raise WeightError(f"{file}: {name} is of the type {entry.dtype}, which this torch does not know.")
            piece = data[place.start : place.stop]
            if place.start % dtype.itemsize:  # only what begins at a whole number of items can be looked at as such
                piece = piece.clone()
            yield name, piece.view(dtype).reshape(entry.shape)

    def tensor(self, name: str) -> Tensor:
        return next(self.tensors([name]))[1]

    def piece(self, name: str, as_name: str) -> Piece:
        """A tensor as something that can be written under another name, copied from the file as it stands."""
        place, entry = self.places[name], self.entries[name]

        def read() -> Iterator[bytes]:
            self.check_unchanged(place.file)
            with open(place.file, "rb") as file:
                file.seek(place.start)
                left = place.stop - place.start
                while left and (chunk := file.read(min(left, CHUNK))):
                    left -= len(chunk)
                    yield chunk

        return Piece(as_name, entry.dtype, entry.shape, place.stop - place.start, read)

    def note(self, name: str) -> bytes:
        """The bytes of a small tensor that is a text."""
        place = self.places[name]
        if place.stop - place.start > MAX_NOTE:
            raise WeightError(f"{place.file}: {name} has {place.stop - place.start} bytes, too many for a note.")
        with open(place.file, "rb") as file:
            file.seek(place.start)
            return file.read(place.stop - place.start)

    def check_unchanged(self, *files: Path) -> None:
        for file in files or self.files:
            if _stamp(file) != self._seen[file]:
                raise WeightError(f"{file} changed while it was being read; wait until it is written, and try again.")


class GgufFiles(WeightFiles):
    """The same for a GGUF file, or a set that was split: any of its files stands for all.

    entries: of quantised tensors the type is GGUF's ("Q4_K") and the shape that of the numbers, not of the blocks.
    Tensors come as they are stored: quantised ones as blocks, uint8 [rows, bytes of a row]. notes: the header's. edits:
    {name: a change that its tensor takes as it is read}. Of big-endian files a tensor's numbers are turned round.
    """

    def __init__(self, path: Path, what: str = "weights") -> None:
        first = read_gguf_header(path, what)
        self.files = tuple(files_of(path, first))
        self.what, self.rest, self.entries, self.places = what, {}, {}, {}
        self.edits: dict[str, Callable[[Tensor], Tensor]] = {}
        self._seen = {file: _stamp(file) for file in self.files}
        headers = [first if file == path else read_gguf_header(file, what) for file in self.files]
        self.header = headers[0]
        for number, (file, header) in enumerate(zip(self.files, headers)):
            _check_part(file, header, number, len(headers), first)
            twice = next((name for name in header.tensors if name in self.entries), None)
            if twice is not None:
                raise WeightError(f"{file} and {self.places[twice].file.name} both hold {twice!r}; give one model.")
            self.entries.update(header.tensors)
            self.places.update({name: Place(file, *span) for name, span in header.spans.items()})
        self.metadata = {key: value for key, value in self.notes.items() if isinstance(value, str)}
        # Quantised numbers that are no layer's matrix are made whole as they are read.
        self._whole = {
            name: entry.dtype
            for name, entry in self.entries.items()
            if is_packed(entry.dtype) and not (name.endswith(".weight") and len(entry.shape) > 1)
        }
        # ComfyUI-GGUF's converter keeps the shape of what it had to reshape, such as tensors of five sides.
        shapes = {name: self._original_shape(name) for name in self.entries}
        reshaped = [name for name, entry in self.entries.items() if shapes[name] != entry.shape]
        self._whole |= {name: self.entries[name].dtype for name in reshaped if is_packed(self.entries[name].dtype)}
        self.entries |= {name: Entry(self.entries[name].dtype, shapes[name]) for name in reshaped}
        self.entries |= {name: Entry("F32", shapes[name]) for name in self._whole}
        self._maps: dict[Path, Tensor] = {}

    @property
    def notes(self) -> dict[str, Any]:
        return self.header.notes

    @property
    def architecture(self) -> str:
        return self.header.architecture

    def _original_shape(self, name: str) -> tuple[int, ...]:
        stored, noted = self.entries[name].shape, self.notes.get(f"comfy.gguf.orig_shape.{name}")
        if noted is None:
            return stored
        whole = isinstance(noted, list) and all(type(side) is int and side > 0 for side in noted)
        if not whole or math.prod(noted) != math.prod(stored):
            raise WeightError(f"{self.files[0]}: {name} cannot have the shape {str(noted)[:80]}, as a note says.")
        return tuple(noted)

    def tensors(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, Tensor]]:
        wanted = set(self.entries if names is None else names)
        for name in self.entries:
            if name in wanted:
                yield name, self._edited(name, self._stored(name))

    def _edited(self, name: str, tensor: Tensor) -> Tensor:
        return self.edits[name](tensor) if name in self.edits else tensor

    def _stored(self, name: str) -> Tensor:
        import torch

        from duogen_core.weights.gguf_layers import mapped, unpacked

        place, entry = self.places[name], self.entries[name]
        if place.file not in self._maps:
            self.check_unchanged(place.file)
            try:
                self._maps[place.file] = mapped(place.file)
            except (OSError, ValueError) as error:
                raise WeightError(f"{place.file} cannot be read ({error}); copy or download it again.") from error
        piece, kind = self._maps[place.file][place.start : place.stop], self._whole.get(name, entry.dtype)
        if is_packed(kind):
            numbers, size = block_of(kind)
            if name in self._whole:
                blocks = piece.reshape(-1, size)
                blocks = in_our_order(blocks, kind, size) if self.header.big else blocks
                return unpacked(blocks, kind, torch.float32).reshape(entry.shape)
            blocks = piece.reshape(*entry.shape[:-1], entry.shape[-1] // numbers * size)
            return in_our_order(blocks, kind, size) if self.header.big else blocks
        dtype = getattr(torch, TORCH_NAMES[entry.dtype])
        if self.header.big and dtype.itemsize > 1:
            piece = piece.reshape(-1, dtype.itemsize).flip(-1).reshape(-1)
        elif place.start % dtype.itemsize:
            piece = piece.clone()
        return piece.view(dtype).reshape(entry.shape)


TORCH_NAMES = {
    "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64", "I8": "int8", "I16": "int16",
    "I32": "int32", "I64": "int64",
}  # fmt: skip
# Where a block holds numbers of 16 bits, by their first bytes; the rest of it is bytes. As llama.cpp converts them.
HALVES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82), "Q3_K": (108,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,), "IQ4_XS": (0, 2), "MXFP4": (),
}  # fmt: skip


def in_our_order(blocks: Tensor, kind: str, size: int) -> Tensor:
    """Blocks of a big-endian file -> as they are in a little-endian one."""
    if kind not in HALVES:
        raise WeightError(f"A big-endian GGUF file with {kind} is not read; expected {', '.join(HALVES)}.")
    flat = blocks.reshape(-1, size).clone()
    for at in HALVES[kind]:
        flat[:, at : at + 2] = flat[:, at : at + 2].flip(-1)
    return flat.reshape(blocks.shape)


def _check_part(file: Path, header: GgufHeader, number: int, count: int, first: GgufHeader) -> None:
    """The files of a split set say which they are, and are of one model."""
    said, of = header.notes.get("split.no", 0), header.notes.get("split.count", 1)
    if count > 1 and (said != number or of != count):
        raise WeightError(
            f"{file} says that it is file {said} of a set of {of}; expected {number} of {count} by its name."
        )
    if header.big != first.big:
        raise WeightError(f"{file} has another byte order than the files beside it; give one model.")


def find_weights(path: str | os.PathLike, what: str = "weights", stem: str | None = None) -> WeightFiles:
    """The weights in a file, or in a folder that holds exactly one set of them.

    stem: the name that is taken where a folder holds several: STEM.safetensors or its shards.
    """
    path = Path(path)
    if not path.is_dir():
        return GgufFiles(path, what) if is_gguf(path) else WeightFiles([path], what)
    if stem and any((path / f"{stem}.safetensors{end}").is_file() for end in ("", ".index.json")):
        return folder_weights(path, stem, what)
    indices = [path / f"{stem}.safetensors.index.json" for stem in STEMS]
    shards = {index: shards_of_tensors(index) for index in indices if index.is_file()}
    listed = {path / file for found in shards.values() for file in found.values()}
    single = sorted(file for file in path.glob("*.safetensors") if file.is_file() and file not in listed)
    candidates = [index.name for index in shards] + [file.name for file in single]
    if not candidates:
        for file in sorted(path.iterdir()):
            refuse_pickle(file)
        raise WeightError(f"The {what} are missing: {path} holds no .safetensors file.")
    if len(candidates) > 1:
        names = ", ".join(candidates[:6])
        raise WeightError(f"{path} holds more than one set of {what} ({names}); give the path of the one you mean.")
    for index, found in shards.items():
        return _sharded(index, found, what)
    return WeightFiles(single, what)


def folder_weights(folder: str | os.PathLike, stem: str = "model", what: str = "weights") -> WeightFiles:
    """The weights of a folder that others write too: those in STEM.safetensors, or in the shards of STEM's index."""
    index = Path(folder) / f"{stem}.safetensors.index.json"
    if index.is_file():
        return _sharded(index, shards_of_tensors(index), what)
    return WeightFiles([Path(folder) / f"{stem}.safetensors"], what)


def shards_of_tensors(index: Path) -> dict[str, str]:
    """The weight_map of an index, each file a name in the index's own folder."""
    found = read_json(index, "index of weight files", limit=MAX_HEADER_BYTES, depth=HEADER_DEPTH)
    pairs = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(pairs, dict) or not pairs:
        raise WeightError(f"{index} is not a readable index of weight files: it has no weight_map.")
    for file in pairs.values():
        if not isinstance(file, str) or Path(file).name != file or not is_file_name(file):
            raise WeightError(f"{index} names {str(file)[:80]!r}, which is not a file in its own folder.")
    return pairs


def is_file_name(name: str) -> bool:
    """Whether a file can have this name, on any system."""
    return 0 < len(name.encode("utf-8", "replace")) < 256 and name.isprintable()


def _sharded(index: Path, shards: dict[str, str], what: str) -> WeightFiles:
    weights = WeightFiles([index.parent / file for file in sorted(set(shards.values()))], what)
    for name, file in shards.items():
        if name not in weights.places or weights.places[name].file.name != file:
            raise WeightError(
                f"{index} says that {name!r} is in {file}, which does not hold it; copy the shards again."
            )
    return weights


def _stamp(file: Path) -> tuple[int, int, int]:
    try:
        stat = file.stat()
    except (OSError, ValueError):
        return (0, 0, 0)
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
