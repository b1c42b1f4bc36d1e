"""The samples of a shard in blocks: as many samples as are held together in memory, cut from its beginning on.

    shard = open_blocks(Shard("…/train-000.tar"), documents=32, size=16 * 2**20)
    block = shard.read(START)      samples as raw bytes; block.next is where the next one begins, None behind the last
    block = shard.outline(START)   the same without the samples: headers or one column only
    shard.document(block.samples[k])   decodes one; a DuoGenError names shard and member, what was read before stays

Where blocks begin depends on the shard and on the two limits alone, so that they can be noted down and entered again.
A tar is read from a block's first byte on, in order; of Parquet a block is a run of row groups. A tar that ends early,
or is damaged, ends with a sample that says so. Nothing is unpickled, whatever its name ends in: members are the JSON
and the images that it names, read as those of map-style sources are (tars, rows).
"""

from __future__ import annotations

import io
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from duogen_core.data.sources.parquet import MAX_GROUP_BYTES, damaged_as_sentence, open_parquet, picture_bytes
from duogen_core.data.sources.rows import NEEDED, document_of
from duogen_core.data.sources.shards import Shard, ShardFile, ShardStream, Unreachable, is_remote
from duogen_core.data.sources.tars import (
    BLOCK,
    MAX_READ,
    TAR_ERRORS,
    Capped,
    document_of_members,
    refuse_compressed,
    sample_key,
)
from duogen_core.document import Document
from duogen_core.errors import DuoGenError, unknown

CHUNK = 2**20  # bytes that are read at once, at least
MAX_SAMPLE_BYTES = 256 * 2**20


class Place(NamedTuple):
    """Where a block begins: number of its first sample in the shard, and byte of a tar or row group of Parquet."""

    sample: int = 0
    position: int = 0


START = Place()


class Raw(NamedTuple):
    """A sample that is not decoded. content: bytes of a tar, or rows of Parquet. fault: why there is none."""

    label: str
    content: Any = None
    members: int = 0
    fault: str | None = None


@dataclass(frozen=True)
class Block:
    place: Place
    count: int
    next: Place | None
    samples: tuple[Raw, ...] = ()  # none in an outline
    size: int = 0  # bytes that the samples take


class Blocks(ABC):
    def __init__(self, shard: Shard, documents: int, size: int) -> None:
        self.shard, self.documents, self.bytes = shard, documents, size
        self.file = ShardFile(shard)

    @abstractmethod
    def read(self, place: Place) -> Block: ...

    @abstractmethod
    def outline(self, place: Place) -> Block: ...

    @abstractmethod
    def document(self, raw: Raw) -> Document: ...

    def packed(self, raw: Raw) -> Raw:
        """A sample as it can be sent to another process, whose `document` takes it."""
        return raw

    def close(self) -> None:
        self.file.close()


def open_blocks(shard: Shard, documents: int, size: int, request: str | None = None) -> Blocks:
    if shard.name.endswith(".parquet"):
        return ParquetBlocks(shard, documents, size, request)
    return TarBlocks(shard, documents, size)


# ---------------------------------------------------------------- tars


