"""A pair -> a Document of two pictures (or of several turns), and a Document -> members of a shard's tar.

User: the first picture and what is to happen. Assistant: the second picture. meta.alignment is true: stage 1 leaves
such documents out, stage 2 learns from them (arXiv 2602.00508, section on training).
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from duogen_core.document import Document, Part, Picture, Text, Turn
from duogen_core.store import document_json

PNG_LEVEL = 4  # of 9


@dataclass(frozen=True)
class Step:
    """One edit: the pictures and words of the user (no picture when it goes on from the last answer), the result."""

    asked: Sequence[np.ndarray | str]
    result: np.ndarray


def document_of(steps: Sequence[Step], meta: Mapping[str, Any], alignment: bool = True) -> Document:
    turns: list[Turn] = []
    for step in steps:
        parts: list[Part] = [Text(part) if isinstance(part, str) else Picture(part) for part in step.asked]
        turns += [Turn("user", tuple(parts)), Turn("assistant", (Picture(step.result),))]
    return Document(tuple(turns), meta={**meta, **({"alignment": True} if alignment else {})})


def add_document(archive: tarfile.TarFile, key: str, document: Document, rules: Mapping[str, Any]) -> None:
    """One sample: key.json, key.000.jpg, … rules: `store` of a preset (format, quality)."""
    files = [encode(picture.pixels, rules) for picture in document.pictures]
    names = [f"{index:03d}.{ending}" for index, (_, ending) in enumerate(files)]
    value = json.dumps(document_json(document, names), ensure_ascii=False, allow_nan=False).encode("utf-8")
    for name, data in [("json", value), *zip(names, (data for data, _ in files))]:
        info = tarfile.TarInfo(f"{key}.{name}")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))


def encode(pixels: np.ndarray, rules: Mapping[str, Any]) -> tuple[bytes, str]:
    """The picture file, made of the pixels alone, and its ending."""
    buffer, image = io.BytesIO(), Image.fromarray(pixels)
    if rules["format"] == "png":
        image.save(buffer, "PNG", compress_level=PNG_LEVEL)
        return buffer.getvalue(), "png"
    image.save(buffer, "JPEG", quality=rules["quality"])
    return buffer.getvalue(), "jpg"
