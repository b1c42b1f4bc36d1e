"""How weights change: mixed precision, the optimizers, and the average of the weights.

Muon is torch's (2.9): momentum whose every matrix is replaced by its nearest orthogonal one before the step (Jordan et
al., 2024), so that no direction of a matrix learns faster than the others. It is for the matrices inside a network;
biases, norms, embeddings and the layers at either end want AdamW. The average is our own, since torch's AveragedModel
copies the module: this one keeps the state alone, also where it is sharded, or only LoRA's, and is short at the start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from duogen_core.training.configuration import ConfigError

DEFAULT_BACKENDS = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)


@contextmanager
def quick_bf16(device: torch.device, enabled: bool = True) -> Iterator[None]:
    """Autocast to bfloat16. On CPUs with AVX512-BF16 matrix products are 6.5 times as fast as in float32 (measured,
    Zen 5), and the fused attention is slow backwards: plain products take a stage-2 step from 0.84 s to 0.65 s."""
    with torch.autocast(device.type, torch.bfloat16, enabled=enabled), quick_attention(device):
        yield


def quick_attention(device: torch.device) -> AbstractContextManager[None]:
    return sdpa_kernel([SDPBackend.MATH] if device.type == "cpu" else list(DEFAULT_BACKENDS))


def recomputing(device: torch.device) -> Callable[[], tuple[AbstractContextManager, AbstractContextManager]]:
    """`context_fn` of torch.utils.checkpoint, for what is computed inside `quick_bf16`: on the way back, outside of it,
    attention must be computed as it was."""
    return lambda: (nullcontext(), quick_attention(device))


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
    muon: Callable[..., torch.optim.Optimizer] = new_muon,
) -> dict[str, torch.optim.Optimizer]:
    """Two optimizers over the parameters that want gradients; names for which `is_outer(name)` go to AdamW."""
    inner, outer = [], []
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            (outer if weight.ndim < 2 or min(weight.shape[:2]) < 2 or is_outer(name) else inner).append(weight)
    return {
        "muon": muon(inner, lr=lr, weight_decay=weight_decay),
        "adamw": torch.optim.AdamW(outer, lr=lr, betas=(0.9, 0.99), weight_decay=0.0),
    }


class Ema:
    """Average of a module's floating-point state; short averages at the start of a run."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay, self.updates = module, decay, 0
        self.shadow = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for key, value in self.module.state_dict().items():
            if value.is_floating_point():
                self.shadow[key].lerp_(value.detach(), 1 - decay)
            else:
                self.shadow[key].copy_(value)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The module holds the averaged weights inside the block."""
        kept = {k: v.detach().clone() for k, v in self.module.state_dict().items()}
        self.module.load_state_dict(self.shadow)
        try:
            yield
        finally:
            self.module.load_state_dict(kept)
