"""QLoRA: the frozen layers beside which LoRA learns are kept in four bits (Dettmers et al., 2023, arXiv 2305.14314).

    quantise(model, within="model.language_model.layers", computes=torch.bfloat16)      in place, before `add_lora`

NF4 by bitsandbytes' Linear4bit, the scale of every 64 weights in 8 bits: 0.516 bytes a weight instead of bf16's 2. A
layer's matrix is made whole while it computes, forwards and backwards; gradients go through it to LoRA's matrices, in
single precision as ever. Embedding, output, norms, biases and vision tower stay as they are.

The adapter is learnt beside the quantised weights and belongs to the model: PEFT loads it on the full-precision one.
The merged export adds it to the weights as their file has them, not to the rounded ones; these stay mapped from the
file (`layer.original`) and take no memory until they are read.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from duogen_core.errors import MissingPackage


def _bitsandbytes() -> Any:
    try:
        import bitsandbytes
    except ImportError:
        raise MissingPackage("QLoRA", "bitsandbytes", "qlora") from None
    return bitsandbytes


@torch.no_grad()
def quantise(model: nn.Module, *, within: str, computes: torch.dtype) -> None:
    """Replaces every Linear below module `within`. computes: the type in which a layer's matrix is made whole."""
    bnb = _bitsandbytes()
    for name, layer in list(model.get_submodule(within).named_modules()):
        if not isinstance(layer, nn.Linear):
            continue
        with torch.device("meta"):
            packed = bnb.nn.Linear4bit(
                layer.in_features, layer.out_features, layer.bias is not None, compute_dtype=computes, quant_type="nf4"
            )
        packed.weight = bnb.nn.Params4bit(
            layer.weight.detach(), requires_grad=False, quant_type="nf4", compress_statistics=True, module=packed
        ).to(layer.weight.device)  # this is what quantises
        if layer.bias is not None:  # else the first forward would cast it, in the middle of FSDP's gathering
            packed.bias = nn.Parameter(layer.bias.detach().to(computes), requires_grad=False)
        packed.original = layer.weight.detach()
        # On CPUs with bf16 instructions a forward in eval mode would repack the weights, which training cannot read.
        packed.support_avx512bf16_for_cpu = False
        packed.train(layer.training)
        owner, _, attribute = f"{within}.{name}".rpartition(".")
        setattr(model.get_submodule(owner), attribute, packed)


def with_originals(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of a model, its quantised weights as their file has them."""
    state = dict(state)
    for name, layer in model.named_modules():
        original = getattr(layer, "original", None)
        if isinstance(original, Tensor) and isinstance(layer, nn.Linear):
            for key in [key for key in state if key.startswith(f"{name}.weight")]:  # .absmax, .quant_map, …
                del state[key]
            state[f"{name}.weight"] = original
    return state
