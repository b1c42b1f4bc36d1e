"""One sentence for a name that does not exist, with the nearest one that does."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def unknown(what: str, name: object, known: Iterable[str]) -> str:
    known = list(known)
    close = get_close_matches(str(name).lower(), known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? Known: " if close else "expected one of "
    return f"{what} {name!r} is not known; {hint}{', '.join(known)}."