class _Window:
    """A part of a shard as a file for tarfile: it is read in chunks, and what `forget` was told of is dropped.

    keep: reads through what lies between two headers, since it will be taken; else it jumps.
    """

    def __init__(self, file: ShardFile, start: int, keep: bool, ahead: bytes = b"") -> None:
        self.file, self.keep = file, keep
        self.base, self.data, self.position = start, bytearray(ahead), start

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence == 2 and self.file.size is not None:
            offset += self.file.size
        self.position = offset + (self.position if whence == 1 else 0)
        return self.position

    def tell(self) -> int:
        return self.position

    def read(self, count: int = -1) -> bytes:
        if not 0 <= count <= MAX_READ:
            raise tarfile.ReadError(f"a header states {count:,} bytes")
        found = self._bytes(self.position, self.position + count)
        self.position += len(found)
        return found

    def _bytes(self, start: int, stop: int) -> bytes:
        gap = start - self.base - len(self.data)
        if start < self.base or gap > (MAX_SAMPLE_BYTES if self.keep else 0):
            self.base, self.data = start, bytearray()
        while (there := self.base + len(self.data)) < stop:
            piece = self.file.read_at(there, max(CHUNK, stop - there))
            if not piece:
                break
            self.data += piece
        return bytes(self.data[start - self.base : stop - self.base])

    def take(self, start: int, stop: int) -> bytes:
        """Returns these bytes and drops them."""
        found = self._bytes(start, stop)
        self.forget(stop)
        return found

    def forget(self, before: int) -> None:
        if before >= self.base:
            del self.data[: before - self.base]
            self.base = before


class _Span(NamedTuple):
    """The members of one sample in a tar, from byte to byte."""

    start: int
    stop: int
    members: int
    fault: str | None = None


class TarBlocks(Blocks):
    _ahead: tuple[int, bytes] = (0, b"")  # what was read behind the last block

    def read(self, place: Place) -> Block:
        start, ahead = self._ahead
        window = _Window(self.file, place.position, True, ahead if start == place.position else b"")
        samples, size, end = [], 0, None
        for span in self._spans(window):
            label = f"{self.shard}, byte {span.start}"
            content = None if span.fault else window.take(span.start, span.stop)
            window.forget(span.stop)
            samples.append(Raw(label, content, span.members, span.fault))
            size += len(content or b"")
            if self._is_full(len(samples), span.stop - place.position):
                end = Place(place.sample + len(samples), span.stop)
                break
        self._ahead = (window.base, bytes(window.data[: 2 * CHUNK])) if end else (0, b"")
        return Block(place, len(samples), end, tuple(samples), size)

    def outline(self, place: Place) -> Block:
        count = 0
        for span in self._spans(_Window(self.file, place.position, False)):
            count += 1
            if self._is_full(count, span.stop - place.position):
                return Block(place, count, Place(place.sample + count, span.stop))
        return Block(place, count, None)

    def _is_full(self, samples: int, size: int) -> bool:
        return samples >= self.documents or size >= self.bytes

    def _spans(self, window: _Window) -> Iterator[_Span]:
        """Yields the samples from the window's place on, by their headers; what cannot be read becomes the last one."""
        begin = end = window.position
        if not begin:
            try:
                refuse_compressed(window.read(6), str(self.shard))
            except Unreachable:
                raise
            except DuoGenError as error:
                yield _Span(0, 0, 0, str(error))
                return
            window.seek(0)
            if not window.data:
                return
        size = self.file.size
        key, members, fault, last = None, 0, None, ""
        whole = False
        try:
            archive = tarfile.TarFile(fileobj=window)
            while (member := archive.next()) is not None:
                # a negative size would read the same members again and again, others lead beyond any file
                if not member.offset < archive.offset < 2**63:
                    raise tarfile.ReadError(f"{member.name} has the size {member.size}")
                archive.members.clear()  # tarfile would keep all of them
                if member.isdir():
                    end = archive.offset
                    continue
                if sample_key(member.name) != key:
                    if members:
                        yield _Span(begin, member.offset, members, fault)
                    begin, key, members, fault = member.offset, sample_key(member.name), 0, None
                members, end, last = members + 1, archive.offset, member.name
                if end - begin > MAX_SAMPLE_BYTES and fault is None:
                    fault = (
                        f"{self.shard}, byte {begin}: the sample is larger than {MAX_SAMPLE_BYTES / 2**20:g} MB with "
                        f"its member {last!r}, the most that is read."
                    )
                if fault:
                    window.forget(end - 1)
                if size is not None and member.offset_data + member.size > size:
                    yield _Span(begin, size, members, self._cut(size, f"in the middle of its member {last!r}"))
                    return
            window.seek(end)
            whole = window.read(BLOCK) == bytes(BLOCK)  # without its end mark a tar is cut off, or damaged in a header
        except Unreachable:
            raise
        except TAR_ERRORS:
            pass
        if members:
            yield _Span(begin, end, members, fault)
        if not whole:
            after = f" behind its member {last!r}" if last else ""
            what = f"the tar is damaged or cut off here{after}; what follows in it is lost. Write it again."
            yield _Span(end, end, 0, f"{self.shard}, byte {end}: {what}")

    def _cut(self, size: int, where: str) -> str:
        return f"{self.shard}: the shard ends early, at byte {size:,}, {where}. Write it, or copy it, again."

    def document(self, raw: Raw) -> Document:
        try:
            stream = Capped(io.BytesIO(raw.content), len(raw.content))
            return document_of_members(stream, raw.members, str(self.shard))
        except TAR_ERRORS as error:
            if isinstance(error, DuoGenError):
                raise
            raise DuoGenError(f"{raw.label}: the sample is damaged ({error or type(error).__name__}).") from None


