"""Faults that a child is given: a disk that is full after so many bytes, memory that is not there.

A small tmpfs is a real full disk and reaches every writer, but only root (or a user namespace) can mount one.
`install(bytes=N, below=FOLDER)` needs no rights: from then on, Python's files below the folder take N bytes in all,
then raise ENOSPC, as the system would. Files that libraries write on their own in other languages are not reached.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
from typing import Any


class FullFile(io.FileIO):
    """A file on a disk that has only so much room left."""

    room: list[int] = [0]

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        if size > self.room[0]:
            if self.room[0] > 0:  # a part still fits, as on a real disk
                written = super().write(memoryview(data).cast("B")[: self.room[0]])
                self.room[0] -= written
                return written
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.name)
        self.room[0] -= size
        return super().write(data)


def install(bytes: int, below: str) -> None:
    FullFile.room = [bytes]
    real, root = io.open, os.path.realpath(below)

    def open_(file: Any, mode: str = "r", buffering: int = -1, *args: Any, **options: Any) -> Any:
        writes = isinstance(mode, str) and set(mode) & set("wax+")
        if not writes or isinstance(file, int) or options.get("opener") or args[3:]:
            return real(file, mode, buffering, *args, **options)
        if not os.path.realpath(os.fsdecode(file)).startswith(root):
            return real(file, mode, buffering, *args, **options)
        raw = FullFile(file, mode.replace("b", "").replace("t", ""))
        if buffering == 0:
            return raw
        stream = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return stream
        names = dict(zip(("encoding", "errors", "newline"), args)) | {
            k: v for k, v in options.items() if k != "closefd"
        }
        text = io.TextIOWrapper(stream, **names)
        text.mode = mode
        return text

    builtins.open = io.open = open_
