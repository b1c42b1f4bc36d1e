"""Progress on stderr: `StatusLine`, the line that says how far a command is, and `Progress`, that of `generate`.

On a terminal the line is redrawn in place, with a bar; anywhere else whole lines are written, now and then.
Not tqdm: its bars own whole lines, while the text that `generate` streams may end anywhere and the bar has to follow
it; and in a log file tqdm overwrites one endless line with carriage returns.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

BAR = 20  # characters
EVERY = 10.0  # seconds between two lines where there is no terminal
REDRAW = "\r\x1b[K"  # back to the beginning of the line, and what stands there goes


class StatusLine:
    def __init__(self, quiet: bool = False, stream: TextIO | None = None) -> None:
        self.quiet, self.stream = quiet, stream or sys.stderr
        self.live = not quiet and self.stream.isatty()
        self.shown = time.monotonic()

    def due(self, pause: float = 0.0, *, last: bool = False) -> bool:
        """Whether it is time to show the state; pause: seconds between two states on a terminal."""
        if not last and time.monotonic() - self.shown < (pause if self.live else EVERY):
            return False
        self.shown = time.monotonic()
        return True

    def show(self, text: str, share: float | None = None) -> None:
        """Shows the state; share: how much is done, 0 … 1, as a bar on a terminal."""
        if self.live:
            self._put(REDRAW + ("" if share is None else f"{bar(share)} ") + text)
        else:
            self._put(text + "\n")

    def line(self, text: str) -> None:
        """Writes a line that stays, above the state."""
        self._put((REDRAW if self.live else "") + text + "\n")

    def end(self) -> None:
        if self.live:
            self._put("\n")

    def _put(self, text: str) -> None:
        if self.quiet or not text:
            return
        try:
            self.stream.write(text)
            self.stream.flush()
        except OSError:  # a full disk or a closed terminal is no reason to give up the work
            self.quiet = True


def bar(share: float) -> str:
    done = int(BAR * share)
    return "█" * done + "░" * (BAR - done)


class Progress(StatusLine):
    """The text while it is written, and a line for each image while it is sampled."""

    def __init__(self, quiet: bool = False, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic):
        super().__init__(quiet, stream)
        self.clock, self.at_line_start = clock, True
        self.started = self.picture_started = clock()
        self.max_images, self.stating = 0, False
        self.before, self.planned = 0, False  # images of this answer that were drawn earlier; whether max_images is all

    def line(self, text: str) -> None:
        """Writes a line of its own."""
        self.end_line()
        self._put(text + "\n")

    def end_line(self) -> None:
        if self.stating:
            self._put(REDRAW)
            self.at_line_start = True
        elif not self.at_line_start:
            self._put("\n")
        self.stating = False

    def state(self, text: str, pause: float = 0.5) -> None:
        """Shows on a terminal what goes on; the next line takes its place. pause: seconds between two states."""
        if self.live and self.due(pause):
            if not self.stating:
                self.end_line()
            self._put(f"{REDRAW}{text}")
            self.stating = True

    def token(self, text: str) -> None:
        self._put(harmless(text))
        self.picture_started = self.clock()

    def picture_step(self, k: int, step: int, steps: int, _latent: object = None) -> None:
        if not self.live:
            return
        if not self.at_line_start:
            self._put("\n")
        drawn = bar(step / max(steps, 1))
        self._put(f"{REDRAW}  {self._name(k)} {drawn} step {step}/{steps}, {self._elapsed(self.picture_started)}")
        self.at_line_start = True  # the next line overwrites this one

    def picture(self, k: int, size: tuple[int, int]) -> None:
        line = f"  {self._name(k)}: {size[0]}x{size[1]}, {self._elapsed(self.picture_started)}"
        self._put(f"{REDRAW}{line}\n" if self.live else ("" if self.at_line_start else "\n") + line + "\n")
        self.picture_started = self.clock()

    def elapsed(self) -> float:
        return self.clock() - self.started

    def _name(self, k: int) -> str:
        return f"image {self.before + k + 1} of {'' if self.planned else 'at most '}{self.max_images}"

    def _elapsed(self, since: float) -> str:
        return f"{self.clock() - since:.1f} s"

    def _put(self, text: str) -> None:
        super()._put(text)
        if text and not self.quiet:
            self.at_line_start = text.endswith("\n")


def harmless(text: str) -> str:
    """Returns model output without control characters, which could control the terminal."""
    return "".join(char if char.isprintable() or char in "\n\t" else "�" for char in text)
