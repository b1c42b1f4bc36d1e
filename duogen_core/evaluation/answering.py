"""Answers prompts: with a function in this process, or with the model loaded in several processes.

In: prompts, each with the seed of its images. Out: the answers in the order of the prompts, each with its seconds.
An answer is a pure function of prompt and seed, so the number of processes changes only the time. (The number of CPU
threads may change it: it decides in which order a matrix product is summed.)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from duogen_core.checkpoint import Components, load_checkpoint
from duogen_core.document import Document
from duogen_core.pipeline import Settings, generate
from duogen_core.processes import in_processes

Answer = Callable[[Document, int], Document]
Question = tuple[Document, int]  # the prompt, and the seed of its pictures


@dataclass
class ModelAnswer:
    """An `Answer` that can be sent to another process, where it loads the model again."""

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
        # Weights are read from the disk there: sending gigabytes through a pipe would take longer.
        return {**self.__dict__, "components": None}


def answers(
    answer: Answer, questions: Sequence[Question], jobs: int = 1, threads: int = 1
) -> Iterator[tuple[Document, float]]:
    """Yields each answer with its seconds. With more than one job, `answer` is sent to that many processes, each with
    `threads` CPU threads."""
    if jobs == 1:
        for question in questions:
            yield timed(answer, question)
        return
    ended = f"One of the {jobs} worker processes was killed, perhaps because memory ran out; use a smaller --jobs."
    yield from in_processes(
        _answer, questions, min(jobs, len(questions)), _begin, (answer, threads), in_order=True, ended=ended
    )


def timed(answer: Answer, question: Question) -> tuple[Document, float]:
    started = time.perf_counter()
    document = answer(*question)
    return document, time.perf_counter() - started


_chosen: Answer  # set once in each worker process


def _begin(answer: Answer, threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    global _chosen
    _chosen = answer


def _answer(question: Question) -> tuple[Document, float]:
    return timed(_chosen, question)
