"""The bytes of a picture whose row holds only a source_ref: {path, member, byte_offset, byte_size, frame_index}.

A path alone is a picture file; with a member it is a tar, read at byte_offset if that is stated. Only files inside one
folder are read, whatever a row says, and nothing from the network: such rows must be materialized by who wrote them.
"""

from __future__ import annotations

import lzma
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from duogen_core.data.sources.tars import TAR_ERRORS, Capped
from duogen_core.document.picture_file import MAX_BYTES
from duogen_core.errors import DuoGenError, is_out_of_memory
from duogen_core.files import parse_json, read_limited


def picture_bytes(row: Mapping[str, Any], root: Path, where: str) -> bytes:
    """The bytes in the row, or those that it points to inside `root`."""
    if isinstance(row.get("binary_content"), bytes):
        return row["binary_content"]
    text = row.get("source_ref")
    stated = parse_json(text.encode(), f"{where}, source_ref") if isinstance(text, str) and text else None
    if not isinstance(stated, dict) or not isinstance(stated.get("path"), str):
        raise DuoGenError(f"{where} is a picture without its bytes and without a source_ref that says where they are.")
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
            f"{where}: its picture lies at {path!r}, outside of {root}, and is not read; give the folder with the "
            "option root, or write the rows with their bytes."
        )
    return file


def _range(file: Path, start: int, size: int, name: str) -> bytes:
    if start < 0 or size > MAX_BYTES:
        raise DuoGenError(f"{name}: {size:,} bytes from byte {start:,} on are no picture that is read.")
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
                raise DuoGenError(f"{name}: its member {member!r} is no plain file of at most {MAX_BYTES:,} bytes.")
            return stream.read()
    except KeyError:
        raise DuoGenError(f"{name} has no member {member!r}.") from None
    except DuoGenError:
        raise
    except (OSError, lzma.LZMAError, zlib.error, *TAR_ERRORS) as error:
        if is_out_of_memory(error):
            raise
        raise DuoGenError(f"{name} cannot be read: {error or type(error).__name__}.") from None