# ---------------------------------------------------------------- Parquet


class ParquetBlocks(Blocks):
    """Rows of one sample stand one after another, and may go on in the next row group."""

    def __init__(self, shard: Shard, documents: int, size: int, request: str | None) -> None:
        super().__init__(shard, documents, size)
        self.request = request
        self._opened: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def _parquet(self) -> Any:
        if self._opened is None:
            opened = open_parquet(ShardStream(self.file), str(self.shard))
            columns = opened.schema_arrow.names
            if missing := [name for name in NEEDED if name not in columns]:
                raise DuoGenError(
                    f"{self.shard} has no column {missing[0]}; expected interleaved rows (NeMo Curator's layout)."
                )
            if self.request is not None and self.request not in columns:
                raise DuoGenError(unknown(f"{self.shard}: the column", self.request, columns))
            self._opened = opened
        return self._opened

    def read(self, place: Place) -> Block:
        return self._block(place, None)

    def outline(self, place: Place) -> Block:
        return self._block(place, ["sample_id"])

    def _block(self, place: Place, columns: list[str] | None) -> Block:
        try:
            return self._run(place, columns)
        except _Damaged as error:  # what the row groups before hold stays
            raw = Raw(f"{self.shard}, row group {error.group}", fault=str(error))
            return Block(place, 1, None, () if columns else (raw,))

    def _run(self, place: Place, columns: list[str] | None) -> Block:
        """Where samples begin is read from the column sample_id alone, in both kinds of a pass: a row group whose other
        columns are damaged costs its samples, not the order."""
        file = self._whole(self._parquet, 0)
        groups, group, count, size = file.num_row_groups, place.position, 0, 0
        last = self._ids(group - 1)[-1:] if group else []  # a sample whose rows go on in this group
        samples: list[tuple[str, list[Any], list[str]]] = []  # label, pieces of its rows, faults
        while group < groups:
            if group > place.position and (count >= self.documents or size >= self.bytes):
                break
            try:
                ids, table, fault = self._content(group, columns)
            except _Damaged:
                if group > place.position:  # it begins the next block, and is named there
                    break
                raise
            for start, stop in _runs(ids):
                if ids[start : start + 1] != last:
                    count += 1
                    samples.append((f"{self.shard}, row group {group}, row {start}", [], []))
                    last = ids[start : start + 1]
                if samples:
                    samples[-1][1].append(None if table is None else table.slice(start, stop - start))
                    samples[-1][2].extend(fault)
            size += file.metadata.row_group(group).total_byte_size
            group += 1
        after = Place(place.sample + count, group) if group < groups else None
        if columns:
            return Block(place, count, after)
        while samples and group < groups:  # the rows of the last sample in the groups behind
            try:
                ids, table, fault = self._content(group, None)
            except _Damaged as error:
                samples[-1][2].append(str(error))
                break
            stop = next(stop for _, stop in _runs(ids)) if ids[:1] == last else 0
            samples[-1][1].append(None if table is None else table.slice(0, stop))
            samples[-1][2].extend(fault if stop else [])
            group += 1
            if stop < len(ids):
                break
        return Block(place, count, after, tuple(map(_raw, samples)), size)

    def _content(self, group: int, columns: list[str] | None) -> tuple[list[Any], Any, list[str]]:
        """Returns the sample_ids of a row group, its rows, and what is wrong with the rows."""
        if columns:
            return self._ids(group), None, []
        try:
            table = self._group(group, None)
        except _Damaged as error:
            return self._ids(group), None, [str(error)]
        return self._sample_ids(table, group), table, []

    def _ids(self, group: int) -> list[Any]:
        return self._sample_ids(self._group(group, ["sample_id"]), group)

    def _sample_ids(self, table: Any, group: int) -> list[Any]:
        found = table["sample_id"].to_pylist()
        for row, sample in enumerate(found):
            if isinstance(sample, bool) or not isinstance(sample, (str, int)):
                raise _Damaged(
                    f"{self.shard}, row group {group}, row {row}: the sample_id is {str(sample)[:80]!r}; expected a "
                    "text, the same for all rows of a sample.",
                    group,
                )
        return found

    def _group(self, group: int, columns: list[str] | None) -> Any:
        file = self._parquet()
        if file.metadata.row_group(group).total_byte_size > MAX_GROUP_BYTES:
            raise _Damaged(
                f"{self.shard}: row group {group} is larger than {MAX_GROUP_BYTES // 2**30} GB, too much to read at "
                "once; write it with smaller ones (row_group_size).",
                group,
            )
        return self._whole(lambda: file.read_row_group(group, columns=columns), group)

    def _whole(self, read: Any, group: int) -> Any:
        try:
            with damaged_as_sentence(f"{self.shard}, row group {group}"):
                return read()
        except (_Damaged, Unreachable):
            raise
        except DuoGenError as error:
            raise _Damaged(str(error), group) from None

    def document(self, raw: Raw) -> Document:
        address = self.shard.address

        def read(row: Any, where: str) -> bytes:
            if is_remote(address) and not isinstance(row.get("binary_content"), bytes):
                raise DuoGenError(f"{where} is an image without its bytes; a stream that is not local reads no others.")
            return picture_bytes(row, Path(address).parent, where)

        rows = raw.content
        if isinstance(rows, bytes):
            import pyarrow

            rows = pyarrow.ipc.open_stream(rows).read_all()
        return document_of(rows.to_pylist(), raw.label, read, self.request)

    def packed(self, raw: Raw) -> Raw:
        if raw.content is None:
            return raw
        import pyarrow

        sink = pyarrow.BufferOutputStream()  # pickled, some rows of a table may bring all of its memory along
        with pyarrow.ipc.new_stream(sink, raw.content.schema) as stream:
            stream.write_table(raw.content)
        return raw._replace(content=sink.getvalue().to_pybytes())

    def close(self) -> None:
        self._opened = None
        super().close()


def _runs(ids: list[Any]) -> Iterator[tuple[int, int]]:
    """Yields from where to where the same sample_id stands."""
    start = 0
    for row in range(1, len(ids) + 1):
        if row == len(ids) or ids[row] != ids[start]:
            yield start, row
            start = row


def _raw(sample: tuple[str, list[Any], list[str]]) -> Raw:
    import pyarrow

    label, pieces, faults = sample
    if faults:
        return Raw(label, fault=faults[0])
    return Raw(label, pyarrow.concat_tables([piece for piece in pieces if piece is not None]))


class _Damaged(DuoGenError):
    def __init__(self, sentence: str, group: int) -> None:
        super().__init__(sentence)
        self.group = group
