"""Weights in one safetensors file or in several, read as late as possible.

In: a file, or a folder that holds one set of weights. Out: `WeightFiles`: names, types and shapes from the headers
alone; tensors one by one, mapped from the disk (so what was not touched takes no memory). Whoever reads them says
`check_unchanged` at the end: a file that was written to meanwhile is an error, not a mixture of two models.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from duogen_core.files import read_json
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


def find_weights(path: str | os.PathLike, what: str = "weights", stem: str | None = None) -> WeightFiles:
    """The weights in a file, or in a folder that holds exactly one set of them.

    stem: the name that is taken where a folder holds several: STEM.safetensors or its shards.
    """
    path = Path(path)
    if not path.is_dir():
        return WeightFiles([path], what)
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
