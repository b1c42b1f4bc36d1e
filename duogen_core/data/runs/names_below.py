"""Names of the files in a folder, at any depth, in an order that never changes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


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
