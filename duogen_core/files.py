"""Reads and writes files with care: bounded reads, strict JSON, atomic writes, and one run at a time per folder.

`read_limited` and `read_json` read files of somebody else: every fault is a sentence that names the file.
`write_atomically` writes one file whole or not at all, `atomic_path` whatever a block writes: under a temporary name
beside it, which is renamed at the end.
`lock_folder` keeps other processes out of a folder until the block or the process ends, however that ends.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from duogen_core.errors import DuoGenError, is_out_of_memory, shown

MAX_JSON_BYTES = 16 * 2**20
# Lists and objects in one another. A document needs about ten levels, ComfyUI's workflows inside it some twenty more;
# Python's own stack ends at 1,000 frames, some of which the callers have taken.
MAX_DEPTH = 200
TEMPORARY = ".duogen-tmp"  # how the name of everything unfinished ends


def read_limited(path: str | os.PathLike[str], limit: int, name: str, what: str = "image") -> bytes:
    """The bytes of a regular file, never more than `limit`."""
    data = read_beginning(path, limit + 1, name, what)
    if len(data) > limit:
        raise DuoGenError(
            f"The {what} {name} is larger than {limit / 2**20:g} MB, the most that is read; make it smaller."
        )
    return data


def read_beginning(path: str | os.PathLike[str], size: int, name: str, what: str = "image") -> bytes:
    """The first `size` bytes of a regular file, or all it has."""
    path = Path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe or a device would never end
            raise DuoGenError(f"{name} is not a file; expected {'an' if what[:1] in 'aeio' else 'a'} {what}.")
        with path.open("rb") as file:
            return file.read(size)
    except (FileNotFoundError, NotADirectoryError):
        raise DuoGenError(f"The {what} {name} does not exist; check the path.") from None
    except (OSError, ValueError) as error:
        if isinstance(error, DuoGenError) or is_out_of_memory(error):
            raise
        raise DuoGenError(f"The {what} {name} cannot be read: {getattr(error, 'strerror', None) or error}.") from None


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
    """Writes one file whole or not at all; errors are sentences. A link that has its name is replaced, not followed."""
    with write_errors(path):
        replace_file(path, data)


def replace_file(path: Path, data: bytes) -> None:
    """`write_atomically`, with the system's own errors."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def atomic_path(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Yields a name beside `path` for a new file or folder, which becomes `path` when the block ends well, else goes.

    The name is always the same, so that the next run clears away what a killed one left. shared: several processes may
    write this path at once, so each has a name of its own.
    """
    own = f".{secrets.token_hex(4)}" if shared else ""
    temporary = path.with_name(f".{path.name}{own}{TEMPORARY}")
    # Also a link: an answer that somebody sent may hold one under this name, which leads to a file of the user's.
    discard(temporary)
    try:
        yield temporary
        if temporary.is_dir() and path.is_dir() and not path.is_symlink():
            path.rmdir()  # an empty one: Windows renames onto no folder
        os.replace(temporary, path)
    except BaseException:
        discard(temporary)
        raise


def swap_folders(new: Path, target: Path, old: Path) -> bool:
    """Gives `new` the name `target`; what had it before is called `old` then. Returns whether there was such a folder.

    No system replaces a folder that holds something in one step. A kill between the two renames leaves `old` and no
    `target`: the next run has to give it its name back. An error in between gives it back at once.
    """
    if not target.exists():
        os.rename(new, target)
        return False
    os.rename(target, old)
    try:
        os.rename(new, target)
    except BaseException:
        os.rename(old, target)
        raise
    return True


def discard(path: Path) -> None:
    """Removes a temporary file or folder; failing at that must not hide the error that led here."""
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


# ---------------------------------------------------------------- one run at a time writes to a folder
# The lock is the operating system's (flock, or LockFile on Windows) on a file beside the folder, which says what run
# has it; so the folder itself can be replaced in one rename, and after a kill there is nothing to clear away. The file
# goes when the run ends; filelock, which PyTorch brings along, would leave it there. Processes that the run starts have
# no part in the lock: they may outlive a run that was killed.

# What a message in another run calls this one; the command line sets it to the whole command ("duogen data web").
program_name = Path(getattr(sys, "argv", [""])[0]).name


@dataclass
class _Lock:
    file: Path | None  # None: there can be no lock here
    opened: int = -1
    made: list[Path] = field(default_factory=list)  # folders above it that were not there
    times: int = 0


_held: dict[Path, _Lock] = {}  # real path of a folder that this process has -> its lock
_guard = threading.RLock()


@contextlib.contextmanager
def lock_folder(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Holds the folder (or file) for this process, which may take it again; another process gets a sentence.

    It need not exist yet. Where no lock can be had at all (a read-only disk, a network disk without locks), there is
    none: whoever writes there finds out by itself.
    """
    try:
        place = Path(os.path.realpath(folder))
    except (OSError, ValueError):  # no name that a folder can have: for its writer to say
        yield
        return
    with _guard:
        if place not in _held:
            _held[place] = _lock(place, folder)
        _held[place].times += 1
    try:
        yield
    finally:
        with _guard:
            _held[place].times -= 1
            if not _held[place].times:
                _unlock(_held.pop(place))


