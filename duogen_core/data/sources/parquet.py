"""Interleaved Parquet rows (NeMo Curator's layout, see duogen_core.data.interleaved.rows): parquet:FILES.

The rows of a sample stand one after another, as Curator writes them. Opening reads the column sample_id; a sample is
then one row group that is read, so row groups should be small: `data export` writes some MB each, Curator's writer
takes write_kwargs={"row_group_size": 500}.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from duogen_core.data.interleaved.references import picture_bytes
from duogen_core.data.interleaved.rows import NEEDED, document_of
from duogen_core.data.runs.machine import states_too_much
from duogen_core.data.sources.base import Limits, Source, digest, find_files
from duogen_core.document import Document
from duogen_core.errors import DuoGenError, MissingPackage, unknown

MOST_GROUP_BYTES = 2 * 2**30
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
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise MissingPackage("parquet: sources", "pyarrow", "parquet") from None
        with self._named(str(self.files[shard])):
            return pyarrow.parquet.ParquetFile(self.files[shard])

    @contextmanager
    def _named(self, what: str) -> Iterator[None]:
        """What pyarrow raises for a damaged file, as one sentence: its own errors, and those of the values inside."""
        try:
            yield
        except DuoGenError:
            raise
        except (OSError, ValueError, TypeError, LookupError, ArithmeticError, MemoryError) as error:
            if isinstance(error, MemoryError) and not states_too_much(error):
                raise
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise DuoGenError(f"{what} cannot be read as Parquet: {reason}; is it whole?") from None

    def _index(self, shard: int) -> None:
        """Where the samples begin. A sample may go on in the next row group."""
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
            if file.metadata.row_group(group).total_byte_size > MOST_GROUP_BYTES:
                raise DuoGenError(
                    f"{self.files[shard]}: row group {group} is larger than {MOST_GROUP_BYTES // 2**30} GB, too much "
                    "to read for one sample; write it with smaller ones (row_group_size)."
                )
            with self._named(f"{self.files[shard]}, row group {group}"):
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
            with self._named(f"{self.files[shard]}, row group {group}"):
                rows += self._group(shard, group).slice(start, count - len(rows)).to_pylist()
            group, start = group + 1, 0
        root = self.root or self.files[shard].parent
        where = self.label(index)
        return document_of(rows, where, lambda row, place: picture_bytes(row, root, place), self.request)

    def _group(self, shard: int, group: int) -> Any:
        """A row group. The last ones are held: samples of one stand together, or come back in a shuffled epoch."""
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
