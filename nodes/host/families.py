"""What ComfyUI needs to know of each family of diffusion transformer, and the core has no use for.

In: a DiT of the core. Out: its `Family`: its name in sentences, the types it may compute in, what one step takes of the
card, and what LoRA files of its own trainers call its layers. A new family of `duogen_core.dit` needs a line here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


def _cosmos(layer: str) -> str:
    from duogen_core.weights.cosmos_keys import to_official

    return to_official(f"{layer}.weight").removeprefix("net.").removesuffix(".weight")


def _wan(layer: str) -> str:
    from duogen_core.weights.wan_keys import to_official

    return to_official(f"{layer}.weight").removesuffix(".weight")


@dataclass(frozen=True)
class Family:
    """dtypes: what it may compute in, for ComfyUI to choose from. memory: ComfyUI's `memory_usage_factor` of a model
    (comfy/supported_models.py) over its width. official: a layer's name in diffusers -> in the files of who published
    it, without a prefix. prefix: what stands before that in some of them."""

    name: str
    dtypes: tuple[torch.dtype, ...]
    memory: float
    official: Callable[[str], str]
    prefix: str = ""


FAMILIES = {
    # NVIDIA made it for bf16; whether it fits into fp16 was not tried. Wan: as ComfyUI's own.
    "PackedCosmos": Family("Cosmos", (torch.bfloat16, torch.float32), 0.95 / 2048, _cosmos, "net."),
    "PackedWan": Family("Wan", (torch.float16, torch.bfloat16, torch.float32), 1 / 2222, _wan),
}


def class_name(dit: Any) -> str:
    """The family's class in the core, also of a DiT that ComfyUI's calling convention was given to."""
    return next(base.__name__ for base in type(dit).__mro__ if base.__name__ in FAMILIES)


def family_of(dit: Any) -> Family:
    return FAMILIES[class_name(dit)]


def dtypes_of(name: str | None) -> tuple[torch.dtype, ...]:
    """name: a family's class; None: not known, and loading will say so."""
    return FAMILIES[name or "PackedCosmos"].dtypes


def described(dit: Any) -> str:
    """For sentences that name two models: 'Wan of 30 blocks, 1536 wide'."""
    config = dit.config
    width = config.num_attention_heads * config.attention_head_dim
    return f"{family_of(dit).name} of {config.num_layers} blocks, {width} wide"
