"""The list of bad samples that a run met: counted, each named once, one JSON line each."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

from duogen_core.data.sources.base import Bad
from duogen_core.errors import DuoGenError


class BadLog:
    """An `on_bad` callback. A file that is there already goes on: what it names is not named again."""

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = Path(path) if path is not None else None
        self._seen: set[tuple[str, int]] = set()
        self.excluded = 0  # of them, samples that were only not asked for
        self._torn = False  # the file ends in the middle of a line: a run was killed while it wrote
        if self.path is not None and self.path.exists():
            self._read()

    def _read(self) -> None:
        try:
            text = self.path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DuoGenError(f"The list of bad samples {self.path} cannot be read: {error}.") from None
        self._torn = bool(text) and not text.endswith("\n")
        for line in text.split("\n"):  # str.splitlines would also split at U+2028
            try:
                entry = json.loads(line)
                self._seen.add((str(entry["source"]), int(entry["index"])))
                self.excluded += bool(entry.get("excluded"))
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
                continue

    def __len__(self) -> int:
        return len(self._seen)

    def __call__(self, bad: Bad) -> bool:
        """Write it down; False if it was known. A list that cannot be written stops no training."""
        if (bad.source, bad.index) in self._seen:
            return False
        self._seen.add((bad.source, bad.index))
        self.excluded += bad.excluded
        if self.path is not None:
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write("\n" * self._torn + json.dumps(asdict(bad), ensure_ascii=True) + "\n")
                self._torn = False
            except OSError:
                self.path = None
        return True
