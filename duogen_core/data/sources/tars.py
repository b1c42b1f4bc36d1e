"""webdataset tars: members `key.json`, `key.000.png`, … of one sample stand one after another.

The JSON is that of document.json; an image's `file` is its member's name after "key." ("000.png") or its whole name.
Tars in the layout of MINT-1T and NeMo Curator, whose JSON has parallel lists of texts and images, are read too
(duogen_core.data.sources.rows).
Read with tarfile and not with the webdataset package: a tar's headers say where every sample lies, so samples are read
in any order and a resume costs nothing, where the package streams and would read everything again; and that package
unpickles members by their ending. Compressed tars cannot be entered in the middle and are refused.
"""

from __future__ import annotations

import os
import tarfile
from array import array
from pathlib import Path
from typing import IO, Any

from duogen_core.data.sources.base import Limits, Source, digest, find_files
from duogen_core.data.sources.rows import FILE, document_of, is_lists, rows_of_lists
from duogen_core.document import Document
from duogen_core.document.picture_file import MAX_BYTES
from duogen_core.document.reading import check_relative, document_from_json
from duogen_core.errors import DuoGenError
from duogen_core.files import MAX_JSON_BYTES, parse_json

BLOCK = tarfile.BLOCKSIZE
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
DAMAGED = 0  # members of an entry that stands for the part of a tar that cannot be read
MAX_READ = max(MAX_BYTES, MAX_JSON_BYTES) + BLOCK  # bytes at once: headers state sizes of their own
# tarfile documents its own errors only. A size that no file has makes it raise the other ones, from seek, read or int.
TAR_ERRORS = (tarfile.TarError, ValueError, OverflowError, EOFError, RecursionError)


class Capped:
    """Gives tarfile, which asks for as many bytes as a header states, only what the file has."""

    def __init__(self, stream: IO[bytes], size: int | None = None) -> None:
        self.stream, self.seek, self.tell = stream, stream.seek, stream.tell
        self.end = os.fstat(stream.fileno()).st_size if size is None else size

    def read(self, size: int = -1) -> bytes:
        left = max(self.end - self.tell(), 0)
        if (left if size < 0 else size) > MAX_READ:
            raise tarfile.ReadError(f"a header states {size:,} bytes")
        return self.stream.read(left if size < 0 else min(size, left))


class WebDataset(Source):
    def __init__(self, path: str, limits: Limits | None = None) -> None:
        super().__init__(f"webdataset:{path}", limits)
        self.files = find_files(path, (".tar",), "a .tar file, a folder of them or a pattern")
        self.sizes = [file.stat().st_size for file in self.files]
        self.shards, self.offsets, self.members = array("l"), array("q"), array("l")
        self.earlier: dict[int, int] = {}  # of samples whose key an earlier sample of the same tar has, where that is
        for shard in range(len(self.files)):
            self._index(shard)
        if not self.shards:
            raise DuoGenError(f"{path} holds no sample; expected tars with members key.json, key.000.png, …")

    def _index(self, shard: int) -> None:
        """Finds where the samples begin, from the headers alone; what cannot be read becomes one DAMAGED entry."""
        file = self.files[shard]
        try:
            with file.open("rb") as stream:
                refuse_compressed(stream.read(6), file)
                stream.seek(0)
                if stream.read(1):
                    stream.seek(0)
                    self._index_members(shard, stream)
        except OSError as error:
            raise DuoGenError(f"{file} cannot be read: {error.strerror or error}.") from None

    def _index_members(self, shard: int, stream: Any) -> None:
        key, end = None, 0
        first_of: dict[str, int] = {}
        try:
            archive = tarfile.TarFile(fileobj=Capped(stream))
            while (member := archive.next()) is not None:
                # a negative size would read the same members again and again, others lead beyond any file
                if not member.offset < archive.offset < 2**63:
                    raise tarfile.ReadError(f"{member.name} has the size {member.size}")
                end = archive.offset
                archive.members.clear()  # tarfile would keep all of them
                if member.isdir():
                    continue
                if sample_key(member.name) == key:
                    self.members[-1] += 1
                else:
                    key = sample_key(member.name)
                    if key in first_of:
                        self.earlier[len(self)] = first_of[key]
                    first_of.setdefault(key, member.offset)
                    self._add(shard, member.offset, 1)
            stream.seek(end)
            whole = stream.read(BLOCK) == bytes(BLOCK)  # without its end mark a tar is cut off, or damaged in a header
        except TAR_ERRORS:
            whole = False
        if not whole:
            self._add(shard, end, DAMAGED)

    def _add(self, shard: int, offset: int, members: int) -> None:
        self.shards.append(shard)
        self.offsets.append(offset)
        self.members.append(members)

    def __len__(self) -> int:
        return len(self.shards)

    def load(self, index: int) -> Document:
        file, offset, count = self.files[self.shards[index]], self.offsets[index], self.members[index]
        where = f"{file}, byte {offset}"
        if count == DAMAGED:
            raise DuoGenError(
                f"{where}: the tar is damaged or cut off here; what follows in it is lost. Write it again."
            )
        if index in self.earlier:
            raise DuoGenError(
                f"{where}: its key is already at byte {self.earlier[index]} of the same tar; members of a sample must "
                "follow each other, and two samples need two keys. Write the tar again."
            )
        try:
            with file.open("rb") as stream:
                stream.seek(offset)
                return document_of_members(Capped(stream), count, file)
        except DuoGenError:
            raise
        except TAR_ERRORS as error:
            raise DuoGenError(f"{where}: the sample is damaged ({error or type(error).__name__}).") from None
        except OSError as error:
            raise DuoGenError(f"{where} cannot be read: {error.strerror or error}.") from None

    def label(self, index: int) -> str:
        return f"{self.files[self.shards[index]]}, byte {self.offsets[index]}"

    def identity(self) -> dict[str, Any]:
        names = [(file.name, size) for file, size in zip(self.files, self.sizes, strict=True)]
        return {"kind": "webdataset", "samples": len(self), "digest": digest(names)}


