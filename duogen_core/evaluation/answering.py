"""Answers prompts: with a function in this process, or with the model loaded in several processes.

In: prompts, each with the seed of its images. Out: the answers in the order of the prompts, each with its seconds.
An answer is a pure function of prompt and seed, so the number of processes changes only the time. (The number of CPU
threads and the size of a batch may change its last digits: they decide how a matrix product is summed.) With several
cards each process has one: with `in_processes` rather than accelerate's launcher, as it keeps the order and says which
process was killed.
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
from duogen_core.pipeline import generate, generate_many
from duogen_core.placement import load_placed
from duogen_core.processes import in_processes
from duogen_core.review import Critic
from duogen_core.settings import Settings

Answer = Callable[[Document, int], Document]
Question = tuple[Document, int]  # the prompt, and the seed of its pictures


@dataclass
class ModelAnswer:
    """An `Answer` that can be sent to another process, where it loads the model again."""

    model: Path
    settings: Settings
    components: Components | None = field(default=None, repr=False)
    placement: Placement = DEFAULT
    critic: Critic | None = None  # looks at every picture, which is drawn again up to `redraws` times
    redraws: int = 0

    def load(self) -> Components:
        if self.components is None:
            self.components = load_placed(self.model, self.placement)
        return self.components

    def of_process(self, number: int) -> ModelAnswer:
        """The same for one of several processes: where there are several cards, each has the next one for itself."""
        cards = devices_of(self.placement.device)
        return replace(self, placement=replace(self.placement, device=str(cards[number % len(cards)])))

    def __call__(self, prompt: Document, seed: int) -> Document:
        settings = replace(self.settings, seed=seed)
        return generate(self.load(), prompt, settings, critic=self.critic, redraws=self.redraws)

    def many(self, questions: Sequence[Question]) -> list[Document]:
        """The answers to several, written as one batch."""
        prompts, seeds = zip(*questions)
        how = {"critic": self.critic, "redraws": self.redraws}
        return generate_many(self.load(), prompts, self.settings, seeds, **how)

    def __getstate__(self) -> dict:
        # Weights are read from the disk there: sending gigabytes through a pipe would take longer.
        return {**self.__dict__, "components": None}


def answers(
    answer: Answer, questions: Sequence[Question], jobs: int = 1, threads: int = 1, batch: int = 1
) -> Iterator[tuple[Document, float]]:
    """Yields each answer with its seconds. With more than one job, `answer` is sent to that many processes, each with
    `threads` CPU threads. batch: how many a `ModelAnswer` writes together; each has an equal share of their seconds."""
    groups = [questions[start : start + batch] for start in range(0, len(questions), batch)]
    if jobs == 1:
        for group in groups:
            yield from timed(answer, group)
        return
    of_process = answer.of_process if isinstance(answer, ModelAnswer) else lambda number: answer
    ended = f"One of the {jobs} worker processes was killed, perhaps because memory ran out; use a smaller --jobs."
    for group in in_processes(
        _answer, groups, min(jobs, len(groups)), _begin, in_order=True, ended=ended,
        arguments=lambda number: (of_process(number), threads),
    ):  # fmt: skip
        yield from group


def timed(answer: Answer, questions: Sequence[Question]) -> list[tuple[Document, float]]:
    started = time.perf_counter()
    together = len(questions) > 1
    documents = answer.many(questions) if together else [answer(*question) for question in questions]
    seconds = (time.perf_counter() - started) / len(questions)
    return [(document, seconds) for document in documents]


_chosen: Answer  # set once in each worker process


def _begin(answer: Answer, threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    global _chosen
    _chosen = answer


def _answer(questions: Sequence[Question]) -> list[tuple[Document, float]]:
    return timed(_chosen, questions)
