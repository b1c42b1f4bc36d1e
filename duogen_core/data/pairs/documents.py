"""A pair -> a Document of two pictures (or of several turns), and how its pictures are stored.

User: the first picture and what is to happen. Assistant: the second picture. meta.alignment is true: stage 1 leaves
such documents out, stage 2 learns from them (arXiv 2602.00508, section on training).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from duogen_core.data.runs.shards import Encode, as_jpeg, as_png
from duogen_core.document import (
    Document,
    Part,
    Picture,
    Text,
    Turn,
)


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


def encoding(rules: Mapping[str, Any]) -> Encode:
    """How pictures are stored. rules: `store` of a preset (format, quality)."""
    if rules["format"] == "png":
        return lambda picture: as_png(picture.pixels)
    return lambda picture: as_jpeg(picture.pixels, rules["quality"])
