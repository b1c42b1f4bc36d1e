"""The processes of a run: one, unless `--launch` (command.py) or Hugging Face accelerate's own command started more.

    python -m duogen_core train stage2 --launch ddp --processes 2 --config my.yaml

The batch of a step is the same on every process, a function of (seed, step); each takes its `share` of it. A process's
loss is its part of the sum, already divided by what the whole batch counts (`total`), so that the parts add up to the
loss of one process, and so do the gradients (`backward`). Only the main process writes, prints and evaluates.

DDP copies the weights to every process. FSDP shards weights, gradients and optimizer states (torch's fully_shard, ZeRO
stage 3): a decoder layer or DiT block is gathered while it computes, everything else (embeddings, vision tower,
connector) stays gathered from forward to backward. Which one, and on what device, is accelerate's configuration
(fsdp_version 2); the sharding is torch's own call, so that the same code runs on CPUs, where accelerate has no FSDP.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, nn

from duogen_core.training.configuration import TrainingError

T = TypeVar("T")
PATIENCE = timedelta(hours=2)  # that the others wait while the main process evaluates or writes


def started() -> int:
    """Processes that the launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def leave(code: int) -> NoReturn:
    """Ends a process that the launcher started.

    What wants to run at exit runs, then the process ends without Python's own teardown. There a thread of gloo that
    still drops the tensor of a barrier waits for the interpreter, and aborts (seen in 3 of 48 ends on two busy cores,
    torch 2.13; destroy_process_group does not join it, since DDP holds the group).
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


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
            self.device, self.sharded = self.accelerator.device, asked_for()

    @property
    def main(self) -> bool:
        return self.rank == 0

    def prepare(self, loss: nn.Module, optimizers: Mapping[str, torch.optim.Optimizer]) -> nn.Module:
        """The module to call for the loss. FSDP: its parameters and those of the optimizers are split in place."""
        if self.accelerator is None:
            return loss.to(self.device)
        if self.sharded:
            return shard(loss.to(self.device), optimizers, self.device)
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
        """Gradients of the sum of all processes' losses; DDP and FSDP take the mean, hence the factor."""
        (loss * self.count if self.count > 1 else loss).backward()

    def clip(self, parameters: Iterable[nn.Parameter], largest: float) -> Tensor:
        """Scales the gradients down to a norm of `largest`; returns the norm they had."""
        return full_tensor(nn.utils.clip_grad_norm_(parameters, largest))

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
                state = gathered_state_of(module)
                module.state_dict = lambda *_, state=state, **__: state
                stack.callback(delattr, module, "state_dict")
            yield


# -- FSDP

# Vision blocks are not called as modules by the batched tower (next_token.py): they are gathered as a whole.
LAYERS = ("Qwen2_5_VLDecoderLayer", "Qwen3VLTextDecoderLayer", "PackedCosmosBlock")


def asked_for() -> bool:
    """Whether accelerate's launcher was told to use FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def precision() -> str:
    """accelerate's mixed_precision: what split layers compute with."""
    return os.environ.get("ACCELERATE_MIXED_PRECISION", "no")


def shard(module: nn.Module, optimizers: Mapping[str, torch.optim.Optimizer], device: torch.device) -> nn.Module:
    """Splits parameters in place; the optimizers hold the process's part of the parameters afterwards."""
    from accelerate import FullyShardedDataParallelPlugin
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    plugin = FullyShardedDataParallelPlugin()  # from the launcher's environment
    if plugin.fsdp_version != 2:
        raise TrainingError("FSDP here is that of fsdp_version: 2; set it in accelerate's configuration.")
    if any(type(optimizer).__name__ == "Muon" for optimizer in optimizers.values()):
        raise TrainingError("Muon needs whole matrices, which FSDP splits; set optimizer=adamw.")
    if any(getattr(part, "peft_config", None) for part in module.modules()):
        raise TrainingError(
            "LoRA cannot be exported from under FSDP; its frozen weights need little, so start it with DDP "
            "(duogen_core/training/launch/ddp.yaml)."
        )
    if precision() != "no":
        plugin.set_mixed_precision(precision())
    settings = {
        "mesh": init_device_mesh(device.type, (torch.distributed.get_world_size(),)),
        "mp_policy": plugin.mixed_precision_policy or MixedPrecisionPolicy(),
    }
    if plugin.cpu_offload:
        settings["offload_policy"] = plugin.cpu_offload
    wrapped = plugin.transformer_cls_names_to_wrap or LAYERS
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    layers = [each for each in module.modules() if type(each).__name__ in wrapped]
    inside = {part for layer in layers for part in layer.modules()}
    for layer in layers:
        ensure_gradients(layer, list(layer.modules()))
        fully_shard(layer, reshard_after_forward=plugin.reshard_after_forward, **settings)
    ensure_gradients(module, [part for part in module.modules() if part not in inside])
    fully_shard(module, reshard_after_forward=False, **settings)
    split = dict(module.named_parameters())
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["params"] = [split[names[id(parameter)]] for parameter in group["params"]]
    return module


class ZeroGradients(torch.autograd.Function):
    """x as it is; the parameters get a gradient of zeros, which takes no memory of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.likes = [(parameter.dtype, parameter.shape) for parameter in parameters]
        return x.clone()  # not a view: FSDP hangs its own hooks on what a module returns

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return grad, *(grad.new_zeros((), dtype=dtype).expand(shape) for dtype, shape in ctx.likes)


def ensure_gradients(module: nn.Module, parts: Sequence[nn.Module]) -> None:
    """Gives every trainable parameter a gradient, be it zero.

    Else a process whose share has no picture would add up other gradients than its neighbours, and both wait for ever.
    To be called before fully_shard, whose hook must come after this one.
    """

    def hook(_module: nn.Module, _args: Any, output: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        learn = [p for part in parts for p in part.parameters(recurse=False) if p.requires_grad]
        if not learn or not torch.is_grad_enabled():
            return output
        if isinstance(output, Tensor):
            return ZeroGradients.apply(output, *learn)
        return (ZeroGradients.apply(output[0], *learn), *output[1:])

    module.register_forward_hook(hook)


def full_tensor(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered (all processes must come), any other as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def gathered_state(state: Mapping[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """Gathered tensors on the CPU, one after another, so that nobody holds the whole state twice. All processes must
    come; without `keep` they get nothing."""
    found = {}
    for key, tensor in state.items():
        gathered = full_tensor(tensor.detach())
        if keep:
            found[key] = gathered.cpu()
    return found


def gathered_state_of(module: nn.Module) -> dict[str, Tensor]:
    """The same of a module, whose tied parameters stay one."""
    state, first = gathered_state(module.state_dict()), {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        state[name] = state[first.setdefault(id(parameter), name)]
    return state


def sharded_like(tensor: Tensor, pattern: Tensor) -> Tensor:
    """This process's part of a whole tensor, if `pattern` is sharded."""
    if not hasattr(pattern, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(pattern.device, pattern.dtype), pattern.device_mesh, pattern.placements)
