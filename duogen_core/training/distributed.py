"""The processes of a run: one, unless `--launch` (command.py), accelerate's own command or torchrun started more.

    python -m duogen_core train stage2 --launch ddp --processes 2 --config my.yaml

The batch of a step is the same on every process, a function of (seed, step); each takes its `share` of it. A process's
loss is its part of the sum, already divided by what the whole batch counts (`total`), so that the parts add up to the
loss of one process, and so do the gradients (`backward`). Only the main process writes exports, prints and evaluates.

DDP copies the weights to every process. FSDP shards weights, gradients and optimizer states (torch's fully_shard, ZeRO
stage 3): a decoder layer or DiT block is gathered while it computes, everything else (embeddings, vision tower,
connector) stays gathered from forward to backward. The loss tells its layers (`loss.layers`), as its family names them.
Which one, and on what device, is accelerate's configuration (fsdp_version 2); the sharding is torch's own call, so that
the same code runs on CPUs, where accelerate has no FSDP.

Memory of one of N processes under FSDP: 1/N of weights, gradients, optimizer states and averages. Models come mapped
from their files (weights/module.py); the split ones are rebuilt on the meta device, and each process copies its rows
alone out of the mapping (`shard`), so no process ever holds the whole model, on the host or on the card.
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

from duogen_core.errors import first_line
from duogen_core.training.configuration import TrainingError

T = TypeVar("T")
PATIENCE = timedelta(hours=2)  # that the others wait while the main process evaluates or writes


class HostFull(MemoryError):
    """This process has no memory for a whole copy. All have gathered to the end, so it may go on with the others."""


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
        self.host_group: Any = None
        self.background_group: Any = None
        self._wrapped: Any = None  # what DDP or FSDP made of the loss, and whether it may add up gradients by itself
        self._defers = False
        self.rank, self.count, self.sharded, self.device = 0, 1, False, device_of(device)
        if started() > 1:
            from accelerate import Accelerator
            from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

            # find_unused_parameters is not needed: `ensure_gradients` gives every parameter one.
            ddp = DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False)
            self.accelerator = Accelerator(
                cpu=not torch.cuda.is_available(), kwargs_handlers=[ddp, InitProcessGroupKwargs(timeout=PATIENCE)]
            )
            self.rank, self.count = self.accelerator.process_index, self.accelerator.num_processes
            self.device, self.sharded = self.accelerator.device, asked_for()
            # Numbers on the host are exchanged by the hosts: the devices go on with their work meanwhile. What a
            # thread does beside the training has a group of its own, or its calls would get between those of the steps.
            self.host_group = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
            self.background_group = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)

    @property
    def main(self) -> bool:
        return self.rank == 0

    def prepare(
        self,
        loss: nn.Module,
        optimizers: Mapping[str, torch.optim.Optimizer],
        dtype: torch.dtype | None = None,
    ) -> nn.Module:
        """The module to call for the loss. FSDP: its parameters and those of the optimizers are split in place.

        dtype: of all weights; None keeps theirs. Given here and not before, so that a split model is never converted
        as a whole.
        """
        if self.accelerator is None:
            return loss.to(self.device, dtype)
        if self.sharded:
            self._wrapped = shard(loss, optimizers, self.device, dtype)
            # Gradients that wait for the last pass are whole on every process: little for LoRA, all of the memory that
            # FSDP saves for a whole model, which therefore adds up its parts after every pass.
            sizes = [(p.numel(), p.requires_grad) for p in loss.parameters()]
            self._defers = sum(n for n, learns in sizes if learns) <= sum(n for n, _ in sizes) / 10
            return loss
        loss.to(self.device, dtype)
        ensure_gradients(loss, list(loss.modules()))
        # Every process has read the same frozen weights: they are not sent from the first to the others once more.
        frozen = [name for name, p in loss.named_parameters(remove_duplicate=False) if not p.requires_grad]
        nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(loss, frozen)
        self._wrapped, self._defers = self.accelerator.prepare(loss), True
        return self._wrapped

    # -- the work of a step ---------------------------------------------------------------------------------------

    def share(self, batch: Sequence[T]) -> tuple[list[T], int]:
        """What this process has of the whole batch, and 1; where nothing is left for it, an example and 0.

        FSDP's processes must all compute, so there is always something, which counts or does not.
        """
        mine = list(batch[self.rank :: self.count])
        return (mine, 1) if mine else (list(batch[:1]), 0)

    def total(self, value: Tensor | float) -> Tensor:
        """Sum over the processes, on the device where the value is; no device is waited for."""
        value = torch.as_tensor(value).detach()
        if self.count > 1:
            value = value.to(torch.float64, copy=True)
            torch.distributed.all_reduce(value, group=self.host_group if value.device.type == "cpu" else None)
        return value

    def most(self, number: int) -> int:
        """Largest number of any process."""
        return max(self.gather(number))

    def backward(self, loss: Tensor) -> None:
        """Gradients of the sum of all processes' losses; DDP and FSDP take the mean, hence the factor."""
        (loss * self.count if self.count > 1 else loss).backward()

    @contextmanager
    def one_pass(self, last: bool) -> Iterator[None]:
        """Around forward and backward of one of several passes of a step: gradients are exchanged with the last one."""
        if self.count == 1 or last or not self._defers:
            yield
        elif not self.sharded:
            with self._wrapped.no_sync():
                yield
        else:
            for exchange in (self._wrapped.set_requires_gradient_sync, self._wrapped.set_is_last_backward):
                exchange(False)
            yield
            for exchange in (self._wrapped.set_requires_gradient_sync, self._wrapped.set_is_last_backward):
                exchange(True)

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
        torch.distributed.all_gather_object(values, value, group=self.host_group)
        return values

    def wait(self) -> None:
        """Until all processes are here, and what they wrote can be read."""
        if self.count > 1:
            torch.distributed.barrier(group=self.host_group)

    def reshard(self) -> None:
        """Drops what FSDP has gathered. A forward without a backward, for scores, leaves weights gathered, which would
        hide that the split ones change, and which are not what `parameters()` should give."""
        for module in self._wrapped.modules() if self.sharded else ():
            if hasattr(module, "reshard"):
                module.reshard()

    @contextmanager
    def gathered(self, *modules: nn.Module) -> Iterator[None]:
        """Inside, `state_dict()` of the modules gives whole tensors, for save_pretrained; on the main process alone, on
        the others nothing. All processes must come."""
        self.reshard()
        failed: HostFull | None = None
        with ExitStack() as stack:
            for module in modules if self.sharded else ():
                try:
                    state = gathered_state_of(module, keep=self.main and failed is None)
                except HostFull as error:
                    failed = error  # told when the others, too, are through
                    continue
                module.state_dict = lambda *_, state=state, **__: state
                stack.callback(delattr, module, "state_dict")
            if failed is not None:
                raise failed
            yield


