"""The errors of this pack, and whose fault a failure is: the input's or this machine's.

A message is a sentence: what was wrong, where, what was expected, what to do.
"""

from __future__ import annotations

import errno
import re
import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches

MOST = 2000  # characters of a message; what it quotes may be of any length


class DuoGenError(ValueError):
    """Something the user can put right. The command line prints it and exits 2, ComfyUI shows it on the node.

    A message may quote a file or a model. Whatever would steer a terminal or turn the direction of writing is shown
    escaped, and of a very long message the middle is left out: the beginning says where, the end what to do.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(shown(str(message)))


def shown(text: str) -> str:
    """Foreign text as it may stand in a message: one line of printable characters, and not too many of them."""
    text = shortened(text)
    if text.isprintable():
        return text
    # repr() escapes control characters, marks of direction and half pairs; every kind of space may stand as it is.
    visible = (c if c.isprintable() or unicodedata.category(c) == "Zs" else repr(c)[1:-1] for c in text)
    return shortened("".join(visible))


def shortened(text: str) -> str:
    if len(text) <= MOST:
        return text
    note = f" … ({len(text) - MOST:,} characters are left out here) … "
    left = MOST - len(note)
    return text[: left * 2 // 3] + note + text[-(left - left * 2 // 3) :]


def unknown(what: str, name: object, known: Iterable[str]) -> str:
    """One sentence for a name that does not exist, with the nearest one that does."""
    known = list(known)
    close = get_close_matches(str(name).lower(), known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? Known: " if close else "expected one of "
    return f"{what} {name!r} is not known; {hint}{', '.join(known)}."


def first_line(error: BaseException) -> str:
    """What a library's error says, without what follows its first line (a C++ stack, often), for use in a sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


class Cancelled(Exception):
    """The user stopped the run. Not a failure: whatever was finished before stays."""


# What libraries say in errors of their own when the system gives no memory (or no thread, which takes some).
_NO_MEMORY = (
    "can't allocate memory",  # torch on the CPU
    "cannot allocate memory",  # mmap of a file of weights
    "not enough memory",  # torch on Windows
    "out of memory",  # CUDA, MPS; Pillow's decoders; libavif with a capital
    "could not create a primitive",  # oneDNN
    "can't start new thread",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that this machine has no memory left, which is no fault of what was being read."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return not isinstance(error, DuoGenError) and any(words in str(error).lower() for words in _NO_MEMORY)


# A full disk or quota, a file too large, a broken disk, too many open files, no memory.
_SYSTEM_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_MOST_AT_ONCE = 2**31  # bytes: no row group or record that is read is larger


def is_system_failure(error: Exception) -> bool:
    """Tells a failure of this machine, which stops a run, from one of an input, which costs that input.

    An engine logs an input that fails and goes on. With no disk, memory or open files left that would drop for good
    what is in order, so the run ends with a sentence, and the same command goes on from the last whole shard.
    """
    import sqlite3

    if states_too_much(error):
        return False
    # An index that cannot be read or written is no fault of the page that was looked up in it.
    if isinstance(error, sqlite3.Error):
        return True
    return is_out_of_memory(error) or (isinstance(error, OSError) and error.errno in _SYSTEM_ERRNOS)


def states_too_much(error: Exception) -> bool:
    """Whether memory was refused because a damaged file states a size that nothing has ("malloc of size … failed")."""
    stated = re.search(r"size (\d+)", str(error)) if isinstance(error, MemoryError) else None
    return stated is not None and int(stated[1]) > _MOST_AT_ONCE


def system_failure(error: Exception, where: str) -> DuoGenError:
    """Returns the sentence that ends a run."""
    import sqlite3

    reason = str(error) if isinstance(error, sqlite3.Error) else getattr(error, "strerror", "") or "no memory"
    return DuoGenError(
        f"This machine failed at {where} ({reason}). "
        "Finished shards are whole; free some disk or memory, then run the same command again to go on."
    )


class MissingPackage(DuoGenError):
    """An optional package that something needs and that is not installed; `extra` is its group in pyproject.toml."""

    def __init__(self, what: str, package: str, extra: str) -> None:
        super().__init__(
            f"{what}: the package {package} is not installed; run pip install -e '.[{extra}]' in the pack's folder."
        )
