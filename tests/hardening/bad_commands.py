"""Commands that do what no command may, to see that the campaigns notice: `module:function` for a child."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import time
from pathlib import Path


def fails(arguments: list[str]) -> int:
    raise RuntimeError("not a sentence")


def says(arguments: list[str]) -> int:
    print(arguments[0], file=sys.stderr)
    return 2


def writes_outside(arguments: list[str]) -> int:
    for place in arguments:
        Path(place).write_text("x")
    return 0


def connects(arguments: list[str]) -> int:
    try:
        socket.create_connection(("192.0.2.1", 9), 0.01)
    except OSError:
        return 0
    return 1


def starts_a_program(arguments: list[str]) -> int:
    return subprocess.run([sys.executable, "-c", ""]).returncode


def unpickles(arguments: list[str]) -> int:
    pickle.loads(b"cposixpath\njoin\n.")
    return 0


def takes_memory(arguments: list[str]) -> int:
    data = bytearray(int(arguments[0]))
    data[::4096] = b"x" * len(data[::4096])
    return 0


def takes_time(arguments: list[str]) -> int:
    time.sleep(60)
    return 0


def writes_in_place(arguments: list[str]) -> int:
    """A file of final name that is whole only at the end; the second time it refuses."""
    out = Path(arguments[0])
    out.mkdir(exist_ok=True)
    with (out / "document.json").open("w") as stream:
        stream.write("[")
        for number in range(100):
            stream.write(f"{number},")
            stream.flush()
            time.sleep(0.005)
        stream.write("0]")
    return 0


def leaves_temporary_files(arguments: list[str]) -> int:
    out = Path(arguments[0])
    out.mkdir(exist_ok=True)
    temporary = out / f".{os.getpid()}.duogen-tmp"
    temporary.write_text("{}")
    time.sleep(0.3)
    temporary.rename(out / "document.json")
    return 0
