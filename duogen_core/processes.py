"""Runs a function over many inputs in processes of its own, for work that holds Python's lock.

    for result in in_processes(do_shard, shards, 4, start=open_engine, arguments=(run,)): ...

Processes are spawned (a forked one may hang while libraries run threads), call `start` once, and end when the loop is
left or when the process that started them is gone. What the function raises comes out of the loop, and so does the end
of a process.

Why this is not a pool of the standard library (all measured, Python 3.11):
- multiprocessing.Pool waits forever for a worker that was killed.
- concurrent.futures.ProcessPoolExecutor notices that, but leaving it waits for the items under way (Ctrl-C is answered
  after the longest one; `terminate_workers` exists from 3.14 on); workers outlive a killed parent for good and hold its
  stdout open; and where no thread can be started, it stands still instead of raising.
So there is a pipe to each process here and no thread in the process that waits.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any, TypeVar

from duogen_core.errors import DuoGenError

Item, Result = TypeVar("Item"), TypeVar("Result")
AHEAD = 4  # results for each process that may wait for an earlier one
ENDED = (
    "A worker process was killed, most often because memory ran out. What was finished is saved; give the same command "
    "again, with fewer --workers."
)


def in_processes(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    processes: int,
    start: Callable[..., None],
    arguments: tuple[Any, ...] | Callable[[int], tuple[Any, ...]] = (),
    in_order: bool = False,
    ended: str = ENDED,
) -> Iterator[Result]:
    """Yields function(item) of every item: as they are finished, or with in_order as the items come.

    function and start are functions of a module; arguments (of start, or what gives those of a process by its number),
    items and results can be pickled. ended: the message of the
    DuoGenError when a process is killed. Errors of bad input, of the system and of memory come out as they
    are, others as a RuntimeError with their traceback.
    """
    source = enumerate(items)
    workers: dict[Connection, BaseProcess] = {}
    busy: set[Connection] = set()
    found: dict[int, Result] = {}
    due = 0  # with in_order: the number of the result that is next
    try:
        while True:
            # With in_order, no new work while the results that wait for an early one pile up.
            idle = [pipe for pipe in workers if pipe not in busy] if len(found) < processes * AHEAD else []
            starting = processes - len(workers) if not found else 0
            for number_and_item in islice(source, len(idle) + starting):
                if not idle:
                    given = arguments(len(workers)) if callable(arguments) else arguments
                    pipe, process = _started(function, start, given)
                    workers[pipe] = process
                    idle.append(pipe)
                pipe = idle.pop()
                pipe.send(number_and_item)
                busy.add(pipe)
            if not busy:
                return
            for pipe in wait(busy):
                number, result, error = pipe.recv()
                busy.discard(pipe)
                if error is not None:
                    raise error
                found[number] = result
            while found and (due in found or not in_order):
                yield found.pop(due if in_order else next(iter(found)))
                due += 1
    except (EOFError, ConnectionError):  # of a pipe whose other end is gone
        raise DuoGenError(ended) from None
    finally:
        for process in workers.values():
            process.terminate()
        for pipe, process in workers.items():
            process.join()
            pipe.close()


def _started(function: Callable, start: Callable, arguments: tuple[Any, ...]) -> tuple[Connection, BaseProcess]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, function, start, arguments), daemon=True)
    with _ignoring_interrupts():
        process.start()
    theirs.close()  # or its end would not be noticed
    return ours, process


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    """Processes started inside ignore Ctrl-C: it is for the process that started them, which then ends them."""
    before = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:  # not the main thread, where signals are nobody's
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


# ---------------------------------------------------------------- in the other process


def _work(pipe: Connection, function: Callable, start: Callable, arguments: tuple[Any, ...]) -> None:
    try:
        threading.Thread(target=_leave_with_parent, daemon=True).start()
        start(*arguments)
    except Exception as error:
        with suppress(OSError, EOFError):
            number, _ = pipe.recv()
            pipe.send((number, None, _sendable(error)))
        return
    with suppress(OSError, EOFError):  # the process that started this one has ended, or does not want more
        while True:
            number, item = pipe.recv()
            try:
                result, error = function(item), None
            except Exception as raised:
                result, error = None, _sendable(raised)
            pipe.send((number, result, error))


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _sendable(error: Exception) -> Exception:
    if not isinstance(error, (DuoGenError, OSError, MemoryError)):
        return RuntimeError("".join(traceback.format_exception(error)))
    try:
        ForkingPickler.loads(ForkingPickler.dumps(error))
    except Exception:  # its class takes other arguments than the message
        return DuoGenError(str(error))
    return error
