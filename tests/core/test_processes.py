"""Worker processes: results, their order, and that nothing waits forever for what will not come."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from duogen_core.errors import DuoGenError, MissingPackage
from duogen_core.processes import in_processes

ROOT = Path(__file__).parents[2]

_added = 0


def start(number: int) -> None:
    global _added
    _added = number


def add(number: int) -> int:
    time.sleep(0.05 if number == 0 else 0)
    return number + _added


def refuse(number: int) -> int:
    raise DuoGenError(f"{number} is refused.")


def lack(number: int) -> int:
    raise MissingPackage("It", "nothing", "data")


def divide(number: int) -> int:
    return number // 0


def fill(number: int) -> int:
    raise OSError(errno.ENOSPC, "No space left on device", "a.tar")


def fail_to_begin() -> None:
    raise DuoGenError("It does not begin.")


def die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("in_order", [False, True])
def test_results(in_order) -> None:
    found = list(in_processes(add, range(12), 2, start, (100,), in_order))
    assert found == list(range(100, 112)) if in_order else sorted(found) == list(range(100, 112))
    assert list(in_processes(add, [], 2, start, (100,))) == []


def test_an_error_of_the_function_comes_out() -> None:
    with pytest.raises(DuoGenError, match=r"0 is refused\."):
        list(in_processes(refuse, range(3), 1, start, (0,), in_order=True))


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
def test_a_worker_that_is_ended_from_outside_is_a_sentence() -> None:
    """multiprocessing.Pool starts another one, and waits forever for the result of the first."""
    with pytest.raises(DuoGenError, match=r"A worker process was killed.* fewer --workers"):
        list(in_processes(die, range(3), 2, start, (0,)))


def test_it_needs_no_thread_here(monkeypatch) -> None:
    """Python's own pools start one, and wait forever for its results where the machine lets none start."""

    def refuse_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse_thread)
    assert sorted(in_processes(add, range(3), 2, start, (0,))) == [0, 1, 2]


def test_leaving_the_loop_ends_the_processes() -> None:
    results = in_processes(add, range(1000), 2, start, (0,))
    next(results)
    results.close()
    assert not multiprocessing.active_children()


def test_errors_that_cannot_be_sent_are_sent_as_what_they_say() -> None:
    with pytest.raises(DuoGenError, match="package nothing is not installed"):
        list(in_processes(lack, range(2), 1, start, (0,)))
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        list(in_processes(divide, range(2), 1, start, (0,)))
    with pytest.raises(OSError) as full:
        list(in_processes(fill, range(2), 1, start, (0,)))
    assert full.value.errno == errno.ENOSPC
    with pytest.raises(DuoGenError, match="does not begin"):
        list(in_processes(add, range(2), 2, fail_to_begin))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_processes_end_with_the_one_that_started_them(tmp_path) -> None:
    code = "from tests.core.test_processes import endless; endless()"
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    (child,) = [int(parent.stdout.readline())]
    parent.kill()
    parent.wait()
    until = time.monotonic() + 60
    while os.path.exists(f"/proc/{child}") and time.monotonic() < until:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{child}")


def endless() -> None:
    for number in in_processes(tell_and_stay, range(1), 1, start, (0,)):
        print(number)


def tell_and_stay(number: int) -> int:
    print(os.getpid(), flush=True)
    time.sleep(600)
    return number
