"""A Cosmos transformer over frames: pieces of its forward, and the one path through its blocks.

Both kinds of attention and training run through `CosmosFrames.run_blocks`; what differs is the attention that the
caller gives it. Tokens are [B, F, S, C], F frames of S tokens, so that the modulations (adaLN), one per frame,
broadcast over a frame's tokens; diffusers' stock blocks evaluate them once per token. Frames of unlike sizes are F =
all tokens, S = 1, and `token_frame` tells the frame of each. A block stays one module call, which is what FSDP and
gradient checkpointing go by. Same weights as diffusers; its own forward is the reference in
tests/core/dit/test_full.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import CosmosTransformer3DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_cosmos import CosmosTransformerBlock
from torch import Tensor, nn

from duogen_core.dit import DitError

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


def stacked(tokens: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """Tokens of frames behind one another, [B, tokens of all, C] -> (x [B, F, S, C], token_frame) for `run_blocks`."""
    if len(set(sizes)) == 1:
        return tokens.unflatten(1, (len(sizes), sizes[0])), None
    token_frame = torch.repeat_interleave(torch.tensor(sizes))
    return tokens[:, :, None], token_frame.to(tokens.device)


class CosmosFrames(CosmosTransformer3DModel):
    """diffusers' Cosmos transformer, which patchifies every frame at its own size."""

    def grid(self, latent: Tensor) -> tuple[int, int]:
        """Tokens down and across, of a latent [..., h, w]."""
        (height, width), (_, ph, pw) = latent.shape[-2:], self.config.patch_size
        if height % ph or width % pw:
            raise DitError(f"A latent is {width}x{height}; its sides must be multiples of the patch, {pw}x{ph}.")
        return height // ph, width // pw

    def patches(self, latent: Tensor, *, clean: bool) -> Tensor:
        """[B, 16, h, w] -> [B, tokens, channels of a patch], mask channels added, in diffusers' order."""
        (gh, gw), (_, ph, pw) = self.grid(latent), self.config.patch_size
        batch, channels, height, width = latent.shape
        if channels != self.config.out_channels:
            raise DitError(f"A latent has {channels} channels; this DiT takes {self.config.out_channels}.")
        # Channel 17 is Cosmos' condition mask: 1 where a frame is given, 0 where it is to be drawn.
        extra = [latent.new_full((batch, 1, height, width), 1.0 if clean else 0.0)]
        if self.config.concat_padding_mask:
            extra.append(latent.new_zeros(batch, 1, height, width))
        x = torch.cat([latent, *extra], dim=1).unflatten(3, (gw, pw)).unflatten(2, (gh, ph))
        return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def embed(self, patches: Tensor) -> Tensor:
        return self.patch_embed.proj(patches)

    def unpatch(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """[B, tokens, patch] -> [B, 16, h, w]. Diffusers reads a patch as (channel, h, w), writes (h, w, channel)."""
        _, ph, pw = self.config.patch_size
        x = x.unflatten(2, (ph, pw, -1)).unflatten(1, grid)
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)

    def rope_of(self, places: Sequence[tuple[int, int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
        """(picture index, tokens down, tokens across) of each frame -> cos and sin, [tokens of all, head_dim]."""
        # diffusers' CosmosRotaryPosEmbed counts through one grid; here each frame has its picture index as time, and
        # its rows and columns begin at 0. The factors (NTK) stretch the frequencies as in training.
        rope = self.rope
        angles = []
        for time, height, width in places:
            rows = []
            for dim, factor, count in (
                (rope.dim_t, rope.t_ntk_factor, time + 1),
                (rope.dim_h, rope.h_ntk_factor, height),
                (rope.dim_w, rope.w_ntk_factor, width),
            ):
                steps = torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim
                seq = torch.arange(count, device=device, dtype=torch.float32)
                rows.append(torch.outer(seq, 1.0 / ((10000.0 * factor) ** steps)))
            t = rows[0][-1].expand(height, width, -1)
            h = rows[1][:, None].expand(-1, width, -1)
            w = rows[2][None].expand(height, -1, -1)
            angles.append(torch.cat([t, h, w] * 2, dim=-1).flatten(0, 1))
        angle = torch.cat(angles)
        return torch.cos(angle), torch.sin(angle)

    def project_text(self, text: Tensor) -> Tensor:
        """Checkpoints that carry the connector inside (Predict2.5) also take the raw states."""
        if self.config.use_crossattn_projection and text.shape[-1] == self.config.crossattn_proj_in_channels:
            text = self.crossattn_proj(text)
        if text.shape[-1] != self.config.text_embed_dim:
            raise DitError(f"The text condition is {text.shape[-1]} wide; this DiT takes {self.config.text_embed_dim}.")
        return text

    def run_blocks(
        self,
        x: Tensor,
        timestep: Tensor,
        rope: Rope,
        attend: Attend,
        attend_text: AttendText | None,
        token_frame: Tensor | None = None,
    ) -> Tensor:
        """Patch embeddings [B, F, S, C], timesteps [B, frames] -> output patches [B, F, S, patch]."""
        temb, embedded = self.time_embed(x, timestep.flatten())
        temb, embedded = (e.view(*timestep.shape, 1, -1) for e in (temb, embedded))
        inputs = FrameInputs(embedded, temb, rope, attend, attend_text, token_frame)
        for index, block in enumerate(self.transformer_blocks):
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x = self._gradient_checkpointing_func(block, x, inputs, index)
            else:
                x = block(x, inputs, index)
        shift, scale = modulation(self.norm_out, inputs)
        return self.proj_out(torch.addcmul(shift, self.norm_out.norm(x), 1 + scale))
