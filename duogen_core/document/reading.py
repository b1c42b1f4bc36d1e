"""Strict reading of documents: a folder, a document.json or a .zip -> Document.

Whatever comes from the file is checked before it is used: version, shape of the JSON, roles, part types, sizes, and
that no picture's path leaves the document's folder. Errors name the file and the field. Nothing is unpacked to disk.
Inside `headers_only` the same documents come with the sizes of their pictures alone, and no pixel is decoded.
"""

from __future__ import annotations

import os
import re
import stat
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from duogen_core.document import (
    ROLES,
    Document,
    Part,
    Picture,
    PictureHeader,
    Text,
    Turn,
    is_text,
)
from duogen_core.document.picture_file import MAX_BYTES, format_of, picture_size
from duogen_core.errors import DuoGenError, is_out_of_memory
from duogen_core.files import MAX_JSON_BYTES, parse_json, read_beginning, read_json, read_limited

FORMAT = "duogen-document"
VERSION = 1
JSON_NAME = "document.json"
MAX_TOTAL_PIXELS = 512 * 10**6
_DRIVE_OR_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f:\\]")

HEADER_BYTES = 1 << 16  # of a picture file, in which its size nearly always stands
SIZE_FIRST = ("PNG", "JPEG", "GIF", "BMP")  # formats whose size can be read from the beginning alone

ReadBytes = Callable[[str, str], bytes]

_only_headers: ContextVar[bool] = ContextVar("only_headers", default=False)


@contextmanager
def headers_only() -> Iterator[None]:
    """Documents read inside have a PictureHeader for every picture. What is wrong behind a header is not noticed."""
    before = _only_headers.set(True)
    try:
        yield
    finally:
        _only_headers.reset(before)


def load_document(path: str | os.PathLike[str]) -> Document:
    """Reads a document folder, its document.json, or a .zip of such a folder."""
    place = Path(path)
    if is_folder(place):
        json_file, folder = place / JSON_NAME, place
    elif place.suffix.lower() == ".zip":
        return _load_zip(place)
    else:
        json_file, folder = place, place.parent
    return document_from_json(read_json(json_file, "document"), folder_reader(folder), str(json_file))


