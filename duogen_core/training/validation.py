"""Validation loss of stage 2: the flow-matching loss on documents that are not learnt from, the same ones every time.

    validation = Validation(run, cases, read, draw)
    scores = validation(flow_loss)      {"all": {...}, "draw": {"loss": 0.21, "loss_t0.125": 0.35, …}}

Each document is scored at fixed times, one in the middle of each quarter of [0, 1], with noise that depends on the
document's number and the quarter alone, and with all of its text. The training loss cannot be compared over time, since
its times and noise are others in each step; this one moves by what was learnt and by nothing else. Losses at equally
spaced times also go with what people say of the pictures (Esser et al., 2024, arXiv 2403.03206, section 5.3).

The averaged weights are scored, with LoRA's dropout off. A run has exactly the weights that it would have without.
All processes take part: each scores every n-th document, as FSDP's must compute in step. If one of them fails, all of
them raise the same DuoGenError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import torch
from torch import nn

from duogen_core.document import Document
from duogen_core.errors import DuoGenError
from duogen_core.training.checkpoints import evaluation_mode, reason
from duogen_core.training.data import Example
from duogen_core.training.prepared import Prepared
from duogen_core.training.run import Run, rng_for

TIMES = (0.125, 0.375, 0.625, 0.875)

Read = Callable[[Sequence[Document], Sequence[str]], Sequence[Prepared]]
Draw = Callable[[Prepared, Random], Any]  # -> FlowSample, without text dropout


class Validation:
    def __init__(
        self, run: Run, cases: Mapping[str, Sequence[Example]], read: Read, draw: Draw, keep: bool = True
    ) -> None:
        """cases: {source: its documents}. read: what VAE and MLLM make of documents and their names. draw: the noise of
        a document, and its target under `full` attention. keep: hold what was read from one time to the next."""
        self.run, self.read, self.draw = run, read, draw
        self.sources = list(cases)
        self.cases = [(name, example) for name, some in cases.items() for example in some]
        self.kept: dict[int, Prepared] | None = {} if keep else None

    def __call__(self, flow_loss: nn.Module) -> dict[str, dict[str, float]]:
        """flow_loss: a FlowLoss that holds the weights to score; not wrapped by DDP, which has nothing to do here."""
        processes, failed = self.run.processes, ""
        # [sources, times, (sum of the losses, number of targets)]
        sums = torch.zeros(len(self.sources), len(TIMES), 2, dtype=torch.float64)
        try:
            self._score(flow_loss, sums)
        except (RuntimeError, OSError, MemoryError, DuoGenError) as error:
            if processes.sharded:  # the others are in the middle of a pass that waits for this one
                raise
            failed = reason(error)
        if told := next(filter(None, processes.gather(failed)), ""):  # a mean without some of the documents is no score
            raise DuoGenError(told)
        sums = processes.total(sums).cpu()
        scores = {"all": means(sums.sum(0))} if len(self.sources) > 1 else {}
        return scores | {name: means(own) for name, own in zip(self.sources, sums, strict=True)}

    def _score(self, flow_loss: nn.Module, sums: torch.Tensor) -> None:
        """Adds up the losses of this process's documents."""
        processes = self.run.processes
        with evaluation_mode(flow_loss), torch.no_grad():
            for first in range(0, len(self.cases), processes.count):
                # Every process goes through as many documents: who has none left computes one again, uncounted.
                number = min(first + processes.rank, len(self.cases) - 1)
                counts = first + processes.rank < len(self.cases)
                document, source = self._prepared(number), self.sources.index(self.cases[number][0])
                for place, t in enumerate(TIMES):
                    # The same noise and the same target every time.
                    sample = self.draw(document, rng_for(0, "validation", number, place))
                    sample = replace(sample, timestep=torch.full_like(sample.timestep, t))
                    loss = flow_loss([sample], 1)
                    if counts:
                        sums[source, place] += torch.tensor([float(loss), len(sample.targets)], dtype=torch.float64)

    def _prepared(self, number: int) -> Prepared:
        if self.kept is not None and number in self.kept:
            return self.kept[number]
        example = self.cases[number][1]
        (found,) = self.read([example.document], [example.name])
        if self.kept is not None:
            self.kept[number] = found
        return found


def means(sums: torch.Tensor) -> dict[str, float]:
    """[times, (sum, number)] -> the mean of all, and of each time."""
    losses = (sums[:, 0] / sums[:, 1]).tolist()
    scores = {"loss": sum(losses) / len(losses)}
    scores |= {f"loss_t{t:g}": loss for t, loss in zip(TIMES, losses, strict=True)}
    return {name: float(f"{loss:.6g}") for name, loss in scores.items()}
