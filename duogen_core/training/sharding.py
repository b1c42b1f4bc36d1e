"""FSDP: parameters, gradients and optimizer states split over the processes (torch's fully_shard, ZeRO stage 3).

Settings are those of accelerate's configuration (fsdp_version 2); the splitting is torch's own call, so that the same
code runs on GPUs and, in the tests, on CPUs, where accelerate has no FSDP. A decoder layer or DiT block is gathered
while it computes; everything else (embeddings, vision tower, connector) stays gathered from forward to backward.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from duogen_core.training.errors import TrainingError

# Vision blocks are not called as modules by the quick tower (fast.py), so they belong to what is gathered as a whole.
LAYERS = ("Qwen2_5_VLDecoderLayer", "Qwen3VLTextDecoderLayer", "PackedCosmosBlock")


def asked_for() -> bool:
    """Whether accelerate's launcher was told to use FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def precision() -> str:
    """accelerate's mixed_precision: what split layers compute with."""
    return os.environ.get("ACCELERATE_MIXED_PRECISION", "no")


def shard(module: nn.Module, optimizers: Mapping[str, torch.optim.Optimizer], device: torch.device) -> nn.Module:
    """Split in place; the optimizers hold the process's part of the parameters afterwards."""
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
        touch_all(layer, list(layer.modules()))
        fully_shard(layer, reshard_after_forward=plugin.reshard_after_forward, **settings)
    touch_all(module, [part for part in module.modules() if part not in inside])
    fully_shard(module, reshard_after_forward=False, **settings)
    split = dict(module.named_parameters())
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["params"] = [split[names[id(parameter)]] for parameter in group["params"]]
    return module


class Touch(torch.autograd.Function):
    """x as it is; the parameters get a gradient of zeros, which takes no memory of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.likes = [(parameter.dtype, parameter.shape) for parameter in parameters]
        return x.clone()  # not a view: FSDP hangs its own hooks on what a module returns

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return grad, *(grad.new_zeros((), dtype=dtype).expand(shape) for dtype, shape in ctx.likes)


def touch_all(module: nn.Module, parts: Sequence[nn.Module]) -> None:
    """Every parameter that learns gets a gradient, be it zero: what one process has for its share and another has not
    would leave them with sums of unlike sizes. To be called before fully_shard, whose hook must come after this one."""

    def hook(_module: nn.Module, _args: Any, output: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        learn = [p for part in parts for p in part.parameters(recurse=False) if p.requires_grad]
        if not learn or not torch.is_grad_enabled():
            return output
        if isinstance(output, Tensor):
            return Touch.apply(output, *learn)
        return (Touch.apply(output[0], *learn), *output[1:])

    module.register_forward_hook(hook)


def whole(tensor: Tensor) -> Tensor:
    """A split tensor put together (all processes must come), any other as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def whole_state(state: Mapping[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """Whole tensors on the CPU. All processes must come; without `keep` they get nothing."""
    found = {}
    for key, tensor in state.items():
        gathered = whole(tensor.detach())
        if keep:
            found[key] = gathered.cpu()
    return found


def whole_state_of(module: nn.Module) -> dict[str, Tensor]:
    """The same of a module, whose tied parameters stay one."""
    state, first = whole_state(module.state_dict()), {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        state[name] = state[first.setdefault(id(parameter), name)]
    return state


def split_like(tensor: Tensor, pattern: Tensor) -> Tensor:
    """A whole tensor as the process's part of it, if `pattern` is split."""
    if not hasattr(pattern, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(pattern.device, pattern.dtype), pattern.device_mesh, pattern.placements)