def sample_key(name: str) -> str:
    """Returns the key by webdataset's rule: the path, with its last piece cut at the first dot."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def refuse_compressed(start: bytes, file: Path | str) -> None:
    for magic, kind in COMPRESSED.items():
        if start.startswith(magic):
            raise DuoGenError(
                f"{file} is compressed with {kind}; unpack it to a plain .tar, so that samples can be read in any "
                "order (images are compressed already, it will hardly grow)."
            )


def document_of_members(stream: Any, count: int, file: Path | str) -> Document:
    """Reads the next `count` members of a tar as one sample. `file` names the tar in messages."""
    archive = tarfile.TarFile(fileobj=stream)
    found: dict[str, tarfile.TarInfo] = {}
    while len(found) < count and (member := archive.next()) is not None:
        if member.isdir():
            continue
        check_relative(member.name.removeprefix("./"), str(file))
        if not member.isreg():
            raise DuoGenError(f"{file}: {member.name!r} is a link or a device; expected a plain file.")
        if member.name in found:
            raise DuoGenError(f"{file}: {member.name!r} is in it twice.")
        found[member.name] = member
    key = sample_key(next(iter(found), ""))

    def read_member(name: str, limit: int, where: str) -> bytes:
        member = found[name]
        if member.size > limit:
            raise DuoGenError(f"{where} is larger than {limit / 2**20:g} MB, the most that is read.")
        return archive.extractfile(member).read()

    def read(name: str, where: str) -> bytes:
        check_relative(name, where)
        for member in (f"{key}.{name}", name, f"./{name}"):
            if member in found:
                return read_member(member, MAX_BYTES, f"{name} (named by {where})")
        raise DuoGenError(f"The image {name} (named by {where}) is not among the sample's members in {file}.")

    where = f"{file}/{key}.json"
    if f"{key}.json" not in found:
        names = ", ".join(found) or "nothing"
        if dotted := [name for name in found if name.endswith(".json")]:
            raise DuoGenError(
                f"{file}: {' and '.join(dotted)[:400]} would {'share' if len(dotted) > 1 else 'have'} the key {key!r}, "
                "which is the name before the first dot; write the members with another character in place of the dots "
                "in their keys."
            )
        raise DuoGenError(
            f"{where} is missing: the sample has only {names[:400]}. The members of a sample stand one after another "
            "and share the name before the first dot."
        )
    value = parse_json(read_member(f"{key}.json", MAX_JSON_BYTES, where), where)
    if is_lists(value):
        return document_of(rows_of_lists(value), where, lambda row, place: read(str(row[FILE]), place))
    return document_from_json(value, read, where)
