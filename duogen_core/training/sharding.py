"""FSDP: parameters, gradients and optimizer states split over the processes (torch's fully_shard, ZeRO stage 3).

Settings are those of accelerate's configuration (fsdp_version 2); the splitting is torch's own call, so that the same
code runs on GPUs and, in the tests, on CPUs, where accelerate has no FSDP. A decoder layer or DiT block is gathered
while it computes; everything else (embeddings, vision tower, connector) stays gathered from forward to backward.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from duogen_core.training.errors import TrainingError

# Vision blocks are not called as modules by the quick tower (fast.py), so they belong to what is gathered as a whole.
LAYERS = ("Qwen2_5_VLDecoderLayer", "Qwen3VLTextDecoderLayer", "PackedCosmosBlock")


def asked_for() -> bool:
    """Whether accelerate's launcher was told to use FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


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
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision != "no":
        plugin.set_mixed_precision(precision)
    settings = {
        "mesh": init_device_mesh(device.type, (torch.distributed.get_world_size(),)),
        "mp_policy": plugin.mixed_precision_policy or MixedPrecisionPolicy(),
    }
    if plugin.cpu_offload:
        settings["offload_policy"] = plugin.cpu_offload
    wrapped = plugin.transformer_cls_names_to_wrap or LAYERS
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    for layer in [each for each in module.modules() if type(each).__name__ in wrapped]:
        fully_shard(layer, reshard_after_forward=plugin.reshard_after_forward, **settings)
    fully_shard(module, reshard_after_forward=False, **settings)
    split = dict(module.named_parameters())
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["params"] = [split[names[id(parameter)]] for parameter in group["params"]]
    return module


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
