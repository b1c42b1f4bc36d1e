"""The processes of a run: one, unless `--launch` (launcher.py) or Hugging Face accelerate's own command started more.

    python -m duogen_core train stage2 --launch ddp --processes 2 --config my.yaml

The batch of a step is the same on every process, a function of (seed, step); each takes its `share` of it. A process's
loss is its part of the sum, already divided by what the whole batch counts (`total`), so that the parts add up to the
loss of one process, and so do the gradients (`backward`). DDP copies the weights to every process, FSDP splits them;
which one, and on what device, is accelerate's configuration. Only the main process writes, prints and evaluates.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from duogen_core.training import sharding
from duogen_core.training.errors import TrainingError

T = TypeVar("T")
PATIENCE = timedelta(hours=2)  # that the others wait while the main process evaluates or writes


def started() -> int:
    """Processes that the launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def device_of(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise TrainingError(f"There is no kind of device '{name}'; expected cpu, cuda, or cuda:1 and so on.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise TrainingError(f"device is '{name}', but torch finds no CUDA device here; set device=cpu.")
    return device


class Processes:
    """rank of count; `main`: the one that writes; `sharded`: under FSDP; device: where model and batches go."""

    def __init__(self, device: str = "cpu") -> None:
        """device: of a single process; the launcher's have accelerate's."""
        self.accelerator: Any = None
        self.rank, self.count, self.sharded, self.device = 0, 1, False, device_of(device)
        if started() > 1:
            from accelerate import Accelerator
            from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

            # unused: a share without a picture to learn from leaves the vision tower without gradients
            ddp = DistributedDataParallelKwargs(find_unused_parameters=True)
            self.accelerator = Accelerator(
                cpu=not torch.cuda.is_available(), kwargs_handlers=[ddp, InitProcessGroupKwargs(timeout=PATIENCE)]
            )
            self.rank, self.count = self.accelerator.process_index, self.accelerator.num_processes
            self.device, self.sharded = self.accelerator.device, sharding.asked_for()

    @property
    def main(self) -> bool:
        return self.rank == 0

    def prepare(self, loss: nn.Module, optimizers: Mapping[str, torch.optim.Optimizer]) -> nn.Module:
        """The module to call for the loss. FSDP: its parameters and those of the optimizers are split in place."""
        if self.accelerator is None:
            return loss.to(self.device)
        if self.sharded:
            return sharding.shard(loss.to(self.device), optimizers, self.device)
        return self.accelerator.prepare(loss)

    # -- the work of a step ---------------------------------------------------------------------------------------

    def share(self, batch: Sequence[T]) -> tuple[list[T], int]:
        """What this process has of the whole batch, and 1; where nothing is left for it, an example and 0.

        FSDP's processes must all compute, so there is always something, which counts or does not.
        """
        mine = list(batch[self.rank :: self.count])
        return (mine, 1) if mine else (list(batch[:1]), 0)

    def total(self, value: Tensor | float) -> Tensor:
        """Sum over the processes."""
        value = torch.as_tensor(value).detach()
        if self.count > 1:
            value = value.to(self.device, torch.float64, copy=True)
            torch.distributed.all_reduce(value)
        return value

    def most(self, number: int) -> int:
        """Largest number of any process."""
        return max(self.gather(number))

    def backward(self, loss: Tensor) -> None:
        """Gradients of the sum of all processes' losses; DDP and FSDP would take the mean."""
        (loss * self.count if self.count > 1 else loss).backward()

    def clip(self, parameters: Iterable[nn.Parameter], largest: float) -> Tensor:
        """Scale the gradients down to a norm of `largest`; returns the norm they had."""
        return sharding.whole(nn.utils.clip_grad_norm_(parameters, largest))

    def agree(self, seconds: float, stop: bool) -> tuple[float, bool]:
        """The main process's clock, and whether any process was told to stop."""
        if self.count == 1:
            return seconds, stop
        seconds, stops = self.total(torch.tensor([seconds if self.main else 0.0, stop], dtype=torch.float64)).tolist()
        return seconds, stops > 0

    def gather(self, value: T) -> list[T]:
        """Every process's value, by rank."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Until all processes are here, and what they wrote can be read."""
        if self.count > 1:
            torch.distributed.barrier()

    @contextmanager
    def gathered(self, *modules: nn.Module) -> Iterator[None]:
        """Inside, `state_dict()` of the modules gives whole tensors, for save_pretrained. All processes must come."""
        with ExitStack() as stack:
            for module in modules if self.sharded else ():
                state = sharding.whole_state_of(module)
                module.state_dict = lambda *_, state=state, **__: state
                stack.callback(delattr, module, "state_dict")
            yield