# -- FSDP


def asked_for() -> bool:
    """Whether accelerate's launcher was told to use FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def precision() -> str:
    """accelerate's mixed_precision: what split layers compute with."""
    return os.environ.get("ACCELERATE_MIXED_PRECISION", "no")


def ask_for_fsdp(bf16: bool) -> None:
    """As accelerate's launcher does it with launch/fsdp.yaml, for processes that torchrun or srun started."""
    asked = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "ACCELERATE_MIXED_PRECISION": "bf16" if bf16 else "no"}
    for name, value in asked.items():
        os.environ.setdefault(name, value)


def shard(
    loss: nn.Module,
    optimizers: Mapping[str, torch.optim.Optimizer],
    device: torch.device,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Splits the parameters in place; the optimizers hold the process's part of the parameters afterwards.

    loss.layers: what is gathered one at a time; they must be called as modules. dtype: as of `prepare`.
    """
    from accelerate import FullyShardedDataParallelPlugin
    from torch.distributed.device_mesh import init_device_mesh

    try:
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    except ImportError:
        raise TrainingError(
            f"FSDP needs torch 2.6, and this is {torch.__version__}: update torch or use ddp."
        ) from None

    plugin = FullyShardedDataParallelPlugin()  # from the launcher's environment
    if plugin.fsdp_version != 2:
        raise TrainingError("FSDP here is that of fsdp_version: 2; set it in accelerate's configuration.")
    if any(type(optimizer).__name__ == "Muon" for optimizer in optimizers.values()):
        raise TrainingError("Muon needs whole matrices, which FSDP splits; set optimizer=adamw.")
    # Layers compute in bf16; gradients are added up over the processes in float32, or small ones would be lost.
    computes = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision())
    policy = MixedPrecisionPolicy(computes, torch.float32) if computes else MixedPrecisionPolicy()
    settings = {"mesh": init_device_mesh(device.type, (torch.distributed.get_world_size(),)), "mp_policy": policy}
    if plugin.cpu_offload:
        settings["offload_policy"] = plugin.cpu_offload
        device = torch.device("cpu")

    names = {id(parameter): name for name, parameter in loss.named_parameters()}
    for part in loss.modules():  # 4-bit weights have scales beside them, which move along with them
        for name, parameter in part._parameters.items():
            if parameter is not None and type(parameter) is not nn.Parameter:
                part._parameters[name] = parameter.to(device)
    whole = on_meta(loss, dtype)
    layers = list(loss.layers)
    inside = {part for layer in layers for part in layer.modules()}
    for layer in layers:
        ensure_gradients(layer, list(layer.modules()))
        fully_shard(layer, reshard_after_forward=plugin.reshard_after_forward, **settings)
    ensure_gradients(loss, [part for part in loss.modules() if part not in inside])
    fully_shard(loss, reshard_after_forward=False, **settings)
    materialise(loss, whole, device)

    split = dict(loss.named_parameters())
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["params"] = [split[names[id(parameter)]] for parameter in group["params"]]
    return loss


def on_meta(module: nn.Module, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Takes the values out of the parameters, which keep name and shape alone; returns {name: values}.

    Tied parameters stay one. Parameters of a class of their own (4-bit ones) and buffers stay as they are.
    """
    plain = {name: p for name, p in module.named_parameters() if type(p) is nn.Parameter}
    empty = {}
    for parameter in plain.values():
        kept = dtype if dtype and parameter.is_floating_point() else parameter.dtype
        shape = torch.empty_like(parameter, dtype=kept, device="meta")
        empty[id(parameter)] = nn.Parameter(shape, parameter.requires_grad)
    replace_parameters(module, empty)
    for part in module.modules():
        for name, buffer in part._buffers.items():
            if dtype and buffer is not None and buffer.is_floating_point():
                part._buffers[name] = buffer.to(dtype)
    return {name: parameter.detach() for name, parameter in plain.items()}


def materialise(module: nn.Module, whole: Mapping[str, Tensor], device: torch.device) -> None:
    """Gives sharded parameters on the meta device memory, and the rows of `whole` that this process has of each."""
    filled = {}
    for name, parameter in module.named_parameters():
        if not parameter.is_meta:
            continue
        value = torch.empty_like(parameter, device=device)
        local, source = value.to_local(), whole[name]
        mesh = value.device_mesh
        rows = -(-len(source) // mesh.size())  # as torch.chunk does: the last processes may have fewer, or none
        first = min(len(source), rows * mesh.get_local_rank())
        local.copy_(source[first : first + len(local)])  # of a mapped tensor, these pages alone are read
        filled[id(parameter)] = nn.Parameter(value, parameter.requires_grad)
    replace_parameters(module, filled)


def replace_parameters(module: nn.Module, by: Mapping[int, nn.Parameter]) -> None:
    """by: {id of a parameter: the one to take its place}, wherever it is."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if id(parameter) in by:
                part._parameters[name] = by[id(parameter)]


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
    To be called before fully_shard, whose hook must come after this one, and before DDP, which then need not search the
    graph for parameters that took no part.
    """

    def hook(_module: nn.Module, _args: Any, output: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        learn = [p for part in parts for p in part.parameters(recurse=False) if p.requires_grad]
        if not learn or not torch.is_grad_enabled():
            return output
        if isinstance(output, Tensor):
            return ZeroGradients.apply(output, *learn)
        return (ZeroGradients.apply(output[0], *learn), *output[1:])

    module.register_forward_hook(hook)


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


def local_part(tensor: Tensor) -> Tensor:
    """What this process has of a sharded tensor, any other as it is; sharing its memory."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered (all processes must come), any other as it is."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def gathered_state(state: Mapping[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """Gathered tensors on the CPU, one after another, so that nobody holds the whole state twice. All processes must
    come; without `keep` they get nothing. HostFull comes when all were gathered: the others count on this one."""
    found: dict[str, Tensor] = {}
    failed = ""
    for key, tensor in state.items():
        gathered = full_tensor(tensor.detach())
        if keep and not failed:
            try:
                found[key] = gathered.cpu()
            except (RuntimeError, MemoryError) as error:
                failed = first_line(error)
                found.clear()
    if failed:
        raise HostFull(f"the host has no memory for a whole copy of the weights ({failed})")
    return found


def aliases_of(module: nn.Module) -> dict[str, str]:
    """{name of a tied parameter: the name it was met under first}."""
    first: dict[int, str] = {}
    found = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if first.setdefault(id(parameter), name) != name:
            found[name] = first[id(parameter)]
    return found


def gathered_state_of(module: nn.Module, keep: bool = True) -> dict[str, Tensor]:
    """The same of a module, whose tied parameters stay one."""
    aliases = aliases_of(module)
    state = gathered_state({k: v for k, v in module.state_dict().items() if k not in aliases}, keep)
    return state | {name: state[first] for name, first in aliases.items() if first in state}
