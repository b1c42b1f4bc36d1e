"""Safetensors written in one pass, tensor by tensor: whole or not at all, and never more than one tensor in memory.

In: `Piece`s: a name, a safetensors type, a shape, and a function that gives its bytes. Out: a file, or a folder of
shards with their index. Everything is written under a temporary name beside the target and renamed at the end, by one
run at a time; room on the disk is looked at first. (The safetensors library's own writer wants all tensors in memory at
once, and says nothing while it writes.)
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from duogen_core.errors import DuoGenError
from duogen_core.files import atomic_path, lock_folder

MAX_SHARD = 10_000_000_000  # bytes, as diffusers splits its folders
CHUNK = 1 << 24  # bytes read and written at a time


@dataclass(frozen=True)
class Piece:
    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int
    read: Callable[[], Iterable[bytes | memoryview]]


@contextlib.contextmanager
def replacing(target: Path, size: int) -> Iterator[Path]:
    """A temporary path beside `target` that becomes it when the block ends well, and is gone when it does not.

    The target is locked meanwhile, so what a killed run has left under that name belongs to nobody, and goes.
    """
    with lock_folder(target):
        if target.exists() and (target.is_file() or any(target.iterdir())):
            raise DuoGenError(f"{target} exists already; choose another name.")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(target.parent).free
            if free < size:
                raise DuoGenError(
                    f"{target} needs {readable(size)}, but its disk has only {readable(free)} left; make room, or give "
                    f"another place."
                )
            with atomic_path(target) as temporary:
                yield temporary
        except OSError as error:
            raise DuoGenError(
                f"{target} cannot be written ({error.strerror or error}); nothing was left behind."
            ) from error


def write_file(
    path: Path, pieces: Sequence[Piece], metadata: dict[str, str], on_bytes: Callable[[int], None] = lambda n: None
) -> None:
    """One safetensors file; `path` is a temporary name already."""
    header: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    end = 0
    for piece in pieces:
        header[piece.name] = {"dtype": piece.dtype, "shape": list(piece.shape), "data_offsets": [end, end + piece.size]}
        end += piece.size
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for piece in pieces:
            written = 0
            for chunk in piece.read():
                written += file.write(chunk)
                on_bytes(len(chunk))
            if written != piece.size:
                raise DuoGenError(f"{piece.name} gave {written} of its {piece.size} bytes; its file changed meanwhile.")
        file.flush()
        os.fsync(file.fileno())


def write_folder(
    folder: Path, stem: str, pieces: Sequence[Piece], on_bytes: Callable[[int], None], max_shard: int = MAX_SHARD
) -> None:
    """`stem`.safetensors in a folder, or shards with `stem`.safetensors.index.json."""
    shards: list[list[Piece]] = [[]]
    for piece in pieces:
        if shards[-1] and sum(each.size for each in shards[-1]) + piece.size > max_shard:
            shards.append([])
        shards[-1].append(piece)
    if len(shards) == 1:
        write_file(folder / f"{stem}.safetensors", pieces, {}, on_bytes)
        return
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        write_file(folder / name, shard, {}, on_bytes)
        where.update({piece.name: name for piece in shard})
    index = {"metadata": {"total_size": sum(piece.size for piece in pieces)}, "weight_map": where}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def readable(size: float) -> str:
    """Bytes for people, in the units that memory is counted in: 3.8 GiB."""
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