def is_folder(path: Path) -> bool:
    """`Path.is_dir`, False also for names that this system cannot have; older Pythons raise the system's error."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def folder_reader(folder: Path) -> ReadBytes:
    """A function that reads the picture with a relative name from `folder` and from nowhere else."""

    def read(name: str, where: str) -> bytes:
        file, called = inside(folder, name, where), f"{name} (named by {where})"
        if _only_headers.get():
            beginning = read_beginning(file, HEADER_BYTES, called)
            if format_of(beginning) in SIZE_FIRST:
                return beginning
        return read_limited(file, MAX_BYTES, called)

    return read


def inside(folder: Path, name: str, where: str, called: str = "the document's folder") -> Path:
    """The place with this relative name in the folder; one that leaves it, be it by a link, is refused."""
    check_relative(name, where)
    try:
        root = folder.resolve()
        file = (root / name).resolve()
    except (OSError, RuntimeError, ValueError):  # a link that leads to itself, a name that is too long
        raise DuoGenError(f"{where}: the path {name!r} cannot be followed.") from None
    if not file.is_relative_to(root):
        raise DuoGenError(f"{where}: the path {name!r} leaves {called}, which is not allowed.")
    return file


def check_relative(name: str, where: str) -> None:
    """Refuse every path that could mean another place than one inside the folder, on any system."""
    bad = _DRIVE_OR_CONTROL.search(name) or any(piece in ("", ".", "..") for piece in name.split("/"))
    if bad or not is_text(name):
        raise DuoGenError(
            f"{where}: the path {name!r} is not allowed; expected a plain relative path such as 'images/000.png' "
            "that stays in the document's folder."
        )


def document_from_json(value: Any, read: ReadBytes, where: str) -> Document:
    """The JSON value of a document -> Document; `read(name, where)` gives the bytes of a picture."""
    fields = _fields(value, where, required=("format", "version", "turns"), optional=("generation", "meta"))
    if fields["format"] != FORMAT:
        raise DuoGenError(f"{where}: the format is {fields['format']!r}; expected {FORMAT!r}.")
    if type(fields["version"]) is not int or fields["version"] != VERSION:
        raise DuoGenError(
            f"{where}: the version is {fields['version']!r}; this DuoGen reads version {VERSION}. "
            "A newer DuoGen may have written it: update this one."
        )
    pictures = _Pictures(read)
    turns = tuple(
        _turn(turn, pictures, f"{where}, turns[{i}]")
        for i, turn in enumerate(_list(fields["turns"], f"{where}, turns"))
    )
    generation = _mapping(fields.get("generation", {}), f"{where}, generation")
    try:
        return Document(turns, generation, _mapping(fields.get("meta", {}), f"{where}, meta"))
    except DuoGenError as error:
        raise DuoGenError(f"{where}: {error}") from None


class _Pictures:
    """Reads pictures by name, each file once, and stops at a total that no computer would hold."""

    def __init__(self, read: ReadBytes) -> None:
        self._read = read
        self._known: dict[str, Picture] = {}
        self._pixels = 0

    def get(self, name: str, meta: dict[str, Any], where: str) -> Picture:
        if name not in self._known:
            picture = self._header(name, where) if _only_headers.get() else self._picture(name, where)
            self._pixels += picture.size[0] * picture.size[1]
            if self._pixels > MAX_TOTAL_PIXELS:
                raise DuoGenError(f"{where}: the document's images have more than {MAX_TOTAL_PIXELS:,} pixels in all.")
            self._known[name] = picture
        known = self._known[name]
        return PictureHeader(known.size, meta) if isinstance(known, PictureHeader) else Picture(known.pixels, meta)

    def _picture(self, name: str, where: str) -> Picture:
        return Picture.from_bytes(self._read(name, where), name=f"{name} (named by {where})")

    def _header(self, name: str, where: str) -> Picture:
        called = f"{name} (named by {where})"
        try:
            return PictureHeader(picture_size(self._read(name, where), called))
        except DuoGenError:  # it may stand behind the beginning that was read, in a large colour profile for example
            before = _only_headers.set(False)
            try:
                return PictureHeader(picture_size(self._read(name, where), called))
            finally:
                _only_headers.reset(before)


def _turn(value: Any, pictures: _Pictures, where: str) -> Turn:
    fields = _fields(value, where, required=("role", "parts"), optional=("meta",))
    if fields["role"] not in ROLES:
        raise DuoGenError(f"{where}: the role is {fields['role']!r}; expected one of {', '.join(ROLES)}.")
    parts = tuple(
        _part(part, pictures, f"{where}.parts[{i}]") for i, part in enumerate(_list(fields["parts"], f"{where}.parts"))
    )
    return Turn(fields["role"], parts, _mapping(fields.get("meta", {}), f"{where}.meta"))


def _part(value: Any, pictures: _Pictures, where: str) -> Part:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        fields = _fields(value, where, required=("type", "text"), optional=("meta",))
        return _named(where, lambda: Text(fields["text"], _mapping(fields.get("meta", {}), f"{where}.meta")))
    if kind == "image":
        fields = _fields(value, where, required=("type", "file"), optional=("meta",))
        if not isinstance(fields["file"], str):
            raise DuoGenError(f"{where}: 'file' is {fields['file']!r}; expected a relative path.")
        meta = _mapping(fields.get("meta", {}), f"{where}.meta")
        return _named(where, lambda: pictures.get(fields["file"], meta, where))
    raise DuoGenError(f"{where}: the type of a part is {kind!r}; expected 'text' or 'image'.")


def _named(where: str, make: Callable[[], Part]) -> Part:
    try:
        return make()
    except DuoGenError as error:
        raise error if where in str(error) else DuoGenError(f"{where}: {error}") from None


def _fields(value: Any, where: str, required: tuple[str, ...], optional: tuple[str, ...]) -> dict[str, Any]:
    fields = _mapping(value, where)
    for name in required:
        if name not in fields:
            raise DuoGenError(f"{where}: {name!r} is missing.")
    for name in fields:
        if name not in required and name not in optional:
            raise DuoGenError(f"{where}: {name!r} is not known here; anything of your own belongs under 'meta'.")
    return fields


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DuoGenError(f"{where} is {_kind(value)}; expected an object in braces.")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise DuoGenError(f"{where} is {_kind(value)}; expected a list.")
    return value


def _kind(value: Any) -> str:
    return "null" if value is None else f"a {type(value).__name__}"


def _load_zip(file: Path) -> Document:
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise DuoGenError(f"{file} is not a file; expected a .zip of a document folder.")
        with zipfile.ZipFile(file) as archive:
            members = _checked_members(archive, str(file))
            inside = _folder_inside(members, str(file))
            read = _zip_reader(archive, members, inside, str(file))
            where = f"{file}/{inside}{JSON_NAME}"
            value = parse_json(_read_member(archive, members[inside + JSON_NAME], MAX_JSON_BYTES, where), where)
            return document_from_json(value, read, where)
    except FileNotFoundError:
        raise DuoGenError(f"The document {file} does not exist; check the path.") from None
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise DuoGenError(f"{file} is damaged or not a .zip file ({error}).") from None
    except OSError as error:
        raise DuoGenError(f"The document {file} cannot be read: {error.strerror or error}.") from None


def _checked_members(archive: zipfile.ZipFile, where: str) -> dict[str, zipfile.ZipInfo]:
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        check_relative(info.orig_filename.removesuffix("/"), where)
        if stat.S_ISLNK(info.external_attr >> 16):
            raise DuoGenError(f"{where}: {info.filename!r} is a link to another file, which is not allowed.")
        if info.filename in members:
            raise DuoGenError(f"{where}: {info.filename!r} stands in it twice.")
        members[info.filename] = info
    return members


def _folder_inside(members: dict[str, zipfile.ZipInfo], where: str) -> str:
    """'' or the one folder that the document lies in, as when somebody zipped the folder itself."""
    if JSON_NAME in members:
        return ""
    places = [name.removesuffix(JSON_NAME) for name in members if re.fullmatch(rf"[^/]+/{re.escape(JSON_NAME)}", name)]
    if len(places) != 1:
        raise DuoGenError(f"{where} holds no {JSON_NAME}; expected a .zip of a document folder.")
    return places[0]


def _zip_reader(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], inside: str, zip_name: str) -> ReadBytes:
    def read(name: str, where: str) -> bytes:
        check_relative(name, where)
        if inside + name not in members:
            raise DuoGenError(f"The image {name} (named by {where}) is not in {zip_name}.")
        return _read_member(archive, members[inside + name], MAX_BYTES, f"{name} (named by {where})")

    return read


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int, where: str) -> bytes:
    if info.flag_bits & 1:
        raise DuoGenError(f"{where} is encrypted; save the .zip without a password.")
    if info.file_size > limit:
        raise DuoGenError(f"{where} is larger than {limit / 2**20:g} MB, the most that is read.")
    try:
        with archive.open(info) as file:
            return file.read(limit)  # zipfile itself stops at the size that the archive declares
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError) as error:
        raise DuoGenError(f"{where} is damaged in the .zip ({error}).") from None
    except Exception as error:  # zlib, bz2 and lzma each have an error of their own
        if is_out_of_memory(error):
            raise
        raise DuoGenError(f"{where} is damaged in the .zip ({error}).") from None
