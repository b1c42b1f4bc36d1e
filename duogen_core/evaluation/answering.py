"""Who answers the cases: a function in this process, or the model in several processes.

In: prompts, each with the seed of its pictures. Out: the answers in the order of the prompts, each with its seconds.
An answer is a pure function of prompt and seed, so the number of processes changes nothing but the time. (The number
of threads may: it decides how a matrix product is summed.)
"""

from __future__ import annotations

import multiprocessing
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from duogen_core.checkpoint import Components, load_checkpoint
from duogen_core.document import Document
from duogen_core.errors import DuoGenError
from duogen_core.pipeline import Settings, generate

Answer = Callable[[Document, int], Document]
Question = tuple[Document, int]  # the prompt, and the seed of its pictures


@dataclass
class ModelAnswer:
    """An `Answer` that can be sent to another process, where it loads the model for itself."""

    model: Path
    settings: Settings
    components: Components | None = field(default=None, repr=False)

    def load(self) -> Components:
        if self.components is None:
            self.components = load_checkpoint(self.model)
        return self.components

    def __call__(self, prompt: Document, seed: int) -> Document:
        return generate(self.load(), prompt, replace(self.settings, seed=seed))

    def __getstate__(self) -> dict:
        return {**self.__dict__, "components": None}


def answers(
    answer: Answer, questions: Sequence[Question], jobs: int = 1, threads: int = 1
) -> Iterator[tuple[Document, float]]:
    """With more than one job, `answer` is sent to that many processes, each with so many CPU threads."""
    if jobs == 1:
        for question in questions:
            yield timed(answer, question)
        return
    workers = start_workers(answer, min(jobs, len(questions)), threads)
    found: dict[int, tuple[Document, float]] = {}
    left, due = iter(enumerate(questions)), 0
    try:
        for pipe in workers:
            pipe.send(next(left))
        while due < len(questions):
            for pipe in wait(list(workers)):
                number, one = received(pipe)
                found[number] = one
                if (more := next(left, None)) is not None:
                    pipe.send(more)
            while due in found:
                yield found.pop(due)
                due += 1
    except (EOFError, ConnectionError):
        raise DuoGenError(
            f"One of the {jobs} processes that answer was ended from outside, perhaps for want of memory; "
            "use a smaller --jobs."
        ) from None
    finally:
        for process in workers.values():
            process.terminate()
            process.join()


def timed(answer: Answer, question: Question) -> tuple[Document, float]:
    started = time.perf_counter()
    document = answer(*question)
    return document, time.perf_counter() - started


def start_workers(answer: Answer, count: int, threads: int) -> dict[Connection, BaseProcess]:
    context = multiprocessing.get_context("spawn")  # a process that is forked while libraries run threads may hang
    workers = {}
    with deaf():
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(theirs, answer, threads), daemon=True)
            process.start()
            theirs.close()  # or its end would not be noticed
            workers[ours] = process
    return workers


@contextmanager
def deaf() -> Iterator[None]:
    """Processes started inside do not hear Ctrl-C: it is the parent's, which then ends them."""
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


def work(pipe: Connection, answer: Answer, threads: int) -> None:
    """In a process of its own: numbered questions come, numbered answers go, or what went wrong."""
    import torch

    torch.set_num_threads(threads)
    while True:
        number, question = pipe.recv()
        try:
            pipe.send((number, timed(answer, question)))
        except DuoGenError as error:
            pipe.send((number, error))
        except Exception:
            pipe.send((number, RuntimeError(traceback.format_exc())))


def received(pipe: Connection) -> tuple[int, tuple[Document, float]]:
    number, found = pipe.recv()
    if isinstance(found, Exception):
        raise found
    return number, found
