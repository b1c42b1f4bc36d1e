"""Files, read and written with care: at most so many bytes, JSON without its loopholes, whole or not at all.

`read_limited` and `read_json` are how files of somebody else are read: every fault is a sentence that names the file.
`write_atomically` is how one file is written: under a temporary name beside it, then renamed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from duogen_core.errors import DuoGenError, is_out_of_memory

MAX_JSON_BYTES = 16 * 2**20
# Lists and objects in one another. A document needs about ten levels, ComfyUI's workflows inside it some twenty more;
# Python's own stack ends at 1,000 frames, some of which the callers have taken.
MAX_DEPTH = 200
TEMPORARY = ".duogen-tmp"  # how the name of everything unfinished ends


def read_limited(path: str | os.PathLike[str], limit: int, name: str, what: str = "picture") -> bytes:
    """The bytes of a regular file, never more than `limit`."""
    path = Path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe or a device would never end
            raise DuoGenError(f"{name} is not a file; expected a {what}.")
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise DuoGenError(f"The {what} {name} does not exist; check the path.") from None
    except (OSError, ValueError) as error:
        if isinstance(error, DuoGenError) or is_out_of_memory(error):
            raise
        raise DuoGenError(f"The {what} {name} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    if len(data) > limit:
        raise DuoGenError(
            f"The {what} {name} is larger than {limit / 2**20:g} MB, the most that is read; make it smaller."
        )
    return data


def read_json(
    path: str | os.PathLike[str], what: str = "file", *, limit: int = MAX_JSON_BYTES, depth: int = MAX_DEPTH
) -> Any:
    """The value of a JSON file of at most `limit` bytes; `what` is what a message calls the file."""
    return parse_json(read_limited(path, limit, str(path), what=what), str(path), depth=depth)


def parse_json(data: bytes | str, where: str, *, depth: int = MAX_DEPTH) -> Any:
    """The value of JSON text: valid UTF-8, no duplicate names, no NaN, at most `depth` levels. Errors name `where`."""

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            seen: set[str] = set()
            for name, _ in pairs:
                if name in seen:
                    raise DuoGenError(f"{where}: the name {name!r} stands twice in one object; keep one of them.")
                seen.add(name)
        return value

    def no_constant(name: str) -> Any:
        raise DuoGenError(f"{where}: {name} is not a JSON number.")

    try:
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
        value = json.loads(text, object_pairs_hook=no_duplicates, parse_constant=no_constant)
    except DuoGenError:
        raise
    except UnicodeDecodeError:
        raise DuoGenError(f"{where} is not UTF-8 text; expected JSON.") from None
    except RecursionError:
        raise DuoGenError(_too_deep(where, depth)) from None
    except ValueError as error:  # also a whole number with more digits than Python reads
        raise DuoGenError(f"{where} is not valid JSON: {error}.") from None
    check_depth(value, where, depth)
    return value


def check_depth(value: Any, where: str, depth: int = MAX_DEPTH) -> None:
    """Refuses a value that is nested deeper: the parser reads much more than what walks through its value can bear."""
    # Level by level: this must not recurse.
    level, levels = [value] if isinstance(value, (dict, list)) else [], 0
    while level:
        levels += 1
        if levels > depth:
            raise DuoGenError(_too_deep(where, depth))
        inside = (child for item in level for child in (item.values() if isinstance(item, dict) else item))
        level = [child for child in inside if isinstance(child, (dict, list))]


def _too_deep(where: str, depth: int) -> str:
    return f"{where} is nested too deeply; at most {depth} lists and objects may stand in one another."


def write_atomically(path: Path, data: bytes) -> None:
    """Write one file whole or not at all; errors are sentences. A link that has its name is replaced, not followed."""
    with write_errors(path):
        replace_file(path, data)


def replace_file(path: Path, data: bytes) -> None:
    """`write_atomically`, with the system's own errors."""
    temporary = path.with_name(f".{path.name}{TEMPORARY}")  # one fixed name: what a kill leaves, the next write reuses
    try:
        if temporary.is_symlink():  # an answer that somebody sent may hold one: it would lead to a file of the user's
            temporary.unlink()
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except BaseException:
        discard(temporary)
        raise


def discard(path: Path) -> None:
    """Remove a temporary file or folder; failing at that must not hide the error that led here."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


@contextlib.contextmanager
def write_errors(target: Path) -> Iterator[None]:
    """Turns the system's errors into sentences about `target`."""
    try:
        yield
    except Exception as raised:
        if (error := _of_the_system(raised)) is None:
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DuoGenError(
                f"The disk is full: {target} could not be written. What was there before is unchanged; free some space."
            ) from raised
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            raise DuoGenError(
                f"{target} cannot be written ({error.strerror}); choose a folder that you may write to."
            ) from raised
        raise DuoGenError(f"{target} could not be written: {error.strerror or error}.") from raised


def _of_the_system(error: Exception) -> OSError | None:
    """The system's error behind an error. Libraries in Rust (safetensors, tokenizers) tell its number in their text."""
    if isinstance(error, OSError):
        return error
    number = None if isinstance(error, DuoGenError) else re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else None
