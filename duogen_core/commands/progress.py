"""Shows progress on stderr: the text while it is written, and a line for each image while it is sampled.

On a terminal the image's line is redrawn in place; anywhere else each line is written once, when it is final.
Not tqdm: its bars own whole lines, while here streamed text may end anywhere and the bar has to follow it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

BAR = 20


class Progress:
    def __init__(self, quiet: bool = False, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic):
        self.stream = stream or sys.stderr
        self.quiet, self.clock = quiet, clock
        self.live = not quiet and self.stream.isatty()
        self.at_line_start = True
        self.started = self.picture_started = clock()
        self.max_images = 0

    def line(self, text: str) -> None:
        """Writes a line of its own."""
        self._put(("" if self.at_line_start else "\n") + text + "\n")

    def end_line(self) -> None:
        if not self.at_line_start:
            self._put("\n")

    def token(self, text: str) -> None:
        self._put(harmless(text))
        self.picture_started = self.clock()

    def picture_step(self, k: int, step: int, steps: int, _latent: object = None) -> None:
        if not self.live:
            return
        if not self.at_line_start:
            self._put("\n")
        done = BAR * step // max(steps, 1)
        bar = "█" * done + "░" * (BAR - done)
        self._put(f"\r\x1b[K  {self._name(k)} {bar} step {step}/{steps}, {self._elapsed(self.picture_started)}")
        self.at_line_start = True  # the next line overwrites this one

    def picture(self, k: int, size: tuple[int, int]) -> None:
        line = f"  {self._name(k)}: {size[0]}x{size[1]}, {self._elapsed(self.picture_started)}"
        self._put(f"\r\x1b[K{line}\n" if self.live else ("" if self.at_line_start else "\n") + line + "\n")
        self.picture_started = self.clock()

    def elapsed(self) -> float:
        return self.clock() - self.started

    def _name(self, k: int) -> str:
        return f"image {k + 1} of at most {self.max_images}"

    def _elapsed(self, since: float) -> str:
        return f"{self.clock() - since:.1f} s"

    def _put(self, text: str) -> None:
        if self.quiet or not text:
            return
        try:
            self.stream.write(text)
            self.stream.flush()
        except OSError:  # a full disk or a closed terminal is no reason to give up the answer
            self.quiet = True
        self.at_line_start = text.endswith("\n")


def harmless(text: str) -> str:
    """Returns model output without control characters, which could control the terminal."""
    return "".join(char if char.isprintable() or char in "\n\t" else "�" for char in text)
