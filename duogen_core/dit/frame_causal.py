"""The frame-causal forward of the Cosmos blocks: same weights, attention that only looks back.

A frame sees itself, the frames before it and the text before its own place. So finished frames are run one after
another, each against the keys and values of those before it; the target comes last. No attention mask is needed, and
what a finished frame has left behind never changes (frame_cache.py). Training runs all frames in one pass with masks.

Tokens are kept as [B, F, S, C]: F frames of S tokens, so that the modulations, one per frame, broadcast over a frame's
tokens; the stock blocks evaluate them once per token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor, nn

from duogen_core.dit.frame_cache import Frame, FrameCache, KeysValues, path

if TYPE_CHECKING:
    from duogen_core.dit.cosmos import PackedCosmos

Rope = tuple[Tensor, Tensor]
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]  # (block index, q, k, v) -> [B, heads, L, head_dim]
AttendText = Callable[[int, Tensor], Tensor]  # (block index, q) -> [B, heads, L, head_dim]


def heads(x: Tensor, attn: Attention) -> Tensor:
    """[B, L, heads * D] -> [B, heads, L, D]"""
    return x.unflatten(2, (attn.heads, -1)).transpose(1, 2)


def text_keys_values(model: PackedCosmos, text: Tensor) -> KeysValues:
    """[B, N, W] -> per block (key, value) [B, heads, N, D]."""
    pairs = []
    for block in model.transformer_blocks:
        attn = block.attn2
        pairs.append((attn.norm_k(heads(attn.to_k(text), attn)), heads(attn.to_v(text), attn)))
    return pairs


def modulation(norm: nn.Module, embedded: Tensor, temb: Tensor) -> tuple[Tensor, ...]:
    """adaLN of one layer, per frame: embedded [B, F, 1, C], temb [B, F, 1, 3C] -> chunks [B, F, 1, C]."""
    out = norm.linear_2(norm.linear_1(norm.activation(embedded)))
    out = out + temb[..., : out.shape[-1]]
    return out.chunk(out.shape[-1] // embedded.shape[-1], dim=-1)


def run_blocks(
    model: PackedCosmos, x: Tensor, timestep: Tensor, rope: Rope, attend: Attend, attend_text: AttendText | None
) -> Tensor:
    """Patch embeddings [B, F, S, C], timesteps [B, F] -> output patches [B, F, S, patch]."""
    temb, embedded = model.time_embed(x, timestep.flatten())
    temb, embedded = (e.view(*timestep.shape, 1, -1) for e in (temb, embedded))
    frames = x.shape[1:3]
    for index, block in enumerate(model.transformer_blocks):
        shift, scale, gate = modulation(block.norm1, embedded, temb)
        h = torch.addcmul(shift, block.norm1.norm(x), 1 + scale).flatten(1, 2)
        attn = block.attn1
        q, k, v = heads(attn.to_q(h), attn), heads(attn.to_k(h), attn), heads(attn.to_v(h), attn)
        q = apply_rotary_emb(attn.norm_q(q), rope, use_real=True, use_real_unbind_dim=-2)
        k = apply_rotary_emb(attn.norm_k(k), rope, use_real=True, use_real_unbind_dim=-2)
        out = attend(index, q, k, v).transpose(1, 2).flatten(2)
        x = torch.addcmul(x, gate, attn.to_out[0](out).unflatten(1, frames))

        if attend_text is not None:  # without any text, cross-attention adds nothing
            shift, scale, gate = modulation(block.norm2, embedded, temb)
            h = torch.addcmul(shift, block.norm2.norm(x), 1 + scale).flatten(1, 2)
            attn = block.attn2
            out = attend_text(index, attn.norm_q(heads(attn.to_q(h), attn))).transpose(1, 2).flatten(2)
            x = torch.addcmul(x, gate, attn.to_out[0](out).unflatten(1, frames))

        shift, scale, gate = modulation(block.norm3, embedded, temb)
        x = torch.addcmul(x, gate, block.ff(torch.addcmul(shift, block.norm3.norm(x), 1 + scale)))
    shift, scale = modulation(model.norm_out, embedded, temb)
    return model.proj_out(torch.addcmul(shift, model.norm_out.norm(x), 1 + scale))


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

    def attend_text(block: int, q: Tensor) -> Tensor:
        k, v = text[block]
        return F.scaled_dot_product_attention(q, k[:, :, :text_end], v[:, :, :text_end])

    x = model.embed(model.patches(latent, clean=clean))[:, None]
    rope = model.rope_of([(index, *model.grid(latent))], latent.device)
    out = run_blocks(model, x, timestep[:, None], rope, attend, attend_text if text_end else None)
    return out, own


def forward_frame_causal(
    model: PackedCosmos, frames: list[Tensor], timestep: Tensor, text: Tensor, ends: tuple[int, ...], cache: FrameCache
) -> Tensor:
    """See `forward_packed` in this folder's __init__: output patches of the target, [B, S, patch]."""
    kv = cache.text(text, lambda t: text_keys_values(model, t))
    clean_time = torch.full_like(timestep, model.config.clean_timestep)
    node: Frame | None = None
    for index, (latent, end) in enumerate(zip(frames[:-1], ends, strict=True)):

        def compute(index=index, latent=latent, end=end, node=node) -> KeysValues:
            return run_frame(model, latent, index, clean_time, clean=True, before=node, text=kv, text_end=end)[1]

        node = cache.frame(node, latent, text, end, compute)
    out, _ = run_frame(
        model, frames[-1], len(frames) - 1, timestep, clean=False, before=node, text=kv, text_end=text.shape[1]
    )
    return out[:, 0]


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Boolean mask (True = seen) -> what SDPA adds; made once, since SDPA would convert it in every block."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))


