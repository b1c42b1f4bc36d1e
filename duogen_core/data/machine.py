"""Whose fault a failure is: the input's, which costs that input, or the machine's, which stops the run.

An engine logs an input that fails and goes on. With no disk, memory or open files left that would drop for good what is
in order, so the run ends with a sentence, and the same command goes on from the last whole shard.
"""

from __future__ import annotations

import errno

from duogen_core.errors import DuoGenError, is_out_of_memory

ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def is_of_the_machine(error: Exception) -> bool:
    return is_out_of_memory(error) or (isinstance(error, OSError) and error.errno in ERRNOS)


def gave_out(error: Exception, where: str) -> DuoGenError:
    return DuoGenError(
        f"The machine gave out at {where} ({getattr(error, 'strerror', '') or 'no memory'}). "
        "Finished shards are whole; free some disk or memory, then run the same command again to go on."
    )
