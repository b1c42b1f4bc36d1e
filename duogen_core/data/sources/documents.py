"""A folder of document folders and .zip files of them, at any depth.

A folder with document.json is a document and is not searched further; so is one with nothing but images/ in it, which
is then reported as bad. Names that begin with a dot are passed over. A link to a folder is followed when that folder is
itself a document.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from duogen_core.data.sources.base import Limits, Source, digest
from duogen_core.document import Document
from duogen_core.document.reading import JSON_NAME, load_document
from duogen_core.errors import DuoGenError


class DocumentFolders(Source):
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
    """Names relative to the root; '' is the root itself."""
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
