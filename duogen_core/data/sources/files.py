"""Which files a source reads: a path, a folder or a pattern -> sorted files; and a digest of names and sizes."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path

from duogen_core.errors import DuoGenError


def find_files(pattern: str, suffixes: Sequence[str], what: str) -> list[Path]:
    """The files that `pattern` names: one file, all of a folder with one of these endings, or those of a pattern.

    A pattern is a glob, or has one range as webdataset writes it: train-{000..146}.tar, each of which must be there.
    """
    place = Path(pattern)
    if (span := re.search(r"\{(\d+)\.\.(\d+)\}", pattern)) and not place.exists():
        first, last = span.groups()
        if len(last) > 7:
            raise DuoGenError(f"{pattern} names more than ten million files; is the range right?")
        names = [
            f"{n:0{len(first)}d}".join((pattern[: span.start()], pattern[span.end() :]))
            for n in range(int(first), int(last) + 1)
        ]
        return [file for name in names for file in find_files(name, suffixes, what)]
    try:
        if place.is_dir():
            found = [file for file in place.iterdir() if file.name.endswith(tuple(suffixes)) and file.is_file()]
        elif place.is_file():
            found = [place]
        elif place.exists():
            raise DuoGenError(f"{pattern} is not a file; expected {what}.")
        else:
            found = [Path(name) for name in glob.glob(pattern, recursive=True) if Path(name).is_file()]
    except (OSError, ValueError) as error:
        if isinstance(error, DuoGenError):
            raise
        raise DuoGenError(f"{pattern} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    if not found:
        if place.is_dir():
            raise DuoGenError(f"The folder {pattern} has no file that ends in {' or '.join(suffixes)}.")
        raise DuoGenError(f"{pattern} does not exist; check the path. Expected {what}.")
    return sorted(found)


def digest(names: Iterable[object]) -> str:
    found = sha256()
    for name in names:
        found.update(repr(name).encode("utf-8", "surrogatepass") + b"\n")
    return found.hexdigest()[:16]
