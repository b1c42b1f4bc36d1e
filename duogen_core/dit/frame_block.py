"""A Cosmos block over frames: same weights, adaLN once per frame, and whatever attention its caller gives it.

Tokens are [B, F, S, C], F frames of S tokens, so that the modulations, one per frame, broadcast over a frame's tokens;
the stock blocks evaluate them once per token. Frames of unlike sizes are F = all tokens, S = 1, and `token_frame` tells
the frame of each. A block stays one module call, which is what FSDP and gradient checkpointing go by.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_cosmos import CosmosTransformerBlock
from torch import Tensor, nn

if TYPE_CHECKING:
    from duogen_core.dit.cosmos import PackedCosmos

Rope = tuple[Tensor, Tensor]
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]  # (block index, q, k, v) -> [B, heads, L, head_dim]
AttendText = Callable[[int, Attention, Tensor], Tensor]  # (block index, its attn2, q) -> [B, heads, L, head_dim]


@dataclass(frozen=True)
class FrameInputs:
    """What all blocks share. embedded, temb: [B, F, 1, channels]; attend_text None: there is no text."""

    embedded: Tensor
    temb: Tensor
    rope: Rope
    attend: Attend
    attend_text: AttendText | None
    token_frame: Tensor | None = None


def heads(x: Tensor, attn: Attention) -> Tensor:
    """[B, L, heads * D] -> [B, heads, L, D]"""
    return x.unflatten(2, (attn.heads, -1)).transpose(1, 2)


def keys_values(attn: Attention, text: Tensor) -> tuple[Tensor, Tensor]:
    """[B, N, W] -> the text's (key, value) [B, heads, N, D] of one block."""
    return attn.norm_k(heads(attn.to_k(text), attn)), heads(attn.to_v(text), attn)


def modulation(norm: nn.Module, inputs: FrameInputs) -> tuple[Tensor, ...]:
    """adaLN of one layer: chunks [B, F, 1, C], or [B, tokens, 1, C] where frames are of unlike sizes."""
    out = norm.linear_2(norm.linear_1(norm.activation(inputs.embedded)))
    out = out + inputs.temb[..., : out.shape[-1]]
    if inputs.token_frame is not None:
        out = out.index_select(1, inputs.token_frame)
    return out.chunk(out.shape[-1] // inputs.embedded.shape[-1], dim=-1)


class PackedCosmosBlock(CosmosTransformerBlock):
    """The stock block, which FrameInputs in the place of the text run over frames."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args and isinstance(args[0], FrameInputs):
            return self.over_frames(hidden_states, *args)
        return super().forward(hidden_states, *args, **kwargs)

    def over_frames(self, x: Tensor, inputs: FrameInputs, index: int) -> Tensor:
        frames = x.shape[1:3]
        shift, scale, gate = modulation(self.norm1, inputs)
        h = torch.addcmul(shift, self.norm1.norm(x), 1 + scale).flatten(1, 2)
        attn = self.attn1
        q, k, v = heads(attn.to_q(h), attn), heads(attn.to_k(h), attn), heads(attn.to_v(h), attn)
        q = apply_rotary_emb(attn.norm_q(q), inputs.rope, use_real=True, use_real_unbind_dim=-2)
        k = apply_rotary_emb(attn.norm_k(k), inputs.rope, use_real=True, use_real_unbind_dim=-2)
        out = inputs.attend(index, q, k, v).transpose(1, 2).flatten(2)
        x = torch.addcmul(x, gate, attn.to_out[0](out).unflatten(1, frames))

        if inputs.attend_text is not None:  # without any text, cross-attention adds nothing
            shift, scale, gate = modulation(self.norm2, inputs)
            h = torch.addcmul(shift, self.norm2.norm(x), 1 + scale).flatten(1, 2)
            attn = self.attn2
            out = inputs.attend_text(index, attn, attn.norm_q(heads(attn.to_q(h), attn))).transpose(1, 2).flatten(2)
            x = torch.addcmul(x, gate, attn.to_out[0](out).unflatten(1, frames))

        shift, scale, gate = modulation(self.norm3, inputs)
        return torch.addcmul(x, gate, self.ff(torch.addcmul(shift, self.norm3.norm(x), 1 + scale)))


def run_blocks(
    model: PackedCosmos,
    x: Tensor,
    timestep: Tensor,
    rope: Rope,
    attend: Attend,
    attend_text: AttendText | None,
    token_frame: Tensor | None = None,
) -> Tensor:
    """Patch embeddings [B, F, S, C], timesteps [B, frames] -> output patches [B, F, S, patch]."""
    temb, embedded = model.time_embed(x, timestep.flatten())
    temb, embedded = (e.view(*timestep.shape, 1, -1) for e in (temb, embedded))
    inputs = FrameInputs(embedded, temb, rope, attend, attend_text, token_frame)
    for index, block in enumerate(model.transformer_blocks):
        if torch.is_grad_enabled() and model.gradient_checkpointing:
            x = model._gradient_checkpointing_func(block, x, inputs, index)
        else:
            x = block(x, inputs, index)
    shift, scale = modulation(model.norm_out, inputs)
    return model.proj_out(torch.addcmul(shift, model.norm_out.norm(x), 1 + scale))
