"""Frame-causal attention by diffusers' own blocks: all frames in one sequence, dense masks, a timestep per token."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from diffusers.models.embeddings import apply_rotary_emb

from duogen_core.dit.wan import PackedWan

# What a stock Wan is made with, of our configuration.
STOCK_WAN = (
    "num_attention_heads", "attention_head_dim", "num_layers", "ffn_dim", "text_dim", "freq_dim", "in_channels",
    "out_channels", "cross_attn_norm",
)  # fmt: skip


def reference(model, frames, timestep, text, ends) -> torch.Tensor:
    """The target's velocity; arguments as of forward_packed."""
    grids = [model.grid(frame.shape) for frame in frames]
    frame_of = torch.cat([torch.full((h * w,), i) for i, (h, w) in enumerate(grids)])
    text_end = torch.tensor([*ends, text.shape[1]])[frame_of]
    text_mask = torch.arange(text.shape[1])[None] < text_end[:, None]
    times = torch.where(frame_of[None] < len(frames) - 1, model.config.clean_timestep, timestep[:, None])
    of_family = wan if isinstance(model, PackedWan) else cosmos
    out = of_family(model, frames, grids, times, text, frame_of[:, None] >= frame_of[None, :], text_mask)
    return model.unpatch(out[:, -grids[-1][0] * grids[-1][1] :], grids[-1])


# ---------------------------------------------------------------- Cosmos


class MaskedCosmos:
    """diffusers' attention processor with a self-attention mask."""

    def __init__(self, mask):
        self.mask = mask

    def __call__(self, attn, x, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None):
        q, k, v = (p(x).unflatten(2, (attn.heads, -1)).transpose(1, 2) for p in (attn.to_q, attn.to_k, attn.to_v))
        q, k = (
            apply_rotary_emb(norm(t), image_rotary_emb, use_real=True, use_real_unbind_dim=-2)
            for norm, t in ((attn.norm_q, q), (attn.norm_k, k))
        )
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


def cosmos(model, frames, grids, times, text, mask, text_mask) -> torch.Tensor:
    last = len(frames) - 1
    x = model.embed(torch.cat([model.patches(f, clean=i < last) for i, f in enumerate(frames)], dim=1))
    rope = model.rope_of([(i, *grid) for i, grid in enumerate(grids)], x.device)
    temb, embedded = (e.view(*times.shape, -1) for e in model.time_embed(x, times.flatten()))
    stock = [block.attn1.processor for block in model.transformer_blocks]
    try:
        for block in model.transformer_blocks:
            block.attn1.processor = MaskedCosmos(mask)
            x = block(x, text, embedded, temb, rope, None, text_mask[None, None])
    finally:
        for block, processor in zip(model.transformer_blocks, stock, strict=True):
            block.attn1.processor = processor
    return model.proj_out(model.norm_out(x, embedded, temb))


# ---------------------------------------------------------------- Wan


def stock_wan(model: PackedWan) -> WanTransformer3DModel:
    """diffusers' own model with the same weights."""
    own = WanTransformer3DModel(**{name: model.config[name] for name in STOCK_WAN}).eval()
    own.load_state_dict(model.state_dict())
    return own


def masked_wan(attn, x, context, mask, rotary) -> torch.Tensor:
    """The attention of one layer, rotary positions as complex numbers."""
    q, k, v = attn.norm_q(attn.to_q(x)), *(f(x if context is None else context) for f in (attn.to_k, attn.to_v))
    q, k, v = (each.unflatten(2, (attn.heads, -1)) for each in (q, attn.norm_k(k), v))
    if rotary is not None:
        turn = torch.complex(*rotary)[None, :, None]
        q, k = (torch.view_as_real(torch.view_as_complex(e.unflatten(-1, (-1, 2))) * turn).flatten(-2) for e in (q, k))
    out = F.scaled_dot_product_attention(*(each.transpose(1, 2) for each in (q, k, v)), attn_mask=mask)
    return attn.to_out[0](out.transpose(1, 2).flatten(2))


def wan(model, frames, grids, times, text, mask, text_mask) -> torch.Tensor:
    own = stock_wan(model)
    x = torch.cat([own.patch_embedding(frame[:, :, None]).flatten(2).transpose(1, 2) for frame in frames], dim=1)
    temb, modulations, context, _ = own.condition_embedder(
        times.flatten() * 1000, text, None, timestep_seq_len=times.shape[1]
    )
    # The tables of one long video of 8 by 8 tokens, in which each frame takes its place by index and grid.
    cos, sin = own.rope(torch.zeros(1, 16, len(frames), 16, 16))
    at = [(i * 64 + torch.arange(h)[:, None] * 8 + torch.arange(w)).flatten() for i, (h, w) in enumerate(grids)]
    rotary = (cos[0, torch.cat(at), 0, 0::2], sin[0, torch.cat(at), 0, 1::2])
    for block in own.blocks:
        block.attn1.forward = lambda x, *_, attn=block.attn1: masked_wan(attn, x, None, mask, rotary)
        block.attn2.forward = lambda x, text, *_, attn=block.attn2: masked_wan(attn, x, text, text_mask, None)
        x = block(x, context, modulations.unflatten(2, (6, -1)), None)
    shift, scale = (own.scale_shift_table[None] + temb[:, :, None]).unbind(2)
    return own.proj_out(own.norm_out(x) * (1 + scale) + shift)
