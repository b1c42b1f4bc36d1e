"""The vision tower of Qwen2.5-VL in fewer and larger operations, for training on many pictures of one size.

In:  pictures with normalised colours, float [n, H, W, 3]. Out: features [n, tokens, out_hidden], and gradients.
The tower's own forward makes one attention call for each picture and window; here n pictures are one call. The two
equal temporal halves of a patch are added up before the multiplication. Equal to the tower's own forward (tested).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from duogen_core.errors import DuoGenError


def patches_of(pictures: Tensor, config: Any, *, frames: bool = False) -> Tensor:
    """float [n, H, W, 3] -> [n, tokens*merge², 3*patch*patch], the merge² patches of a token side by side.

    frames: as the tower's own forward takes them, [n, tokens*merge², 3*frames*patch*patch]: a still picture is every
    frame of a patch.
    """
    patch, merge = config.patch_size, config.spatial_merge_size
    n, height, width, _ = pictures.shape
    rows, columns = height // patch // merge, width // patch // merge
    x = pictures.permute(0, 3, 1, 2)
    # Not row by row: the merge² patches that become one token stand together, as Qwen2-VL's processor orders them.
    x = x.reshape(n, 3, rows, merge, patch, columns, merge, patch).permute(0, 2, 5, 3, 6, 1, 4, 7)
    x = x.reshape(n, rows * columns * merge * merge, 3, 1, patch * patch)
    return x.expand(-1, -1, -1, config.temporal_patch_size if frames else 1, -1).flatten(2)


@lru_cache(maxsize=32)
def _grid_positions(rows: int, columns: int, merge: int) -> Tensor:
    """[2, patches]: row and column of every patch, in token order."""
    grid = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"))
    return grid.view(2, rows // merge, merge, columns // merge, merge).permute(0, 1, 3, 2, 4).reshape(2, -1)


def sees_whole_pictures(tower: nn.Module) -> bool:
    """Whether no block looks through windows (published Qwen2.5-VL towers have only a few blocks that see all)."""
    return len(tower.config.fullatt_block_indexes) == tower.config.depth


def tower_features(tower: nn.Module, pictures: Tensor) -> Tensor:
    """float [n, H, W, 3] -> [n, tokens, out_hidden]; all blocks must use full attention."""
    config = tower.config
    patch, merge = config.patch_size, config.spatial_merge_size
    if not sees_whole_pictures(tower):
        raise DuoGenError("tower_features needs a vision tower whose blocks all use full attention.")
    n, height, width, _ = pictures.shape
    # [hidden, 3, 2, patch, patch]: for two frames of a video. A still picture is both of them, so their weights add up.
    weight = tower.patch_embed.proj.weight
    x = patches_of(pictures, config) @ weight.sum(2).flatten(1).T
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


def rms_norm(x: Tensor, norm: nn.Module) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), norm.weight.to(x.dtype), norm.variance_epsilon)
