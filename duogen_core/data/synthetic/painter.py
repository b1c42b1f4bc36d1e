"""Who draws the pictures of synthetic documents: the one interface, `Painter`, and what it is given, `Wanted`.

    class MyPainter(Painter):
        def identity(self): return {"painter": "mine", "model": "…"}
        def paint(self, wanted): return pixels          # uint8 RGB [H, W, 3], or raise PainterError

Two implementations stand here: `core_painter` (this project's own models) and `comfyui` (a ComfyUI server).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from duogen_core.document import Picture
from duogen_core.errors import DuoGenError


class PainterError(DuoGenError):
    """A picture could not be had. `stop`: nor could any other, so the run is to end and wait for help."""

    def __init__(self, message: str, stop: bool = False) -> None:
        super().__init__(message)
        self.stop = stop


@dataclass(frozen=True)
class Wanted:
    """A picture that is due. earlier: the answer's pictures before it; each has its prompt in meta["prompt"]."""

    request: str
    prompt: str
    seed: int
    earlier: Sequence[Picture] = ()


class Painter(ABC):
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Plain JSON that changes when the same wish would give another picture; kept in every document's meta."""

    @abstractmethod
    def paint(self, wanted: Wanted) -> np.ndarray:
        """uint8 RGB [H, W, 3]. Raises PainterError and nothing else for what can go wrong with one picture."""

    def close(self) -> None:  # noqa: B027 (most painters hold nothing)
        """Lets go of processes and files."""

    def __enter__(self) -> Painter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
