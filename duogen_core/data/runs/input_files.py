"""The files that a run reads: their names in an order that never changes, and digests of what stands in them.

    digests = FileDigests(OUT/index/digests.json)
    digests.of(path)      # the same at any place, another one after any edit
    digests.save()

An input is known by its contents, not by name and size. A file is read again when its size or one of its times has
changed, as git does it, so going on with a run over many inputs costs a look at each of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from duogen_core.document.store import write_atomically

FRESH = 2 * 10**9  # nanoseconds: of a file that has just been written, another edit may leave the same times
LARGE = 100 * 10**6  # bytes; see `of_small`
STEP = 2**20


class FileDigests:
    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.known: dict[str, list] = {}
        try:
            found = json.loads(cache.read_text("utf-8"))
            self.known = {name: entry for name, entry in found.items() if isinstance(entry, list) and len(entry) == 4}
        except (OSError, ValueError, AttributeError, RecursionError):
            pass  # no more than a short cut
        self.used: dict[str, list] = {}

    def of(self, file: Path) -> str:
        """The digest of a file's contents. Raises OSError."""
        name, stat = str(file.absolute()), file.stat()
        marks = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        known = self.used.get(name) or self.known.get(name)
        if known is None or known[:3] != marks:
            total = hashlib.sha256()
            with file.open("rb") as stream:
                while piece := stream.read(STEP):
                    total.update(piece)
            known = [*marks, total.hexdigest()[:32]]
        if time.time_ns() - stat.st_mtime_ns > FRESH:
            self.used[name] = known
        return known[3]

    def of_small(self, file: Path) -> str:
        """The same for a file beside which many may lie that are no input; of a large one only its size counts."""
        try:
            size = file.stat().st_size
            return self.of(file) if size <= LARGE else f"{size} bytes"
        except OSError as error:
            return f"unreadable: {error.errno}"

    def save(self) -> None:
        if self.used != self.known:
            write_atomically(self.cache, json.dumps(self.used).encode())


def names_below(folder: Path, endings: tuple[str, ...], inside: str = "") -> Iterator[str]:
    """Those with one of these endings, relative to the folder. What is hidden or a link is left out."""
    with os.scandir(folder) as entries:
        found = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    for entry in found:
        name = f"{inside}/{entry.name}" if inside else entry.name
        if entry.is_dir(follow_symlinks=False):
            yield from names_below(Path(entry.path), endings, name)
        elif entry.name.lower().endswith(endings) and entry.is_file(follow_symlinks=False):
            yield name
