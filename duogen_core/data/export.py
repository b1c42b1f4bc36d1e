"""Any source of documents -> a folder of shards: interleaved Parquet files, or webdataset tars, ours or MINT-1T's.

    for result in export(source, folder, "parquet"): ...   # a mapping a shard: samples, bad

Shard k holds the samples k * size … in the order of the source, and is written whole or not at all; the same call goes
on where the last one stopped. Bad samples are left out and named in bad_samples.jsonl. OUT/export.json says what is
written here, so that nothing else is added to it.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any

from PIL import Image

from duogen_core.data.runs.shards import add_document, add_files, whole_file
from duogen_core.data.sources.base import Bad, Sample, Source
from duogen_core.data.sources.mixture import BadLog
from duogen_core.data.sources.rows import as_png, lists_of, rows_of, schema
from duogen_core.data.sources.stream import Stream
from duogen_core.document import Document, Picture
from duogen_core.errors import DuoGenError, MissingPackage
from duogen_core.files import read_json, write_atomically

ENDINGS = {"parquet": "parquet", "webdataset": "tar", "mint1t": "tar"}
STATE = "export.json"
GROUP_BYTES = 4 * 2**20
TEXTS = ("content_type", "modality", "role", "sample_id")  # few different values


def begin(source: Source, folder: Path, kind: str, size: int, quality: int | None) -> None:
    """Makes the folder, or checks that it holds the beginning of this very export."""
    if isinstance(source, Stream):
        raise DuoGenError(f"{source.name} is a stream; copy its shards, and name them as webdataset: or parquet:.")
    if source.endless:
        raise DuoGenError(f"{source.name} is endless; `data make` writes as many documents of it as you want.")
    if size < 1 or (quality is not None and not 1 <= quality <= 100):
        raise DuoGenError(f"A shard of {size} samples with JPEG quality {quality}; expected at least 1, and 1 to 100.")
    state = {"source": source.identity(), "kind": kind, "shard_samples": size, "photo_quality": quality}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        there = [entry for entry in folder.iterdir() if not entry.name.endswith(".duogen-tmp")]
        found = read_json(folder / STATE) if (folder / STATE).exists() else None
    except OSError as error:
        raise DuoGenError(f"The folder {folder} cannot be used ({error}); choose another --out.") from None
    if found is not None and found != state:
        raise DuoGenError(f"{folder} holds an export of something else or with other options; choose another --out.")
    if found is None and there:
        raise DuoGenError(f"The folder {folder} has something else in it; choose another --out, or empty it first.")
    write_atomically(folder / STATE, (json.dumps(state, indent=2) + "\n").encode())


def export(
    source: Source, folder: Path, kind: str = "parquet", size: int = 1000, quality: int | None = None
) -> Iterator[dict[str, int]]:
    """Writes the shards that are missing; says of each how many samples it has and how many were bad.

    quality: photographs (meta.class) become JPEG files of it; None keeps every pixel.
    """
    begin(source, folder, kind, size, quality)
    bad_log = BadLog(folder / "bad_samples.jsonl")
    for file in folder.glob(".*.duogen-tmp"):
        file.unlink(missing_ok=True)
    for number, first in enumerate(range(0, len(source), size)):
        file = folder / f"{number:05d}.{ENDINGS[kind]}"
        if file.exists():
            continue
        bad: list[Bad] = []
        samples = _good(source, range(first, min(first + size, len(source))), bad)
        count = _write(file, kind, samples, quality)
        for each in bad:
            bad_log(each)
        yield {"shard": number, "samples": count, "bad": len(bad)}


def _good(source: Source, indices: range, bad: list[Bad]) -> Iterator[tuple[str, Document]]:
    for index in indices:
        found = source.read(index)
        if isinstance(found, Sample):
            yield f"{index:08d}", found.document
        else:
            bad.append(found)


def _write(file: Path, kind: str, samples: Iterator[tuple[str, Document]], quality: int | None) -> int:
    encode = partial(encoded, quality=quality)
    with whole_file(file) as stream:
        if kind == "parquet":
            return write_rows(stream, (rows_of(document, key, encode) for key, document in samples))
        count = 0
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for key, document in samples:
                if kind == "mint1t":
                    add_files(archive, lists_of(rows_of(document, key, encode)))
                else:
                    add_document(archive, key, document, partial(_file, quality=quality))
                count += 1
        return count


def _file(picture: Picture, quality: int | None) -> tuple[bytes, str]:
    data, kind = encoded(picture, quality)
    return data, "jpg" if kind == "image/jpeg" else "png"


def encoded(picture: Picture, quality: int | None) -> tuple[bytes, str]:
    """A picture's file and its type: PNG, or JPEG for a photograph if that is wanted."""
    if quality is None or picture.meta.get("class") != "photo":
        return as_png(picture)
    buffer = io.BytesIO()
    Image.fromarray(picture.pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue(), "image/jpeg"


def write_rows(stream: IO[bytes], samples: Iterable[list[Mapping[str, Any]]]) -> int:
    """Writes samples as Parquet, to be read one by one: whole samples in row groups of a few MB. Returns how many.

    Texts are compressed, pictures are not: they are already. The same rows give the same bytes (with the same pyarrow).
    """
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
