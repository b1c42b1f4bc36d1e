"""The samples of a finished shard, without decoding an image: its JSON, and where the files of its images lie.

for sample in samples(tar): sample.value["turns"], sample.read("000.png")
sample_at(tar, 1024)         the one that begins at this byte
finished(folder)             numbers of the shards that are whole
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from duogen_core.data.runs.folder import RunFolder
from duogen_core.data.sources.tars import BLOCK, TAR_ERRORS, Capped, sample_key
from duogen_core.document.reading import check_relative
from duogen_core.errors import DuoGenError
from duogen_core.files import MAX_JSON_BYTES, parse_json


@dataclass
class Sample:
    """value: a document as in document.json. places: name of an image's file -> where it begins in the tar, size."""

    file: Path
    offset: int
    key: str
    value: dict[str, Any] = field(default_factory=dict)
    places: dict[str, tuple[int, int]] = field(default_factory=dict)

    def read(self, name: str) -> bytes:
        """The bytes of an image's file."""
        if name not in self.places:
            raise DuoGenError(f"{self.where}: the image {name!r} is not among its members.")
        place, size = self.places[name]
        with self.file.open("rb") as stream:
            stream.seek(place)
            return stream.read(size)

    @property
    def where(self) -> str:
        return f"{self.file}, byte {self.offset}"

    def parts(self, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Role and part of every part of this type."""
        for turn in self.value["turns"]:
            yield from ((turn["role"], part) for part in turn["parts"] if part["type"] == kind)

    @property
    def meta(self) -> dict[str, Any]:
        return self.value.get("meta") or {}

    @property
    def url(self) -> str:
        url = self.meta.get("url", "")
        return url if isinstance(url, str) else ""

    @property
    def title(self) -> str:
        return " ".join(next((part["text"] for _, part in self.parts("text")), "").split())[:200]

    @property
    def time(self) -> int:
        """Seconds since 1970 of when the page was fetched; 0 if it says none."""
        try:
            found = datetime.fromisoformat(str(self.meta.get("time", "")).replace("Z", "+00:00"))
            return int((found if found.tzinfo else found.replace(tzinfo=timezone.utc)).timestamp())
        except (ValueError, OverflowError):
            return 0


def domain_of(url: str) -> str:
    """The host of a page, without www.; "" for what is no address."""
    try:
        return (urlsplit(url).hostname or "").removeprefix("www.")
    except ValueError:
        return ""


def finished(folder: Path) -> list[int]:
    run = RunFolder(folder)
    numbers = sorted(int(file.stem) for file in (folder / "logs").glob("*.jsonl") if file.stem.isdecimal())
    return [number for number in numbers if run.is_done(number) and run.tar(number).exists()]


def sample_at(file: Path, offset: int) -> Sample:
    for sample in samples(file, offset):
        return sample
    raise DuoGenError(f"{file}, byte {offset}: no sample begins here; the tar was changed since it was read.")


def samples(file: Path, offset: int = 0) -> Iterator[Sample]:
    """Every sample from this byte on. A tar that ends early, or is damaged, is a sentence."""
    try:
        with file.open("rb") as stream:
            stream.seek(offset)
            try:
                yield from _samples(file, stream)
            except TAR_ERRORS as error:
                raise _damaged(file, str(error) or type(error).__name__) from None
    except OSError as error:
        raise DuoGenError(f"{file} cannot be read: {error.strerror or error}.") from None


def _samples(file: Path, stream: Any) -> Iterator[Sample]:
    archive = tarfile.TarFile(fileobj=Capped(stream))
    found: Sample | None = None
    end = archive.offset
    while (member := archive.next()) is not None:
        if member.offset >= archive.offset:  # a negative size would read the same members again and again
            raise tarfile.ReadError(f"{member.name} has the size {member.size}")
        end = archive.offset
        archive.members.clear()  # tarfile would keep all of them
        if not member.isreg():
            raise tarfile.ReadError(f"{member.name!r} is no plain file")
        key = sample_key(member.name)
        if found is None or key != found.key:
            if found is not None:
                yield found
            check_relative(member.name, str(file))
            found = Sample(file, member.offset, key)
        name = member.name.removeprefix(f"{key}.")
        if name != "json":
            found.places[name] = member.offset_data, member.size
            continue
        if member.size > MAX_JSON_BYTES:
            raise tarfile.ReadError(f"{member.name} has {member.size:,} bytes")
        stream.seek(member.offset_data)
        data = stream.read(member.size)
        found.value = _checked(parse_json(data, found.where), found.where)
        if b"\\ud" in data.lower():  # escapes of surrogates: a half of a pair is no text, and no file in UTF-8 holds it
            try:
                json.dumps(found.value, ensure_ascii=False).encode("utf-8")
            except UnicodeEncodeError:
                raise DuoGenError(
                    f"{found.where}: its text holds half of a surrogate pair (\\ud800 to \\udfff), which is no "
                    "character; expected a document as the data engines write it."
                ) from None
    if found is not None:
        yield found
    stream.seek(end)
    if stream.read(BLOCK) != bytes(BLOCK):
        raise tarfile.ReadError("it ends early")


def _checked(value: Any, where: str) -> dict[str, Any]:
    """The document's JSON as the engines write it, as far as it is read here."""
    try:
        for turn in value["turns"]:
            for part in turn["parts"]:
                meta, kind = part.get("meta", {}), part["type"]
                right = isinstance(meta, dict) and isinstance(part["text" if kind == "text" else "file"], str)
                if kind not in ("text", "image") or not isinstance(turn["role"], str) or not right:
                    raise TypeError
        if not isinstance(value.get("meta", {}), dict):
            raise TypeError
    except (LookupError, TypeError, AttributeError):
        raise DuoGenError(f"{where}: expected a document as the data engines write it.") from None
    return value


def _damaged(file: Path, how: str) -> DuoGenError:
    return DuoGenError(
        f"{file} is damaged ({how}). Remove {RunFolder(file.parents[1]).log(int(file.stem))} and run the command that "
        "made it again: it makes this shard anew."
        if file.stem.isdecimal()
        else f"{file} is damaged ({how})."
    )
