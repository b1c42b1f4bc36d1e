"""Files that appear under their name when all of them is written, or not at all; a full disk is one sentence.

    with whole_file(path) as stream: stream.write(...)

Meant for shards: the sentence about a full disk says that finished ones are whole.
"""

from __future__ import annotations

import contextlib
import errno
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from duogen_core.errors import DuoGenError


@contextlib.contextmanager
def whole_file(file: Path) -> Iterator[Any]:
    """A stream whose file takes its name when all of it is written. Its own name is no other process's, anywhere."""
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}.duogen-tmp")
    try:
        with temporary.open("wb") as stream:
            yield stream
        temporary.replace(file)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DuoGenError(
                f"The disk is full: {file} could not be written. Finished shards are whole; free some space, then run "
                "the same command again to go on."
            ) from None
        raise DuoGenError(f"{file} could not be written: {error.strerror or error}.") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
