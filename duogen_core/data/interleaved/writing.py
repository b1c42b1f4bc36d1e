"""Rows -> a Parquet file that can be read sample by sample: whole samples in row groups of a few MB.

Texts are compressed, pictures are not: they are already. The same rows give the same bytes (with the same pyarrow).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import IO, Any

from duogen_core.data.sources.rows import schema
from duogen_core.errors import MissingPackage

GROUP_BYTES = 4 * 2**20
TEXTS = ("content_type", "modality", "role", "sample_id")  # few different values


def write_rows(stream: IO[bytes], samples: Iterable[list[Mapping[str, Any]]]) -> int:
    """Writes every sample's rows; returns how many samples there were."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingPackage("Writing Parquet", "pyarrow", "parquet") from None
    columns = schema()
    compression = {name: "none" if name == "binary_content" else "snappy" for name in columns.names}
    count = size = 0
    rows: list[Mapping[str, Any]] = []
    with pyarrow.parquet.ParquetWriter(stream, columns, compression=compression, use_dictionary=list(TEXTS)) as writer:

        def flush() -> None:
            if rows:
                writer.write_table(pyarrow.Table.from_pylist(rows, schema=columns))

        for sample in samples:
            rows += sample
            count += 1
            size += sum(len(row["binary_content"] or b"") + len(row["text_content"] or "") + 100 for row in sample)
            if size >= GROUP_BYTES:
                flush()
                rows, size = [], 0
        flush()
    return count
