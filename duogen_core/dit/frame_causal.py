"""Drawing with frame-causal attention: a picture only looks back, so nothing that was computed is computed again.

A frame sees itself, the frames before it and the text before its own place. So finished frames are run one after
another, each against the keys and values of those before it; the target comes last. No attention mask is needed, and
what a finished frame has left behind never changes (frame_cache.py). Training runs all frames at once (packing.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor

from duogen_core.dit.frame_block import keys_values, run_blocks
from duogen_core.dit.frame_cache import (
    Frame,
    FrameCache,
    KeysValues,
    path,
)

if TYPE_CHECKING:
    from duogen_core.dit.cosmos import PackedCosmos


def run_frame(
    model: PackedCosmos,
    latent: Tensor,
    index: int,
    timestep: Tensor,
    *,
    clean: bool,
    before: Frame | None,
    text: KeysValues,
    text_end: int,
) -> tuple[Tensor, KeysValues]:
    """One frame [B, 16, h, w] in its place -> output patches [B, 1, S, patch] and its own keys and values."""
    past = [frame.kv for frame in path(before)]
    own: KeysValues = []

    def attend(block: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        own.append((k, v))
        if past:
            k = torch.cat([*(kv[block][0] for kv in past), k], dim=2)
            v = torch.cat([*(kv[block][1] for kv in past), v], dim=2)
        return F.scaled_dot_product_attention(q, k, v)

    def attend_text(block: int, _attn: Attention, q: Tensor) -> Tensor:
        k, v = text[block]
        return F.scaled_dot_product_attention(q, k[:, :, :text_end], v[:, :, :text_end])

    x = model.embed(model.patches(latent, clean=clean))[:, None]
    rope = model.rope_of([(index, *model.grid(latent))], latent.device)
    out = run_blocks(model, x, timestep[:, None], rope, attend, attend_text if text_end else None)
    return out, own


def forward_frame_causal(
    model: PackedCosmos,
    frames: list[Tensor],
    timestep: Tensor,
    text: Tensor,
    ends: tuple[int, ...],
    hidden: tuple[int, int],
    cache: FrameCache,
) -> Tensor:
    """See `forward_packed` in this folder's __init__: output patches of the target, [B, S, patch]."""
    kv = cache.text(text, lambda t: [keys_values(block.attn2, t) for block in model.transformer_blocks])
    clean_time = torch.full_like(timestep, model.config.clean_timestep)
    node: Frame | None = None
    for index, (latent, end) in enumerate(zip(frames[:-1], ends, strict=True)):

        def compute(index=index, latent=latent, end=end, node=node) -> KeysValues:
            return run_frame(model, latent, index, clean_time, clean=True, before=node, text=kv, text_end=end)[1]

        node = cache.frame(node, latent, text, end, compute)
    start, end = hidden
    if end > start:  # for the target alone: a finished picture saw this text when it was drawn
        kv = [tuple(torch.cat([t[:, :, :start], t[:, :, end:]], dim=2) for t in pair) for pair in kv]
    seen = text.shape[1] - (end - start)
    out, _ = run_frame(model, frames[-1], len(frames) - 1, timestep, clean=False, before=node, text=kv, text_end=seen)
    return out[:, 0]
