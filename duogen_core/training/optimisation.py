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
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from duogen_core.errors import DuoGenError

# transformers' OpenAI CLIP constants, which Qwen2-VL's picture preprocessing uses
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
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


def rms_norm(x: Tensor, norm: nn.Module) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), norm.weight.to(x.dtype), norm.variance_epsilon)


def patches_of(pictures: Tensor, patch: int, merge: int = 2) -> Tensor:
    """uint8 [n, H, W, 3] -> float [n, tokens*merge², 3*patch*patch], the merge² patches of a token side by side."""
    n, height, width, _ = pictures.shape
    x = pictures.permute(0, 3, 1, 2).float() / 255
    x = (x - x.new_tensor(CLIP_MEAN).view(3, 1, 1)) / x.new_tensor(CLIP_STD).view(3, 1, 1)
    rows, columns = height // patch // merge, width // patch // merge
    x = x.view(n, 3, rows, merge, patch, columns, merge, patch).permute(0, 2, 5, 3, 6, 1, 4, 7)
    return x.reshape(n, rows * columns * merge * merge, 3 * patch * patch)


@lru_cache(maxsize=32)
def _grid_positions(rows: int, columns: int, merge: int) -> Tensor:
    """[2, patches]: row and column of every patch, in token order."""
    grid = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"))
    return grid.view(2, rows // merge, merge, columns // merge, merge).permute(0, 1, 3, 2, 4).reshape(2, -1)


def sees_whole_pictures(tower: nn.Module) -> bool:
    """Whether no block looks through windows (published Qwen2.5-VL towers have only a few blocks that see all)."""
    return len(tower.config.fullatt_block_indexes) == tower.config.depth


def tower_of(tower: nn.Module) -> Callable[[nn.Module, Tensor], Tensor]:
    """How pictures uint8 [n, H, W, 3] run through this tower: the quick way where it can go it."""
    single = tower.patch_embed.proj.weight.dtype == torch.float32
    return tower_features if single and sees_whole_pictures(tower) else own_features


def own_features(tower: nn.Module, pictures: Tensor) -> Tensor:
    """uint8 [n, H, W, 3] -> [n, tokens, out_hidden] by the model's own forward, whatever its blocks see."""
    config = tower.config
    n, height, width, _ = pictures.shape
    patch, frames = config.patch_size, config.temporal_patch_size
    patches = patches_of(pictures, patch, config.spatial_merge_size).reshape(-1, 3, 1, patch * patch)
    grid = torch.tensor([[1, height // patch, width // patch]] * n, device=pictures.device)
    out = tower(patches.expand(-1, -1, frames, -1).flatten(1).to(tower.dtype), grid_thw=grid)
    return getattr(out, "pooler_output", out).reshape(n, -1, config.out_hidden_size)


def tower_features(tower: nn.Module, pictures: Tensor) -> Tensor:
    """uint8 [n, H, W, 3] -> [n, tokens, out_hidden]; all blocks must use full attention."""
    config = tower.config
    patch, merge = config.patch_size, config.spatial_merge_size
    if not sees_whole_pictures(tower):
        raise DuoGenError("tower_features needs a vision tower whose blocks all use full attention.")
    n, height, width, _ = pictures.shape
    weight = tower.patch_embed.proj.weight  # [hidden, 3, 2, patch, patch]
    x = patches_of(pictures, patch, merge) @ weight.sum(2).flatten(1).T
    positions = _grid_positions(height // patch, width // patch, merge).to(x.device)
    freqs = positions[..., None].float() * tower.rotary_pos_emb.inv_freq
    freqs = torch.cat([freqs[0], freqs[1]], dim=-1)
    cos, sin = freqs.cos().repeat(1, 2), freqs.sin().repeat(1, 2)  # [patches, head_dim]
    for block in tower.blocks:
        heads = block.attn.num_heads
        qkv = block.attn.qkv(rms_norm(x, block.norm1)).view(n, -1, 3, heads, config.hidden_size // heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v)
        x = x + block.attn.proj(out.transpose(1, 2).reshape(n, -1, config.hidden_size))
        x = x + block.mlp(rms_norm(x, block.norm2))
    x = rms_norm(x, tower.merger.ln_q).reshape(n, -1, tower.merger.hidden_size)
    return tower.merger.mlp(x)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


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
