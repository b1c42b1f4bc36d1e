"""A function over many inputs in threads; results come in the order of the inputs, so that a run repeats exactly.

    for item, result in in_order(ask, items, threads=8): ...

The threads are daemons: Ctrl-C does not wait for an answer that may never come. An exception comes out at its place.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

Item, Result = TypeVar("Item"), TypeVar("Result")
AHEAD = 4  # inputs for each thread that are begun before their turn


def in_order(function: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[tuple[Item, Result]]:
    if threads <= 1:
        for item in items:
            yield item, function(item)
        return
    todo: queue.SimpleQueue[Any] = queue.SimpleQueue()
    stopped = threading.Event()

    def work() -> None:
        while (job := todo.get()) is not None:
            item, answer = job
            if stopped.is_set():
                return
            try:
                answer.put((function(item), None))
            except BaseException as error:  # whatever it is, it belongs to whoever waits for the answer
                answer.put((None, error))

    for _ in range(threads):
        threading.Thread(target=work, daemon=True).start()
    waiting: deque[tuple[Item, queue.SimpleQueue[Any]]] = deque()
    source = iter(items)
    try:
        while True:
            for item in source:
                answer: queue.SimpleQueue[Any] = queue.SimpleQueue()
                waiting.append((item, answer))
                todo.put((item, answer))
                if len(waiting) >= threads * AHEAD:
                    break
            if not waiting:
                return
            item, answer = waiting.popleft()
            result, error = _patiently(answer)
            if error is not None:
                raise error
            yield item, result
    finally:
        stopped.set()
        for _ in range(threads):
            todo.put(None)


def _patiently(answer: queue.SimpleQueue[Any]) -> Any:
    """Waits in short pieces: on Windows Ctrl-C is not seen while a thread waits without end."""
    while True:
        try:
            return answer.get(timeout=0.5)
        except queue.Empty:
            continue
