"""Adds text to a PNG that is already written, as ComfyUI's SaveImage does for the workflow; the pixels stay.

In: a PNG file and names with texts. Out: the file, replaced in one rename, with one text chunk each
before its image data, where ComfyUI's front end finds `workflow` and `prompt` when the picture is dropped on it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADER_END = len(SIGNATURE) + 4 + 4 + 13 + 4  # IHDR is always first and 13 bytes long


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _text_chunk(key: str, text: str) -> bytes:
    name = key.encode("latin-1", "replace")[:79]
    if text.isascii():
        return _chunk(b"tEXt", name + b"\0" + text.encode("ascii"))
    return _chunk(b"iTXt", name + b"\0\0\0\0\0" + text.encode("utf-8"))


def add_text(file: Path, texts: Mapping[str, str]) -> None:
    from duogen_core.files import replace_file

    data = file.read_bytes()
    if not data.startswith(SIGNATURE):
        raise ValueError(f"{file.name} is not a PNG file.")
    chunks = b"".join(_text_chunk(key, text) for key, text in texts.items())
    replace_file(file, data[:HEADER_END] + chunks + data[HEADER_END:])
