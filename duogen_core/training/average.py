"""The average of a module's weights over the steps of a run, which is what is scored, drawn with and exported.

    average = Ema(module, 0.999)
    average.update()                    after every step: average = decay * average + (1 - decay) * weights
    with average.applied(): export()    inside, the module holds the average

It is our own, since torch's AveragedModel copies the module: this one keeps the state alone, also where that is
sharded, or only LoRA's. It lies where the weights lie, split as they are under FSDP. Of weights that are whole on a
card it lies in the host's memory, so that the card holds the weights once.

From a card it does not take the weights in every step: all of them would cross to the host, and the step would wait.
It takes them when what it missed counts for `OWED` of it, by one step of the product of the decays, so that an average
of decay d goes over every OWED / (1 - d) steps: in all of the first ones, when it is short, every 10 with 0.999, every
100 with 0.9999. The weights of the steps between count as those of the last of them, which makes the average younger by
half of that span, 0.5% of the time it looks back on. Which steps these are depends on their number alone, so a run that
goes on, or that is scored and shown in between, has the same average. The other way, an average on every card, takes
4 bytes a weight there, which a run that fits as it is may not have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from duogen_core.training.distributed import aliases_of, is_sharded, local_part

OWED = 0.01  # share of an average in the host's memory that the steps it has not yet taken may have


class Ema:
    """Average of a module's floating-point state; short averages at the start of a run.

    updates: steps so far. pending: product of the decays of the steps that are not yet in the average, 1 if all are.
    """

    def __init__(self, module: nn.Module, decay: float, reshard: Callable[[], None] = lambda: None) -> None:
        """reshard: makes sure that the module's weights are the split ones (Processes.reshard)."""
        self.module, self.decay, self.reshard = module, decay, reshard
        self.updates, self.pending = 0, 1.0
        state = self._state()
        self.shadow = {
            name: value.clone() if is_sharded(value) else value.to("cpu", copy=True) for name, value in state.items()
        }
        self.apart = any(average.device != state[name].device for name, average in self.shadow.items())

    def _state(self) -> dict[str, torch.Tensor]:
        """The module's own tensors, each once, also where two names stand for one."""
        self.reshard()
        aliases = aliases_of(self.module)
        return {name: value.detach() for name, value in self.module.state_dict().items() if name not in aliases}

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        # Short at first, or the untrained weights would stay in the average for thousands of steps.
        self.pending *= min(self.decay, (1 + self.updates) / (10 + self.updates))
        # The last digits of the product: ten times 0.999 are 1 - 0.00996, which is meant to be enough.
        if self.apart and 1 - self.pending < 0.99 * OWED:
            return
        kept, self.pending = self.pending, 1.0
        averages, values = [], []
        for name, value in self._state().items():
            average, value = local_part(self.shadow[name]), local_part(value)
            if not value.is_floating_point():
                average.copy_(value)
            elif average.device == value.device:
                averages.append(average)
                values.append(value)
            else:
                average.lerp_(value.to(average.device), 1 - kept)
        if averages:
            torch._foreach_lerp_(averages, values, 1 - kept)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The module holds the averaged weights inside the block, and the average the weights: they change places, one
        tensor after the other, so that nothing is held twice."""
        self._swap(list(self.shadow))
        try:
            yield
        finally:
            self._swap(list(self.shadow))

    @torch.no_grad()
    def _swap(self, names: list[str]) -> None:
        """All of these tensors or, where memory runs out, none."""
        state, done = self._state(), []
        try:
            for name in names:
                average, value = local_part(self.shadow[name]), local_part(state[name])
                kept = value.to(average.device, copy=True)
                value.copy_(average)
                average.copy_(kept)
                done.append(name)
        except (RuntimeError, MemoryError):
            if done and len(done) < len(names):
                self._swap(done)
            raise
