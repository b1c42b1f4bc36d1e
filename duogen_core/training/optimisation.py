"""What makes training fast: bfloat16 where it pays, and Qwen2.5-VL's vision tower in fewer and larger operations.

Pictures of one size run as one batch instead of one attention call per picture, and the two equal temporal halves of a
patch are added up before the multiplication. Pictures uint8 [n, H, W, 3] -> features [n, H*W/32², out_hidden] in the
language model's token order. Reads the weights from the model it is given; tested equal to the model's own forward.

Muon: momentum whose every matrix is replaced by its nearest orthogonal one before the step (Jordan et al., 2024).

torch.optim.Muon takes two-dimensional weights only and works in bfloat16, which is slow on CPUs without it. This one
also takes convolution kernels, as [out, in * taps], leaves the taps alone that never had a gradient (the temporal
slices of a video VAE that trains on pictures), and stays in the weights' own dtype. Biases, norms, embeddings and the
layers at either end want AdamW: `muon_and_adamw` sorts a model's parameters into the two.

Exponential moving average of a module's weights, which draws better than the last weights do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

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


# ------------------------------------------------------------ muon

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # quintic Newton-Schulz, Jordan's values


def orthogonalised(matrix: Tensor, steps: int = 5) -> Tensor:
    """[m, n] -> about the orthogonal factor of its polar decomposition (singular values near 1)."""
    a, b, c = COEFFICIENTS
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised per matrix; a step of `lr` changes a weight's RMS like AdamW's would."""

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float = 2e-3, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                # [out, in, 1 or 3, k, k]: pictures only ever meet the last temporal slice
                picture = (lambda t: t[:, :, -1]) if weight.ndim == 5 else (lambda t: t)
                grad = picture(weight.grad)
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(grad, memory_format=torch.contiguous_format)
                state["momentum"].lerp_(grad, 1 - group["momentum"])
                update = grad.lerp(state["momentum"], group["momentum"])
                flat = orthogonalised(update.flatten(1))
                # RMS of an orthogonal [m, n] is 1/sqrt(max(m, n)); 0.2 is AdamW's usual update RMS (Liu et al., 2025)
                scale = 0.2 * max(flat.shape) ** 0.5
                picture(weight).mul_(1 - group["lr"] * group["weight_decay"])
                picture(weight).add_(flat.view_as(update), alpha=-group["lr"] * scale)
        return loss


def muon_and_adamw(
    model: nn.Module, is_end: Callable[[str], bool], *, lr: float, weight_decay: float = 0.0
) -> dict[str, torch.optim.Optimizer]:
    """Two optimizers over the parameters that want gradients; names for which `is_end(name)` go to AdamW."""
    inner, outer = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (outer if parameter.ndim < 2 or min(parameter.shape[:2]) < 2 or is_end(name) else inner).append(parameter)
    return {
        "muon": Muon(inner, lr=lr, weight_decay=weight_decay),
        "adamw": torch.optim.AdamW(outer, lr=lr, betas=(0.9, 0.99), weight_decay=0.0),
    }


# ------------------------------------------------------------ ema


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
