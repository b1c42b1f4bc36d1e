"""Documents as this pack writes them: folders and .zip files (documents:PATH), and lines of JSON (jsonl:PATH)."""

from __future__ import annotations

import os
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from duogen_core.data.sources.base import Limits, Source, digest, find_files
from duogen_core.document import Document
from duogen_core.document.reading import JSON_NAME, document_from_json, folder_reader, load_document
from duogen_core.errors import DuoGenError
from duogen_core.files import MAX_JSON_BYTES, parse_json

CHUNK = 1 << 20  # bytes that are searched for line ends at a time


class DocumentFolders(Source):
    """A folder of document folders and .zip files of them, at any depth.

    A folder with document.json is a document and is not searched further; so is one with nothing but images/ in it,
    which is then reported as bad. Names that begin with a dot are passed over. A link to a folder is followed when that
    folder is itself a document.
    """

    def __init__(self, path: str, limits: Limits | None = None) -> None:
        super().__init__(f"documents:{path}", limits)
        self.root = Path(path)
        if self.root.suffix.lower() == ".zip" and self.root.is_file():
            self.root, self.names = self.root.parent, [self.root.name]
        elif self.root.is_dir():
            try:
                self.names = sorted(_documents(self.root, ""))
            except OSError as error:
                raise DuoGenError(f"The folder {path} cannot be searched: {error.strerror or error}.") from None
        else:
            raise DuoGenError(f"The folder {path} does not exist; expected a folder of document folders or .zip files.")
        if not self.names:
            raise DuoGenError(f"The folder {path} holds no document; expected folders with {JSON_NAME}, or .zip files.")

    def __len__(self) -> int:
        return len(self.names)

    def load(self, index: int) -> Document:
        return load_document(self.root / self.names[index])

    def label(self, index: int) -> str:
        return str(self.root / self.names[index])

    def identity(self) -> dict[str, Any]:
        return {"kind": "documents", "samples": len(self), "digest": digest(self.names)}


def _documents(folder: Path, inside: str) -> Iterator[str]:
    """Yields names relative to the root; '' is the root itself."""
    with os.scandir(folder) as entries:
        found = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    if any(entry.name == JSON_NAME for entry in found) or [entry.name for entry in found] == ["images"]:
        yield inside
        return
    for entry in found:
        name = f"{inside}/{entry.name}" if inside else entry.name
        if entry.name.lower().endswith(".zip") and entry.is_file():
            yield name
        elif entry.is_dir(follow_symlinks=False):
            yield from _documents(Path(entry.path), name)
        elif entry.is_dir() and os.path.exists(os.path.join(entry.path, JSON_NAME)):
            yield name


class JsonLines(Source):
    """One document a line, in the layout of document.json, with image paths relative to the file's folder.

    Only where each line begins is kept in memory; a line and its pictures are read when they are asked for.
    """

    def __init__(self, path: str, limits: Limits | None = None) -> None:
        super().__init__(f"jsonl:{path}", limits)
        self.files = find_files(path, (".jsonl", ".ndjson"), "a .jsonl file, a folder of them or a pattern")
        self.sizes = [file.stat().st_size for file in self.files]
        self.starts, self.lengths, self.numbers = array("q"), array("q"), array("q")
        self.firsts = array("q")  # of every file, the number of its first sample
        for file in self.files:
            self.firsts.append(len(self.starts))
            self._index(file)
        if not self.starts:
            raise DuoGenError(f"{path} is empty; expected one JSON document a line.")

    def _index(self, file: Path) -> None:
        """Finds where the lines begin. An empty line is no sample, but counts in the line numbers."""
        start = place = 0
        number = 1

        def end_line(end: int, text_ends_in_cr: bool) -> None:
            if end - start - text_ends_in_cr > 0:
                self.starts.append(start)
                self.lengths.append(end - start)
                self.numbers.append(number)

        last = b""
        try:
            with file.open("rb") as stream:
                while chunk := stream.read(CHUNK):
                    at = chunk.find(b"\n")
                    while at >= 0:
                        before = chunk[at - 1 : at] if at else last  # \r\n may be cut in two by the chunks
                        end_line(place + at, before == b"\r")
                        start, number = place + at + 1, number + 1
                        at = chunk.find(b"\n", at + 1)
                    place += len(chunk)
                    last = chunk[-1:]
        except OSError as error:
            raise DuoGenError(f"{file} cannot be read: {error.strerror or error}.") from None
        if place > start:
            end_line(place, last == b"\r")

    def __len__(self) -> int:
        return len(self.starts)

    def _file(self, index: int) -> Path:
        return self.files[bisect_right(self.firsts, index) - 1]

    def load(self, index: int) -> Document:
        file, label = self._file(index), self.label(index)
        if self.lengths[index] > MAX_JSON_BYTES:
            raise DuoGenError(f"{label} is longer than {MAX_JSON_BYTES / 2**20:g} MB, the most that is read.")
        try:
            with file.open("rb") as stream:
                stream.seek(self.starts[index])
                line = stream.read(self.lengths[index])
        except OSError as error:
            raise DuoGenError(f"{label} cannot be read: {error.strerror or error}.") from None
        return document_from_json(parse_json(line, label), folder_reader(file.parent), label)

    def label(self, index: int) -> str:
        return f"{self._file(index)}, line {self.numbers[index]}"

    def identity(self) -> dict[str, Any]:
        names = [(file.name, size) for file, size in zip(self.files, self.sizes, strict=True)]
        return {"kind": "jsonl", "samples": len(self), "digest": digest(names)}
