"""Progress of a run on stderr: how much is done, how fast, and how long the rest takes.

On a terminal one line is redrawn; elsewhere there is a line now and then.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TextIO

from duogen_core.commands.progress import BAR

EVERY = 10.0  # seconds between two lines where there is no terminal


class RunProgress:
    """unit: what is counted, such as pages."""

    def __init__(self, quiet: bool, unit: str, stream: TextIO | None = None) -> None:
        self.quiet, self.unit, self.stream = quiet, unit, stream or sys.stderr
        self.live = not quiet and self.stream.isatty()
        self.total = self.done = self.before = self.kept = 0
        self.started = self.shown = time.monotonic()

    def begin(self, total: int, done: int = 0) -> None:
        self.total, self.done, self.before = total, done, done
        self.started = self.shown = time.monotonic()

    def go_on(self, total: int, done: int) -> None:
        """Begins, and says how much an earlier start has done."""
        self.begin(total, done)
        if done:
            self.line(f"{done:,} of {total:,} {self.unit} were done before.")

    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def line(self, text: str) -> None:
        self._put(("\r\x1b[K" if self.live else "") + text + "\n")

    def step(self, count: int, kept: int) -> None:
        """So many more are done; so many are kept in all."""
        self.done, self.kept = self.done + count, kept
        if self._due():
            self._show()

    def fetched(self, what: str, done: int, total: int, kept: int) -> None:
        if self._due(done == total):
            rate = done / max(self.elapsed(), 1e-6)
            text = f"fetching {what}: {done:,}/{total:,}, {kept:,} came, {rate:.1f} a second"
            self._put(f"\r\x1b[K{text}" + ("\n" if done == total else "") if self.live else text + "\n")

    def end(self) -> None:
        if self.live:
            self._put("\n")

    @contextlib.contextmanager
    def stopping(self) -> Iterator[None]:
        """Ends the line however the loop ends, and says after Ctrl-C that the command goes on."""
        try:
            yield
        except KeyboardInterrupt:
            self.end()
            self.line(f"Stopped after {self.done:,} of {self.total:,} {self.unit}; the same command goes on.")
            raise
        self.end()

    def _due(self, last: bool = False) -> bool:
        if not (self.live or last or time.monotonic() - self.shown >= EVERY):
            return False
        self.shown = time.monotonic()
        return True

    def _show(self) -> None:
        rate = (self.done - self.before) / max(self.elapsed(), 1e-6)
        pace = f"{rate:.1f} a second" if rate >= 1 else f"{rate * 60:.1f} a minute"
        rest = f"{_left(int((self.total - self.done) / rate))} left" if rate else "…"
        text = f"{self.done:,}/{self.total:,} {self.unit}, {self.kept:,} kept, {pace}, {rest}"
        filled = int(BAR * self.done / max(self.total, 1))
        self._put(f"\r\x1b[K{'█' * filled}{'░' * (BAR - filled)} {text}" if self.live else text + "\n")

    def _put(self, text: str) -> None:
        if not self.quiet:
            self.stream.write(text)
            self.stream.flush()


def _left(seconds: int) -> str:
    if seconds < 60:
        return f"{seconds} s"
    return f"{seconds // 60} min" if seconds < 3600 else f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