def sliced_attention(c: int, m: int, size: int) -> Attend:
    """Clean frame i sees clean frames up to i; noisy frame j sees the clean frames before its place, and itself.

    One SDPA per frame over just the keys it sees: on a CPU half the time of one masked SDPA over all.
    """
    first = c + 1 - m

    def attend(block: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        qs, ks, vs = (t.split(size, dim=2) for t in (q, k, v))
        out = []
        for i in range(c):
            seen = slice(0, (i + 1) * size)
            out.append(F.scaled_dot_product_attention(qs[i], k[:, :, seen], v[:, :, seen]))
        for j in range(m):
            seen = slice(0, (first + j) * size)
            keys = torch.cat([k[:, :, seen], ks[c + j]], dim=2)
            values = torch.cat([v[:, :, seen], vs[c + j]], dim=2)
            out.append(F.scaled_dot_product_attention(qs[c + j], keys, values))
        return torch.cat(out, dim=2)

    return attend


def masked_attention(c: int, m: int, size: int, like: Tensor) -> Attend:
    """The same in one SDPA with a mask: on a GPU fewer launches count for more than fewer multiplications."""
    place = torch.tensor([*range(c), *range(c + 1 - m, c + 1)], device=like.device)
    clean = torch.arange(c + m, device=like.device) < c
    own = torch.eye(c + m, dtype=torch.bool, device=like.device)
    sees = own | (clean[None, :] & (place[None, :] < place[:, None]))
    mask = additive(sees, like.dtype).repeat_interleave(size, 0).repeat_interleave(size, 1)

    def attend(block: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    return attend


def forward_teacher(
    model: PackedCosmos, clean: Tensor, noisy: Tensor, timestep: Tensor, text: Tensor, text_mask: Tensor
) -> Tensor:
    """See `PackedCosmos.forward_teacher`: output patches of the noisy frames, [B, m, S, patch]."""
    batch, c, m = noisy.shape[0], clean.shape[1], noisy.shape[1]
    first = c + 1 - m  # place of the first noisy frame
    gh, gw = model.grid(noisy)
    size = gh * gw
    x = torch.cat([
        *([model.patches(clean.flatten(0, 1), clean=True).unflatten(0, (batch, c))] if c else []),
        model.patches(noisy.flatten(0, 1), clean=False).unflatten(0, (batch, m)),
    ], dim=1)  # fmt: skip
    times = torch.cat([timestep.new_full((batch, c), model.config.clean_timestep), timestep], dim=1)
    places = [*range(c), *range(first, c + 1)]
    rope = model.rope_of([(place, gh, gw) for place in places], noisy.device)

    x = model.embed(x)
    any_text = text_mask.any(-1)  # [B, F]; a frame without text gets nothing from cross-attention, not NaN
    cross_mask = additive(text_mask | ~any_text[..., None], x.dtype).repeat_interleave(size, 1)[:, None]
    blind = None if bool(any_text.all()) else any_text.to(x.dtype).repeat_interleave(size, 1)[:, None, :, None]
    kv = text_keys_values(model, text)

    attend = sliced_attention(c, m, size) if x.device.type == "cpu" else masked_attention(c, m, size, x)

    def attend_text(block: int, q: Tensor) -> Tensor:
        out = F.scaled_dot_product_attention(q, *kv[block], attn_mask=cross_mask)
        return out if blind is None else out * blind

    out = run_blocks(model, x, times, rope, attend, attend_text if text.shape[1] else None)
    return out[:, c:]
