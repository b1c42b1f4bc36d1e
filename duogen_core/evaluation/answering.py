"""Answers prompts: with a function in this process, or with the model loaded in several processes.

In: prompts, each with the seed of its images. Out: the answers in the order of the prompts, each with its seconds.
An answer is a pure function of prompt and seed, so the number of processes changes only the time. (The number of CPU
threads may change it: it decides in which order a matrix product is summed.) With several cards each process has one:
with `in_processes` rather than accelerate's launcher, as it keeps the order and says which process was killed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from duogen_core.checkpoint import Components
from duogen_core.device_options import DEFAULT, Placement
from duogen_core.devices import devices_of
from duogen_core.document import Document
from duogen_core.pipeline import Settings, generate
from duogen_core.placement import load_placed
from duogen_core.processes import in_processes

Answer = Callable[[Document, int], Document]
Question = tuple[Document, int]  # the prompt, and the seed of its pictures


@dataclass
class ModelAnswer:
    """An `Answer` that can be sent to another process, where it loads the model again."""

    model: Path
    settings: Settings
    components: Components | None = field(default=None, repr=False)
    placement: Placement = DEFAULT

    def load(self) -> Components:
        if self.components is None:
            self.components = load_placed(self.model, self.placement)
        return self.components

    def of_process(self, number: int) -> ModelAnswer:
        """The same for one of several processes: where there are several cards, each has the next one for itself."""
        cards = devices_of(self.placement.device)
        return replace(self, placement=replace(self.placement, device=str(cards[number % len(cards)])))

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
    of_process = answer.of_process if isinstance(answer, ModelAnswer) else lambda number: answer
    ended = f"One of the {jobs} worker processes was killed, perhaps because memory ran out; use a smaller --jobs."
    yield from in_processes(
        _answer, questions, min(jobs, len(questions)), _begin, in_order=True, ended=ended,
        arguments=lambda number: (of_process(number), threads),
    )  # fmt: skip


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
