"""Interleaved Parquet rows (NeMo Curator's layout, see duogen_core.data.sources.rows): parquet:FILES.

The rows of a sample stand one after another, as Curator writes them. Opening reads the column sample_id; a sample is
then one row group that is read, so row groups should be small: `data export` writes some MB each, Curator's writer
takes write_kwargs={"row_group_size": 500}.

The row of a picture may hold only a source_ref: {path, member, byte_offset, byte_size, frame_index}. A path alone is a
picture file; with a member it is a tar, read at byte_offset if that is stated. Only files inside one folder are read,
whatever a row says, and nothing from the network: such rows must be materialized by who wrote them.
"""

from __future__ import annotations

import lzma
import tarfile
import zlib
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from duogen_core.data.sources.base import Limits, Source, digest, find_files
from duogen_core.data.sources.rows import NEEDED, document_of
from duogen_core.data.sources.tars import TAR_ERRORS, Capped
from duogen_core.document import Document
from duogen_core.document.picture_file import MAX_BYTES
from duogen_core.errors import DuoGenError, MissingPackage, is_out_of_memory, states_too_much, unknown
from duogen_core.files import parse_json, read_limited

MAX_GROUP_BYTES = 2 * 2**30
HELD_BYTES = 256 * 2**20  # of decoded row groups that are held, the ones used last


class InterleavedParquet(Source):
    """request: a column with what the user says, for rows that have no turns. root: where source_refs may lead."""

    def __init__(
        self, path: str, request: str | None = None, root: str | None = None, limits: Limits | None = None
    ) -> None:
        super().__init__(f"parquet:{path}", limits)
        self.request = request
        self.files = find_files(path, (".parquet",), "a .parquet file, a folder of them or a pattern")
        self.root = Path(root) if root else None
        self.sizes = [file.stat().st_size for file in self.files]
        # of every sample: its file, the row group of its first row, that row in the group, and how many rows it has
        self.shards, self.groups, self.starts, self.counts = array("l"), array("l"), array("q"), array("l")
        self._held: OrderedDict[tuple[int, int], Any] = OrderedDict()
        for shard in range(len(self.files)):
            self._index(shard)
        if not self.shards:
            raise DuoGenError(f"{path} holds no rows; expected interleaved rows with sample_id, position and modality.")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": OrderedDict()}

    def _open(self, shard: int) -> Any:
        return open_parquet(self.files[shard], str(self.files[shard]))

    def _index(self, shard: int) -> None:
        """Finds where the samples begin. A sample may go on in the next row group."""
        file = self._open(shard)
        columns = file.schema_arrow.names
        if missing := [name for name in NEEDED if name not in columns]:
            raise DuoGenError(
                f"{self.files[shard]} has no column {missing[0]}; expected interleaved rows (NeMo Curator's layout). "
                "hf: reads Parquet files with a column of turns."
            )
        if self.request is not None and self.request not in columns:
            raise DuoGenError(unknown(f"{self.name}: the column", self.request, columns))
        seen: set[str] = set()
        last = None
        for group in range(file.num_row_groups):
            if file.metadata.row_group(group).total_byte_size > MAX_GROUP_BYTES:
                raise DuoGenError(
                    f"{self.files[shard]}: row group {group} is larger than {MAX_GROUP_BYTES // 2**30} GB, too much "
                    "to read for one sample; write it with smaller ones (row_group_size)."
                )
            with damaged_as_sentence(f"{self.files[shard]}, row group {group}"):
                samples = file.read_row_group(group, columns=["sample_id"])["sample_id"].to_pylist()
            for row, sample in enumerate(samples):
                if isinstance(sample, bool) or not isinstance(sample, (str, int)):
                    raise DuoGenError(
                        f"{self.files[shard]}, row group {group}, row {row}: the sample_id is {str(sample)[:80]!r}; "
                        "expected a text, the same for all rows of a sample."
                    )
                if sample == last:
                    self.counts[-1] += 1
                    continue
                if sample in seen:
                    raise DuoGenError(
                        f"{self.files[shard]}: the rows of the sample {sample!r} do not stand together; sort the rows "
                        "by sample_id and position."
                    )
                seen.add(sample)
                last = sample
                for values, value in zip((self.shards, self.groups, self.starts, self.counts), (shard, group, row, 1)):
                    values.append(value)

    def __len__(self) -> int:
        return len(self.shards)

    def load(self, index: int) -> Document:
        shard, group, start, count = (each[index] for each in (self.shards, self.groups, self.starts, self.counts))
        rows: list[dict[str, Any]] = []
        while len(rows) < count:
            with damaged_as_sentence(f"{self.files[shard]}, row group {group}"):
                rows += self._group(shard, group).slice(start, count - len(rows)).to_pylist()
            group, start = group + 1, 0
        root = self.root or self.files[shard].parent
        where = self.label(index)
        return document_of(rows, where, lambda row, place: picture_bytes(row, root, place), self.request)

    def _group(self, shard: int, group: int) -> Any:
        """Reads a row group. The last ones are cached: their samples come one after another, or again in an epoch."""
        key = shard, group
        if key not in self._held:
            self._held[key] = self._open(shard).read_row_group(group)
            while len(self._held) > 1 and sum(table.nbytes for table in self._held.values()) > HELD_BYTES:
                self._held.popitem(last=False)
        self._held.move_to_end(key)
        return self._held[key]

    def label(self, index: int) -> str:
        return f"{self.files[self.shards[index]]}, row group {self.groups[index]}, row {self.starts[index]}"

    def identity(self) -> dict[str, Any]:
        names = [(file.name, size) for file, size in zip(self.files, self.sizes, strict=True)]
        return {"kind": "parquet", "samples": len(self), "request": self.request, "digest": digest(names)}


