"""One run at a time writes to a folder: a lock that ends with its process, however that ends.

    with lock_folder(out): ...

The lock is the operating system's (flock, or LockFile on Windows) on an empty file beside the folder; so the folder
itself can be replaced in one rename, and after a kill there is nothing to clear away. The file goes when the run ends;
filelock, which PyTorch brings along, would leave it there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from duogen_core.errors import DuoGenError
from duogen_core.files import TEMPORARY


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


def _lock(place: Path, shown: str | os.PathLike[str]) -> _Lock:
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
                opened = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
                taken = False
                try:
                    taken = _take(opened)
                    # The run before may have removed the file between our opening and locking it: then it is no lock.
                    if taken and _is_same(opened, file):
                        lock.opened = opened
                finally:
                    if lock.opened < 0:
                        os.close(opened)
                if not taken:
                    raise DuoGenError(
                        f"{shown} is in use by another run of DuoGen; wait until it has ended, or choose another place."
                    )
            return lock
        except OSError:
            for parent in reversed(lock.made):
                with contextlib.suppress(OSError):
                    parent.rmdir()
    return _Lock(None)


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


if os.name == "nt":
    import msvcrt

    def _take(opened: int) -> bool:
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
