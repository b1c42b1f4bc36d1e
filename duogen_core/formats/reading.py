"""Weights in one safetensors file or in several, read as late as possible.

In: a file, or a folder that holds one set of weights. Out: `WeightFiles`: names, types and shapes from the headers
alone; tensors one by one, mapped from the disk (so what was not touched takes no memory). Whoever reads them says
`check_unchanged` at the end: a file that was written to meanwhile is an error, not a mixture of two models.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from duogen_core.formats.writing import CHUNK, Piece
from duogen_core.weights import Entry, WeightError, read_whole_header, refuse_pickle

if TYPE_CHECKING:
    from torch import Tensor

STEMS = ("diffusion_pytorch_model", "model")  # diffusers' and transformers' names of a folder's weights
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
        self._seen = {file: _stamp(file) for file in self.files if file.exists()}
        for file in self.files:
            header = read_whole_header(file, what)
            twice = next((name for name in header.tensors if name in self.entries), None)
            if twice is not None:
                raise WeightError(f"{file} and {self.places[twice].file.name} both hold {twice!r}; give one model.")
            self.entries.update(header.tensors)
            self.places.update({name: Place(file, *span) for name, span in header.spans.items()})
            self.metadata.update(header.metadata)

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
                with safe_open(str(file), framework="pt") as opened:
                    for name in here:
                        yield name, opened.get_tensor(name)
            except (SafetensorError, OSError) as error:
                raise WeightError(f"{file} cannot be read ({error}); copy or download it again.") from error

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


def find_weights(path: str | os.PathLike, what: str = "weights") -> WeightFiles:
    """The weights in a file, or in a folder that holds exactly one set of them."""
    path = Path(path)
    if not path.is_dir():
        return WeightFiles([path], what)
    indices = [path / f"{stem}.safetensors.index.json" for stem in STEMS]
    indices = [index for index in indices if index.is_file()]
    shards = {index: _shards(index) for index in indices}
    listed = {file for found in shards.values() for file in found}
    single = sorted(file for file in path.glob("*.safetensors") if file.is_file() and file not in listed)
    candidates = [index.name for index in indices] + [file.name for file in single]
    if not candidates:
        for file in sorted(path.iterdir()):
            refuse_pickle(file)
        raise WeightError(f"The {what} are missing: {path} holds no .safetensors file.")
    if len(candidates) > 1:
        names = ", ".join(candidates[:6])
        raise WeightError(f"{path} holds more than one set of {what} ({names}); give the path of the one you mean.")
    if not indices:
        return WeightFiles(single, what)
    index = indices[0]
    weights = WeightFiles(sorted(set(shards[index])), what)
    for name, file in shards_of_tensors(index).items():
        if name not in weights.places or weights.places[name].file.name != file:
            raise WeightError(
                f"{index} says that {name!r} is in {file}, which does not hold it; copy the shards again."
            )
    return weights


def shards_of_tensors(index: Path) -> dict[str, str]:
    """The weight_map of an index, each file a name in the index's own folder."""
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        pairs = {str(name): file for name, file in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightError(f"{index} is not a readable index of weight files ({error}).") from None
    for file in pairs.values():
        if not isinstance(file, str) or Path(file).name != file:
            raise WeightError(f"{index} names {file!r}, which is not a file in its own folder.")
    return pairs


def _shards(index: Path) -> list[Path]:
    return [index.parent / file for file in shards_of_tensors(index).values()]


def _stamp(file: Path) -> tuple[int, int, int]:
    try:
        stat = file.stat()
    except OSError:
        return (0, 0, 0)
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
