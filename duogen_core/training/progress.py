"""The progress line of a run: how far, the figures as running means, time gone and left."""

from __future__ import annotations

import sys
import time

PAUSE = 0.3  # seconds between two lines that overwrite each other on a terminal


class Progress:
    """Prints at most every `pause` seconds (on a terminal more often, in place); on the main process only."""

    def __init__(self, pause: float, quiet: bool = False) -> None:
        self.pause, self.quiet = pause, quiet
        self.means: dict[str, float] = {}
        self.begin(0.0)

    def begin(self, done: float) -> None:
        """The loop starts, with this part of the run (0 to 1) behind it."""
        self._start = self._printed = time.monotonic()
        self._done = done

    def add(self, figures: dict[str, float]) -> None:
        for key, value in figures.items():
            self.means[key] = value if key not in self.means else 0.95 * self.means[key] + 0.05 * value

    def due(self) -> bool:
        return time.monotonic() - self._printed >= (PAUSE if sys.stdout.isatty() else self.pause)

    def show(self, done: float, steps: str, seconds: float) -> str:
        """Prints and returns the line. done: 0 to 1; steps: "120/4000"; seconds of training so far."""
        self._printed = time.monotonic()
        left = max(0.0, (1 - done) * (self._printed - self._start) / max(done - self._done, 1e-9))
        figures = " ".join(f"{k} {v:.4g}" for k, v in self.means.items())
        bar = "#" * int(20 * min(1, done))
        line = f"[{bar:<20}] {100 * min(1, done):3.0f}% step {steps}"
        line += f" | {figures} | {clock(seconds)} gone, {clock(left)} left"
        if sys.stdout.isatty():
            self._print(f"\r\x1b[K{line}", end="\n" if done >= 1 else "")
        else:
            self._print(line)
        return line

    def task(self, what: str, done: float) -> None:
        """The line of something that comes before the first step: what, how far (0 to 1), time gone and left."""
        if not self.due() and done < 1:
            return
        self._printed = time.monotonic()
        gone = self._printed - self._start
        left = (1 - done) * gone / max(done - self._done, 1e-9)
        line = f"[{'#' * int(20 * min(1, done)):<20}] {100 * min(1, done):3.0f}% {what}"
        line += f" | {clock(gone)} gone, {clock(left)} left"
        if sys.stdout.isatty():
            self._print(f"\r\x1b[K{line}", end="\n" if done >= 1 else "")
        else:
            self._print(line)

    def say(self, text: str) -> None:
        """A line of its own, above the progress line."""
        self._print(("\r\x1b[K" if sys.stdout.isatty() else "") + text)

    def _print(self, text: str, end: str = "\n") -> None:
        if not self.quiet:
            print(text, end=end, flush=True)


def clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
