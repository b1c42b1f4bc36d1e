"""Documents on disk: a folder, or a .zip of it, with document.json and images/000.png, … in order of appearance.

Writing is all or nothing: to a temporary name, then rename. `DocumentWriter` writes an answer while it grows; whenever
it stops, what was finished can be read. Reading: `duogen_core.document.reading` (strict).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from duogen_core.document import Document, Picture, Text
from duogen_core.document.reading import (
    FORMAT,
    JSON_NAME,
    VERSION,
    load_document,
)
from duogen_core.errors import DuoGenError
from duogen_core.files import TEMPORARY, discard, lock_folder, replace_file, swap_folders, write_errors

# load_document as well: people who use Documents in code of their own find both ways here (docs/documents.md).
__all__ = [
    "DocumentWriter", "discard_tries", "document_json", "image_name", "load_document", "save_document", "save_try",
]  # fmt: skip

TRIES = "tries"  # the folder of images that were drawn and not kept
TRY_NAME = re.compile(r"[0-9a-f]{32}")
OWN_NAMES = re.compile(r"document\.(json|html|md|pdf)|images(/\d{3,}\.png)?|.*\.duogen-tmp")


def image_name(index: int) -> str:
    """Where the picture number `index` of a document lies in its folder."""
    return f"images/{index:03d}.png"


def document_json(document: Document, image_names: list[str] | None = None) -> dict[str, Any]:
    """The JSON value of a document; `image_names` replaces images/000.png, … (for datasets that share a folder)."""
    names = iter(image_names if image_names is not None else map(image_name, range(len(document.pictures))))
    turns = []
    for turn in document.turns:
        parts = []
        for part in turn.parts:
            entry = (
                {"type": "text", "text": part.text}
                if isinstance(part, Text)
                else {"type": "image", "file": next(names)}
            )
            parts.append(_with_meta(entry, part.meta))
        turns.append(_with_meta({"role": turn.role, "parts": parts}, turn.meta))
    value: dict[str, Any] = {"format": FORMAT, "version": VERSION, "turns": turns}
    if document.generation:
        value["generation"] = document.generation
    return _with_meta(value, document.meta)


def _with_meta(entry: dict[str, Any], meta: Any) -> dict[str, Any]:
    return {**entry, "meta": meta} if meta else entry


def _json_bytes(document: Document) -> bytes:
    return (json.dumps(document_json(document), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


def save_document(document: Document, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Writes a document to a folder, or to a file when the name ends in .zip. Returns the path written.

    With `overwrite`, a document that stands there is replaced in one rename; other files in its folder are kept.
    Links inside that folder are kept or replaced as links: what they lead to is never touched.
    """
    target = _checked_target(path, overwrite)
    if not overwrite:
        return _save(document, target)
    with lock_folder(target):
        finish_swap(target)
        return _save(document, _checked_target(path, overwrite))


def _save(document: Document, target: Path) -> Path:
    with write_errors(target), _parents(target):
        temporary = _temporary(target, ".new")
        try:
            if _is_zip(target):
                _write_zip(document, temporary)
                os.replace(temporary, target)
            else:
                _write_folder(document, temporary)
                _swap_folder(temporary, target)
        except BaseException:
            discard(temporary)
            raise
    return target


def _temporary(target: Path, kind: str) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}{kind}{TEMPORARY}")


