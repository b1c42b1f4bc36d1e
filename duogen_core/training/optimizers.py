"""The optimizers of a training: Muon for matrices inside a network, AdamW for the rest or for all.

Muon is torch's (2.9): momentum whose every matrix is replaced by its nearest orthogonal one before the step (Jordan et
al., 2024), so that no direction of a matrix learns faster than the others. It is for the matrices inside a network;
biases, norms, embeddings and the layers at either end want AdamW.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from duogen_core.training.configuration import ConfigError
from duogen_core.training.lora import trainable


def new_muon(
    matrices: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0, ns_steps: int = 5
) -> torch.optim.Optimizer:
    """ns_steps: of the Newton-Schulz iteration. A step of `lr` changes a weight's RMS as AdamW's would."""
    if not hasattr(torch.optim, "Muon"):
        raise ConfigError(
            f"Muon comes with torch 2.9, and this is {torch.__version__}: update torch, or set optimizer=adamw."
        )
    return torch.optim.Muon(matrices, lr, weight_decay, ns_steps=ns_steps, adjust_lr_fn="match_rms_adamw")


def muon_and_adamw(
    model: nn.Module,
    is_outer: Callable[[str], bool],
    *,
    lr: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.99),
    muon: Callable[..., torch.optim.Optimizer] = new_muon,
) -> dict[str, torch.optim.Optimizer]:
    """Two optimizers over the parameters that want gradients; names for which `is_outer(name)` go to AdamW."""
    inner, outer = [], []
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            (outer if weight.ndim < 2 or min(weight.shape[:2]) < 2 or is_outer(name) else inner).append(weight)
    return {
        "muon": muon(inner, lr=lr, weight_decay=weight_decay),
        "adamw": torch.optim.AdamW(outer, lr=lr, betas=betas, weight_decay=0.0),
    }


def adamw(model: nn.Module, *, weight_decay: float, **settings: Any) -> torch.optim.AdamW:
    """Over what wants gradients. Matrices decay; gains of norms and biases do not: they have no size to keep small."""
    weights = list(trainable(model).values())
    groups = [
        {"params": [weight for weight in weights if weight.ndim >= 2], "weight_decay": weight_decay},
        {"params": [weight for weight in weights if weight.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], **settings)
