"""Whose fault a failure is: the input's, which costs that input, or the machine's, which stops the run.

An engine logs an input that fails and goes on. With no disk, memory or open files left that would drop for good what is
in order, so the run ends with a sentence, and the same command goes on from the last whole shard.
"""

from __future__ import annotations

import errno
import re
import sqlite3

from duogen_core.errors import DuoGenError, is_out_of_memory

ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


MOST_AT_ONCE = 2**31  # bytes: no row group or record that is read is larger


def is_of_the_machine(error: Exception) -> bool:
    if states_too_much(error):
        return False
    # An index that cannot be read or written is no fault of the page that was looked up in it.
    if isinstance(error, sqlite3.Error):
        return True
    return is_out_of_memory(error) or (isinstance(error, OSError) and error.errno in ERRNOS)


def states_too_much(error: Exception) -> bool:
    """Whether memory was refused because a damaged file states a size that nothing has ("malloc of size … failed")."""
    stated = re.search(r"size (\d+)", str(error)) if isinstance(error, MemoryError) else None
    return stated is not None and int(stated[1]) > MOST_AT_ONCE


def gave_out(error: Exception, where: str) -> DuoGenError:
    reason = str(error) if isinstance(error, sqlite3.Error) else getattr(error, "strerror", "") or "no memory"
    return DuoGenError(
        f"The machine gave out at {where} ({reason}). "
        "Finished shards are whole; free some disk or memory, then run the same command again to go on."
    )