class DocumentWriter:
    """Writes a document that grows: every `update` leaves a complete, readable document on disk.

    Only new pictures and document.json are written, pictures first; a crash, a full disk or Ctrl-C at picture k
    therefore leaves the k-1 finished ones. A document that is no continuation of the last one replaces it whole.
    """

    def __init__(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        self.path = _checked_target(path, overwrite)
        self._overwrite = overwrite
        self._written: tuple[Picture, ...] | None = None

    def update(self, document: Document) -> None:
        """Makes the folder (or .zip) hold exactly this document."""
        pictures = document.pictures
        written = self._written
        images = self.path / "images"
        if written is None or pictures[: len(written)] != written or _is_zip(self.path) or images.is_symlink():
            save_document(document, self.path, overwrite=self._overwrite or written is not None)
        else:
            with write_errors(self.path):
                if pictures:
                    images.mkdir(exist_ok=True)
                # document.json last: until it names them, new pictures are files that nobody reads.
                for index in range(len(written), len(pictures)):
                    replace_file(self.path / image_name(index), pictures[index].to_png())
                replace_file(self.path / JSON_NAME, _json_bytes(document))
        self._written = pictures


def save_try(folder: str | os.PathLike[str], picture: Picture, name: str) -> Path:
    """Keeps an image that was drawn and not kept (`duogen_core.review`) beside a document: tries/<name>.png.

    No reader of documents looks there. name: made of what the image shows, so that it never stands for another one.
    """
    if not TRY_NAME.fullmatch(name):
        raise ValueError(f"The name of a try is 32 hexadecimal digits, not {name!r}.")
    file = Path(os.path.realpath(folder)) / TRIES / f"{name}.png"
    with write_errors(file):
        file.parent.mkdir(exist_ok=True)
        replace_file(file, picture.to_png())
    return file


def discard_tries(folder: str | os.PathLike[str], keep: set[str]) -> None:
    """Removes the images in tries/ that the document does not name; of an earlier answer in the same folder."""
    tries = Path(os.path.realpath(folder)) / TRIES
    if not tries.is_dir() or tries.is_symlink():
        return
    with write_errors(tries):
        for file in tries.iterdir():
            if file.suffix == ".png" and TRY_NAME.fullmatch(file.stem) and file.stem not in keep:
                file.unlink(missing_ok=True)
        if not any(tries.iterdir()):
            tries.rmdir()


def _is_zip(path: Path) -> bool:
    return path.suffix.lower() == ".zip"


def _checked_target(path: str | os.PathLike[str], overwrite: bool) -> Path:
    """The real place to write to, if it may be written to: nothing that is not a document is ever replaced."""
    if not os.fspath(path):
        raise DuoGenError("The output has no name; give a folder, or a file name that ends in .zip.")
    try:
        target = Path(os.path.realpath(path))
        if _is_zip(target):
            if target.exists() and (not target.is_file() or not overwrite):
                raise DuoGenError(f"{path} exists already; choose another name, or allow it to be overwritten.")
        elif target.exists() and not target.is_dir():
            raise DuoGenError(f"{path} is a file; the output must be a folder, or a file name that ends in .zip.")
        elif target.is_dir() and any(target.iterdir()):
            if not overwrite:
                raise DuoGenError(f"The folder {path} is not empty; choose another one, or allow it to be overwritten.")
            if not (target / JSON_NAME).is_file():
                raise DuoGenError(f"The folder {path} holds files but no {JSON_NAME}; choose another folder.")
    except (OSError, ValueError) as error:
        if isinstance(error, DuoGenError):
            raise
        raise DuoGenError(f"{path} cannot be used as output: {getattr(error, 'strerror', None) or error}.") from None
    return target


def _write_folder(document: Document, folder: Path) -> None:
    folder.mkdir()
    pictures = document.pictures
    if pictures:
        (folder / "images").mkdir()
    for index, picture in enumerate(pictures):
        (folder / image_name(index)).write_bytes(picture.to_png())
    (folder / JSON_NAME).write_bytes(_json_bytes(document))


def _write_zip(document: Document, file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        _add_to_zip(archive, JSON_NAME, _json_bytes(document), zipfile.ZIP_DEFLATED)
        for index, picture in enumerate(document.pictures):
            _add_to_zip(archive, image_name(index), picture.to_png(), zipfile.ZIP_STORED)


def _add_to_zip(archive: zipfile.ZipFile, name: str, data: bytes, compression: int) -> None:
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))  # the same document gives the same bytes at any time
    info.compress_type, info.create_system, info.external_attr = compression, 3, 0o644 << 16
    archive.writestr(info, data)


def _swap_folder(new: Path, target: Path) -> None:
    """Puts the folder `new` where `target` is. Files in `target` that are not the document's move over."""
    old = _temporary(target, ".old")
    if swap_folders(new, target, old):  # killed in between: `finish_swap` of the next run goes on
        _move_others(old, target)
        discard(old)


def _move_others(old: Path, target: Path) -> None:
    """Moves what is not the document's from the folder `old` to `target`, links as links."""
    for directory in (old, old / "images"):
        # `images` may be a link to a folder of the user's: what lies there is no part of the answer.
        for entry in list(directory.iterdir()) if directory.is_dir() and not directory.is_symlink() else ():
            name = entry.relative_to(old).as_posix()
            if not OWN_NAMES.fullmatch(name) and not os.path.lexists(target / name):
                (target / name).parent.mkdir(exist_ok=True)
                os.rename(entry, target / name)


def finish_swap(path: str | os.PathLike[str]) -> None:
    """Puts right what a kill in the middle of replacing a document left beside it; only under the folder's lock.

    An old document that has no new one in its place yet gets its name back; one that was replaced hands over the
    user's files in its folder; what was half written goes.
    """
    target = Path(os.path.realpath(path))
    ours = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}\.(old|new){re.escape(TEMPORARY)}")
    with write_errors(target):
        left = target.parent.iterdir() if target.name and target.parent.is_dir() else ()
        for entry, kind in [(entry, match[1]) for entry in left if (match := ours.fullmatch(entry.name))]:
            if kind == "old" and entry.is_dir() and not entry.is_symlink():
                if not target.exists():
                    os.rename(entry, target)
                    continue
                _move_others(entry, target)
            discard(entry)


@contextlib.contextmanager
def _parents(target: Path) -> Iterator[None]:
    """Makes the folders above `target`; removes those that it made when the writing fails."""
    made = []
    try:
        for parent in reversed(target.parents):
            if not parent.exists():
                parent.mkdir()
                made.append(parent)
        yield
    except BaseException:
        for parent in reversed(made):
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise
