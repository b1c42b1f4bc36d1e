"""Videos on this machine: files and folders in, names that stay; nothing is fetched. The kind is known by first bytes.

Beside a video may lie NAME.json (as video downloaders write it): its address, title, licence and time are kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duogen_core.data.runs.input_files import names_below
from duogen_core.data.sources.base import digest
from duogen_core.errors import DuoGenError

ENDINGS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ogv", ".flv", ".ts", ".mpg", ".mpeg")
SIDECAR_BYTES = 4_000_000
SIDECAR = {
    "url": ("webpage_url", "url"),
    "title": ("title",),
    "licence": ("license", "licence"),
    "time": ("timestamp",),
}
LONGEST = 500  # characters of a value


@dataclass(frozen=True)
class Folder:
    """One input: a folder, and what is wanted of it (nothing: all videos at any depth)."""

    root: Path
    only: tuple[str, ...] = ()

    def names(self) -> Iterator[str]:
        yield from self.only or names_below(self.root, ENDINGS)

    def identity(self) -> dict[str, Any]:
        return {"path": str(self.root), "digest": digest((n, (self.root / n).stat().st_size) for n in self.names())}


def open_inputs(paths: Sequence[str]) -> list[Folder]:
    found = []
    for given in paths:
        path = Path(given)
        if path.is_file():
            found.append(Folder(path.parent, (path.name,)))
        elif path.is_dir():
            if next(names_below(path, ENDINGS), None) is None:
                raise DuoGenError(f"The folder {given} has no video; expected files such as .mp4, .mkv, .webm or .avi.")
            found.append(Folder(path))
        else:
            raise DuoGenError(f"{given} does not exist; give video files or folders of them.")
    return found


def items(inputs: Sequence[Folder]) -> Iterator[list[Any]]:
    """[input, name] of every video, in an order that never changes."""
    for number, each in enumerate(inputs):
        for name in each.names():
            yield [number, name]


def container_of(head: bytes) -> str | None:
    """The container by the first bytes, as FFmpeg calls it. Playlists, which name other files, are none of these."""
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return "mov"
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    if head[:4] == b"OggS":
        return "ogg"
    if head[:3] == b"FLV":
        return "flv"
    if head[:4] == b"\x00\x00\x01\xba":
        return "mpeg"
    if len(head) > 376 and head[0] == head[188] == head[376] == 0x47:
        return "mpegts"
    return None


def about(file: Path) -> dict[str, str]:
    """What NAME.json beside the video says of where it is from; {} if there is none that can be read."""
    try:
        with file.with_suffix(".json").open("rb") as stream:
            data = stream.read(SIDECAR_BYTES + 1)
        value = json.loads(data) if len(data) <= SIDECAR_BYTES else None
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(value, dict):
        return {}
    found = {name: next((value[key] for key in keys if key in value), None) for name, keys in SIDECAR.items()}
    return {name: str(each)[:LONGEST] for name, each in found.items() if isinstance(each, (str, int, float))}