def unlock_all() -> None:
    """For a process that is about to leave on the spot: no lock file stays behind."""
    while _held:
        _unlock(_held.popitem()[1])


def _lock(place: Path, folder: str | os.PathLike[str]) -> _Lock:
    if not place.name:  # the root of a disk
        return _Lock(None)
    # Beside the folder; inside it where the folder above is not ours to write in, as with a disk that is mounted.
    beside = place.with_name(f".{place.name}.lock{TEMPORARY}")
    for file in (beside, place / f".lock{TEMPORARY}"):
        lock = _Lock(file)
        try:
            for parent in reversed(place.parents) if file == beside else ():
                if not parent.exists():
                    parent.mkdir()
                    lock.made.append(parent)
            while lock.opened < 0:
                opened = _open(file)
                try:
                    if not _take(opened):
                        raise DuoGenError(
                            f"{shown(str(folder))} is in use by another run of DuoGen{_holder(opened)}; wait until it "
                            "has ended, or choose another place."
                        )
                    # The run before may have removed the file between our opening and locking it: then it is no lock.
                    if _is_same(opened, file):
                        lock.opened = opened
                except OSError:  # this disk has no locks: what stands there is the file we have just made
                    with contextlib.suppress(OSError):
                        if not os.fstat(opened).st_size:
                            file.unlink()
                    raise
                finally:
                    if lock.opened < 0:
                        os.close(opened)
            _sign(lock.opened)
            return lock
        except OSError:
            for parent in reversed(lock.made):
                with contextlib.suppress(OSError):
                    parent.rmdir()
    return _Lock(None)


def _open(file: Path) -> int:
    no_links = getattr(os, "O_NOFOLLOW", 0)
    try:
        return os.open(file, os.O_RDWR | os.O_CREAT | no_links, 0o666)
    except PermissionError:  # another user's, in a folder that several share: it can be locked without being written
        return os.open(file, os.O_RDONLY | no_links)


def _sign(opened: int) -> None:
    """Writes into the lock file which run has it."""
    with contextlib.suppress(OSError):  # another user's file, a full disk: the lock holds without it
        os.ftruncate(opened, 0)
        os.lseek(opened, 0, os.SEEK_SET)
        os.write(
            opened, json.dumps({"process": os.getpid(), "host": socket.gethostname(), "program": program_name}).encode()
        )


def _holder(opened: int, seconds: float = 1.0) -> str:
    """Which run has it, as far as its file says so: " (process 4711, duogen data web)".

    Between taking a lock and signing it lies a moment, so the file is read again for that many seconds.
    """
    until = time.monotonic() + seconds
    while True:
        try:
            os.lseek(opened, 0, os.SEEK_SET)
            about = json.loads(os.read(opened, 4096))
            process, host, named = int(about["process"]), str(about["host"]), str(about["program"])
            break
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            if time.monotonic() >= until:
                return ""
            time.sleep(0.02)
    place = "" if host == socket.gethostname() else f" on {host}"
    return shown(f" (process {process}{place}, {named})" if named else f" (process {process}{place})")


def _is_same(opened: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(opened), os.stat(file, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _unlock(lock: _Lock) -> None:
    if lock.file is None:
        return
    try:
        if os.name != "nt":  # while it is locked: no other run can have taken it then
            with contextlib.suppress(OSError):
                lock.file.unlink()
    finally:
        os.close(lock.opened)
    if os.name == "nt":  # Windows removes no file that is open, be it by us or by another run
        with contextlib.suppress(OSError):
            lock.file.unlink()
    for parent in reversed(lock.made):
        with contextlib.suppress(OSError):  # there is something in it now
            parent.rmdir()


def _leave_to_parent() -> None:
    """In a forked process: the locks are its parent's, which may be killed while this one goes on."""
    global _guard
    _guard = threading.RLock()  # another thread may have had it
    for lock in _held.values():
        if lock.opened >= 0:
            os.close(lock.opened)
        lock.file, lock.opened = None, -1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


if os.name == "nt":
    import msvcrt

    def _take(opened: int) -> bool:
        os.lseek(opened, 1 << 30, os.SEEK_SET)  # the byte that is locked: nobody else can read what it lies on
        try:
            msvcrt.locking(opened, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EDEADLK):
                return False
            raise
        return True

else:
    import fcntl

    def _take(opened: int) -> bool:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return False
            raise
        return True
