"""webdataset tars: members `key.json`, `key.000.png`, … of one sample stand one after another.

The JSON is that of document.json; an image's `file` is its member's name after "key." ("000.png") or its whole name.
Tars in the layout of MINT-1T and NeMo Curator, whose JSON has parallel lists of texts and images, are read too
(duogen_core.data.interleaved.lists).
Read with tarfile and not with the webdataset package: a tar's headers say where every sample lies, so samples are read
in any order and a resume costs nothing, where the package streams and would read everything again; and that package
unpickles members by their ending. Compressed tars cannot be entered in the middle and are refused.
"""

from __future__ import annotations

import tarfile
from array import array
from pathlib import Path
from typing import Any

from duogen_core.data.interleaved.lists import FILE, is_lists, rows_of_lists
from duogen_core.data.interleaved.rows import document_of
from duogen_core.data.sources.base import Limits, Source
from duogen_core.data.sources.files import digest, find_files
from duogen_core.document import Document
from duogen_core.errors import DuoGenError
from duogen_core.picture_file import MAX_BYTES
from duogen_core.store_read import MAX_JSON_BYTES, check_relative, document_from_json, parse_json

BLOCK = tarfile.BLOCKSIZE
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
DAMAGED = 0  # members of an entry that stands for the part of a tar that cannot be read


class WebDataset(Source):
    def __init__(self, path: str, limits: Limits | None = None) -> None:
        super().__init__(f"webdataset:{path}", limits)
        self.files = find_files(path, (".tar",), "a .tar file, a folder of them or a pattern")
        self.sizes = [file.stat().st_size for file in self.files]
        self.shards, self.offsets, self.members = array("l"), array("q"), array("l")
        for shard in range(len(self.files)):
            self._index(shard)
        if not self.shards:
            raise DuoGenError(f"{path} holds no sample; expected tars with members key.json, key.000.png, …")

    def _index(self, shard: int) -> None:
        """Where the samples begin, from the headers alone; what cannot be read becomes one DAMAGED entry."""
        file = self.files[shard]
        try:
            with file.open("rb") as stream:
                _refuse_compressed(stream.read(6), file)
                stream.seek(0)
                if stream.read(1):
                    stream.seek(0)
                    self._index_members(shard, stream)
        except OSError as error:
            raise DuoGenError(f"{file} cannot be read: {error.strerror or error}.") from None

    def _index_members(self, shard: int, stream: Any) -> None:
        key, end = None, 0
        try:
            archive = tarfile.TarFile(fileobj=stream)
            while (member := archive.next()) is not None:
                end = archive.offset
                archive.members.clear()  # tarfile would keep all of them
                if member.isdir():
                    continue
                if sample_key(member.name) == key:
                    self.members[-1] += 1
                else:
                    key = sample_key(member.name)
                    self._add(shard, member.offset, 1)
            stream.seek(end)
            whole = stream.read(BLOCK) == bytes(BLOCK)  # without its end mark a tar is cut off, or damaged in a header
        except tarfile.TarError:
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
        try:
            with file.open("rb") as stream:
                stream.seek(offset)
                return _document(stream, count, file)
        except tarfile.TarError as error:
            raise DuoGenError(f"{where}: the sample is damaged ({error}).") from None
        except OSError as error:
            raise DuoGenError(f"{where} cannot be read: {error.strerror or error}.") from None

    def label(self, index: int) -> str:
        return f"{self.files[self.shards[index]]}, byte {self.offsets[index]}"

    def identity(self) -> dict[str, Any]:
        names = [(file.name, size) for file, size in zip(self.files, self.sizes, strict=True)]
        return {"kind": "webdataset", "samples": len(self), "digest": digest(names)}


def sample_key(name: str) -> str:
    """webdataset's rule: the path, and of its last piece what stands before the first dot."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def _refuse_compressed(start: bytes, file: Path) -> None:
    for magic, kind in COMPRESSED.items():
        if start.startswith(magic):
            raise DuoGenError(
                f"{file} is compressed with {kind}; unpack it to a plain .tar, so that samples can be read in any "
                "order (pictures are compressed already, it will hardly grow)."
            )


def _document(stream: Any, count: int, file: Path) -> Document:
    archive = tarfile.TarFile(fileobj=stream)
    found: dict[str, tarfile.TarInfo] = {}
    while len(found) < count and (member := archive.next()) is not None:
        if member.isdir():
            continue
        check_relative(member.name.removeprefix("./"), str(file))
        if not member.isreg():
            raise DuoGenError(f"{file}: {member.name!r} is a link or a device; expected a plain file.")
        if member.name in found:
            raise DuoGenError(f"{file}: {member.name!r} stands in it twice.")
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
        raise DuoGenError(f"The picture {name} (named by {where}) is not among the sample's members in {file}.")

    where = f"{file}/{key}.json"
    if f"{key}.json" not in found:
        raise DuoGenError(
            f"{where} is missing: the sample has only {', '.join(found) or 'nothing'}. The members of a sample stand "
            "one after another and share the name before the first dot."
        )
    value = parse_json(read_member(f"{key}.json", MAX_JSON_BYTES, where), where)
    if is_lists(value):
        return document_of(rows_of_lists(value), where, lambda row, place: read(str(row[FILE]), place))
    return document_from_json(value, read, where)
