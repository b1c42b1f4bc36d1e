"""One run at a time writes to a folder: a lock that ends with its process, however that ends.

    with lock_folder(out): ...

The lock is the operating system's (flock, or LockFile on Windows) on a file beside the folder, which says what run has
it; so the folder itself can be replaced in one rename, and after a kill there is nothing to clear away. The file goes
when the run ends; filelock, which PyTorch brings along, would leave it there. Processes that the run starts have no
part in the lock: they may outlive a run that was killed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from duogen_core.errors import DuoGenError, shown
from duogen_core.files import TEMPORARY

program = Path(getattr(sys, "argv", [""])[0]).name  # what another run is told of this one; the command line sets it


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
            opened, json.dumps({"process": os.getpid(), "host": socket.gethostname(), "program": program}).encode()
        )


def _holder(opened: int) -> str:
    """Which run has it, as far as its file says so: " (process 4711, duogen data web)"."""
    try:
        os.lseek(opened, 0, os.SEEK_SET)
        about = json.loads(os.read(opened, 4096))
        process, host, named = int(about["process"]), str(about["host"]), str(about["program"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):  # it is about to write it, or to end
        return ""
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