def open_parquet(file: Any, name: str) -> Any:
    """Opens a path or a file object."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingPackage("parquet: sources", "pyarrow", "parquet") from None
    with damaged_as_sentence(name):
        return pyarrow.parquet.ParquetFile(file)


@contextmanager
def damaged_as_sentence(what: str) -> Iterator[None]:
    """Turns what pyarrow raises for a damaged file into a sentence: its own errors and those of values."""
    try:
        yield
    except DuoGenError:
        raise
    except (OSError, ValueError, TypeError, LookupError, ArithmeticError, MemoryError) as error:
        # A damaged file may state any size: then it is the file that is wrong and not the machine.
        if isinstance(error, MemoryError) and not states_too_much(error):
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DuoGenError(f"{what} cannot be read as Parquet: {reason}; is it whole?") from None


def picture_bytes(row: Mapping[str, Any], root: Path, where: str) -> bytes:
    """Returns the bytes in the row, or those that it points to inside `root`."""
    if isinstance(row.get("binary_content"), bytes):
        return row["binary_content"]
    text = row.get("source_ref")
    stated = parse_json(text.encode(), f"{where}, source_ref") if isinstance(text, str) and text else None
    if not isinstance(stated, dict) or not isinstance(stated.get("path"), str):
        raise DuoGenError(f"{where} is an image without its bytes and without a source_ref that says where they are.")
    if stated.get("frame_index"):
        raise DuoGenError(f"{where}: a frame of a TIFF file is not read; materialize it when the rows are written.")
    file, name = _inside(stated["path"], root, where), f"{stated['path']} (named by {where})"
    member, start, size = (stated.get(key) for key in ("member", "byte_offset", "byte_size"))
    if not member:
        return read_limited(file, MAX_BYTES, name)
    if isinstance(start, int) and isinstance(size, int) and size > 0:
        return _range(file, start, size, name)
    return _member(file, str(member), name)


def _inside(path: str, root: Path, where: str) -> Path:
    try:
        file = (root / path).resolve()
    except (OSError, ValueError, RuntimeError):
        raise DuoGenError(f"{where}: the path {path!r} cannot be followed.") from None
    if "://" in path or not file.is_relative_to(root.resolve()):
        raise DuoGenError(
            f"{where}: its image is at {path!r}, outside of {root}, and is not read; give the folder with the "
            "option root, or write the rows with their bytes."
        )
    return file


def _range(file: Path, start: int, size: int, name: str) -> bytes:
    if start < 0 or size > MAX_BYTES:
        raise DuoGenError(f"{name}: {size:,} bytes from byte {start:,} on are not an image that can be read.")
    try:
        with file.open("rb") as stream:
            stream.seek(start)
            return stream.read(size)
    except (OSError, OverflowError, ValueError) as error:  # the last two: an offset that no file has
        if is_out_of_memory(error):
            raise
        raise DuoGenError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}.") from None


def _member(file: Path, member: str, name: str) -> bytes:
    try:
        with file.open("rb") as opened, tarfile.open(fileobj=Capped(opened)) as archive:
            found = archive.getmember(member)
            stream = archive.extractfile(found) if found.isreg() and found.size <= MAX_BYTES else None
            if stream is None:
                raise DuoGenError(f"{name}: its member {member!r} is not a plain file of at most {MAX_BYTES:,} bytes.")
            return stream.read()
    except KeyError:
        raise DuoGenError(f"{name} has no member {member!r}.") from None
    except DuoGenError:
        raise
    except (OSError, lzma.LZMAError, zlib.error, *TAR_ERRORS) as error:
        if is_out_of_memory(error):
            raise
        raise DuoGenError(f"{name} cannot be read: {error or type(error).__name__}.") from None
