"""One shard of a run while it is written: the tar of its Documents, its times and its log.

    with new_shard(run, 3) as shard:
        shard.add("00000192", document, photos_as_jpeg(90))
        shard.log({"number": 192, "kept": True})
        shard.seconds["walk"] += 0.2

Each of the three files appears whole or not at all (`whole_file`), the log last; none does if the block is left by an
exception. A sample of the tar is key.json with key.000.png, key.001.jpg, …
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from duogen_core.data.runs.folder import RunFolder
from duogen_core.document import Document, Picture
from duogen_core.document.store import document_json
from duogen_core.errors import DuoGenError
from duogen_core.files import atomic_path

PNG_LEVEL = 4  # of 9: within a few per cent of the smallest, in a third of the time
Encode = Callable[[Picture], tuple[bytes, str]]  # a picture's file, and the ending of its name


class NewShard:
    def __init__(self, archive: tarfile.TarFile) -> None:
        self.archive, self.seconds = archive, Counter()
        self.lines: list[str] = []

    def add(self, key: str, document: Document, encode: Encode) -> None:
        add_document(self.archive, key, document, encode)

    def add_tar(self, tar: IO[bytes]) -> None:
        """All that stands in another tar, which a thread has written ahead."""
        with tarfile.open(fileobj=tar) as written:
            for member in written:
                self.archive.addfile(member, written.extractfile(member))

    def log(self, entry: Mapping[str, Any]) -> None:
        self.lines.append(json.dumps(entry, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def new_shard(run: RunFolder, number: int) -> Iterator[NewShard]:
    started = time.perf_counter()
    with whole_file(run.tar(number)) as stream, tarfile.open(fileobj=stream, mode="w") as archive:
        shard = NewShard(archive)
        yield shard
    times = {"entries": len(shard.lines), "seconds": time.perf_counter() - started, "stages": dict(shard.seconds)}
    with whole_file(run.times(number)) as stream:
        stream.write(json.dumps(times).encode())
    with whole_file(run.log(number)) as stream:
        stream.write("".join(shard.lines).encode("utf-8", "replace"))


def add_document(archive: tarfile.TarFile, key: str, document: Document, encode: Encode) -> None:
    add_files(archive, document_files(key, document, encode))


def document_files(key: str, document: Document, encode: Encode) -> list[tuple[str, bytes]]:
    """Names and bytes of the members of a sample: its JSON, then its pictures."""
    files = [encode(picture) for picture in document.pictures]
    names = [f"{index:03d}.{ending}" for index, (_, ending) in enumerate(files)]
    value = json.dumps(document_json(document, names), ensure_ascii=False, allow_nan=False).encode("utf-8")
    pictures = [(f"{key}.{name}", data) for name, (data, _) in zip(names, files)]
    return [(f"{key}.json", value), *pictures]


def add_files(archive: tarfile.TarFile, files: Iterable[tuple[str, bytes]]) -> None:
    """Names and what is in them."""
    for name, data in files:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))


def photos_as_jpeg(quality: int) -> Encode:
    """JPEG for photographs (meta.class), PNG for the rest."""
    return lambda picture: (
        as_jpeg(picture.pixels, quality) if picture.meta.get("class") == "photo" else as_png(picture.pixels)
    )


def as_jpeg(pixels: np.ndarray, quality: int) -> tuple[bytes, str]:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue(), "jpg"


def as_png(pixels: np.ndarray) -> tuple[bytes, str]:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=PNG_LEVEL)
    return buffer.getvalue(), "png"


@contextlib.contextmanager
def whole_file(file: Path) -> Iterator[Any]:
    """A stream whose file takes its name when all of it is written."""
    try:
        with atomic_path(file, shared=True) as temporary, temporary.open("wb") as stream:
            yield stream
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DuoGenError(
                f"The disk is full: {file} could not be written. Finished shards are whole; free some space, then run "
                "the same command again to go on."
            ) from None
        raise DuoGenError(f"{file} could not be written: {error.strerror or error}.") from None
