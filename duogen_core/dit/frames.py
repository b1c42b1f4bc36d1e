"""A Cosmos transformer over frames: pieces of its forward, and the one path through its blocks.

Both kinds of attention, drawing (prepared.py) and training (packing.py) run through the two halves of
`PackedCosmosBlock`; what differs is the attention that the caller gives them. Tokens are [B, F, S, C], and the
modulations (adaLN) [B, F, 1, C], one per timestep and not one per token as in diffusers' stock blocks:

    frames of one size     F frames of S tokens: the modulations broadcast over a frame's tokens
    frames of any size     F = all tokens, S = 1; `token_frame` tells the frame of each, and modulations are gathered
    drawing                F = 1, S = all tokens; `spans` tells how many tokens in a row have the same modulation, first
                           the finished frames, then the target. No gradients: results are written in place

A block stays one module call in training, which is what FSDP and gradient checkpointing go by. Same weights as
diffusers; its own forward is the reference in tests/core/dit/test_full.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import CosmosTransformer3DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_cosmos import CosmosTransformerBlock
from torch import Tensor, nn

from duogen_core.dit import DitError

Rope = tuple[Tensor, Tensor]
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]  # (block index, q, k, v) -> [B, heads, L, head_dim]
AttendText = Callable[[int, Attention, Tensor], Tensor]  # (block index, its attn2, q) -> [B, heads, L, head_dim]
After = Callable[[int, Tensor], Tensor]  # (block index, its tokens [B, F, S, C]) -> tokens with a ControlNet's residual
Positions = tuple[tuple[float, float], ...]  # (scale, shift) of time, rows and columns before they turn
AS_TRAINED: Positions = ((1.0, 0.0),) * 3


@dataclass(frozen=True)
class FrameInputs:
    """What all blocks share. embedded, temb: [B, F, 1, channels]; attend_text None: there is no text. after: what a
    ControlNet adds behind a block (controlnet.py)."""

    embedded: Tensor
    temb: Tensor
    rope: Rope
    attend: Attend
    attend_text: AttendText | None
    token_frame: Tensor | None = None
    spans: tuple[int, ...] | None = None
    after: After | None = None
    mlp: Callable[[Tensor], Tensor] | None = None  # what patched.py does to what the MLP reads

    def of_target(self) -> FrameInputs:
        """The same for the target's tokens alone, which are the last ones."""
        return replace(self, embedded=self.embedded[:, -1:], temb=self.temb[:, -1:], spans=None)


def heads(x: Tensor, attn: Attention) -> Tensor:
    """[B, L, heads * D] -> [B, heads, L, D]"""
    return x.unflatten(2, (attn.heads, -1)).transpose(1, 2)


def keys_values(attn: Attention, text: Tensor) -> tuple[Tensor, Tensor]:
    """[B, N, W] -> the text's (key, value) [B, heads, N, D] of one block."""
    return attn.norm_k(heads(attn.to_k(text), attn)), heads(attn.to_v(text), attn)


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Rotary positions of [B, heads, L, D], in float32; number for number diffusers' apply_rotary_emb."""
    cos, sin = rope
    wide, half = x.float(), x.shape[-1] // 2
    out = wide * cos
    # Into the halves of the product: diffusers builds the rotated tensor first, four more passes over memory.
    out[..., :half].addcmul_(wide[..., half:], sin[..., :half], value=-1)
    out[..., half:].addcmul_(wide[..., :half], sin[..., half:])
    return out.to(x.dtype)


def modulation(norm: nn.Module, inputs: FrameInputs) -> tuple[Tensor, ...]:
    """adaLN of one layer: chunks [B, F, 1, C], or [B, tokens, 1, C] where they are gathered for each token."""
    out = norm.linear_2(norm.linear_1(norm.activation(inputs.embedded)))
    out = out + inputs.temb[..., : out.shape[-1]]
    if inputs.token_frame is not None:
        out = out.index_select(1, inputs.token_frame)
    return out.chunk(out.shape[-1] // inputs.embedded.shape[-1], dim=-1)


def modulate(normed: Tensor, shift: Tensor, scale: Tensor, spans: tuple[int, ...] | None) -> Tensor:
    """normed * (1 + scale) + shift; with spans in the memory of `normed`."""
    if spans is None:
        return torch.addcmul(shift, normed, 1 + scale)
    if torch.compiler.is_compiling():  # which fuses this, and cannot write into parts of a tensor
        parts = enumerate(normed.split(spans, dim=2))
        return torch.cat([torch.addcmul(shift[:, i : i + 1], p, 1 + scale[:, i : i + 1]) for i, p in parts], dim=2)
    for i, part in enumerate(normed.split(spans, dim=2)):
        torch.addcmul(shift[:, i : i + 1], part, 1 + scale[:, i : i + 1], out=part)
    return normed


def add_gated(x: Tensor, gate: Tensor, y: Tensor, spans: tuple[int, ...] | None) -> Tensor:
    """x + gate * y; with spans in the memory of `y`."""
    if spans is None:
        return torch.addcmul(x, gate, y)
    if torch.compiler.is_compiling():
        parts = enumerate(zip(x.split(spans, dim=2), y.split(spans, dim=2), strict=True))
        return torch.cat([torch.addcmul(part, gate[:, i : i + 1], own) for i, (part, own) in parts], dim=2)
    for i, (part, own) in enumerate(zip(x.split(spans, dim=2), y.split(spans, dim=2), strict=True)):
        torch.addcmul(part, gate[:, i : i + 1], own, out=own)
    return y


class PackedCosmosBlock(CosmosTransformerBlock):
    """The stock block, which FrameInputs in the place of the text run over frames."""

    compilable = ("queries", "add_attended", "text_queries", "add_mlp")  # what compiling.py may compile

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args and isinstance(args[0], FrameInputs):
            return self.text_and_mlp(self.frame_attention(hidden_states, *args), *args)
        return super().forward(hidden_states, *args, **kwargs)

    def frame_attention(self, x: Tensor, inputs: FrameInputs, index: int, target: int | None = None) -> Tensor:
        """The first half: frames look at frames. target: only the last so many tokens go on from here."""
        q, k, v, x, gate = self.queries(x, inputs, target)
        spans = inputs.spans if q.shape[2] == k.shape[2] else None
        return self.add_attended(x, gate, inputs.attend(index, q, k, v), spans)

    def text_and_mlp(self, x: Tensor, inputs: FrameInputs, index: int) -> Tensor:
        """The second half: each token looks at the text and goes through the MLP."""
        if inputs.attend_text is None:  # without any text, cross-attention adds nothing
            return self.add_mlp(x, None, None, inputs)
        q, gate = self.text_queries(x, inputs)
        return self.add_mlp(x, gate, inputs.attend_text(index, self.attn2, q), inputs)

    # What stands between two attentions: functions of tensors alone.

    def queries(self, x: Tensor, inputs: FrameInputs, target: int | None) -> tuple[Tensor, ...]:
        """(q, k, v, x, gate) for attention between frames; q, x and gate of the target alone, where it is given."""
        shift, scale, gate = modulation(self.norm1, inputs)
        h = modulate(self.norm1.norm(x), shift, scale, inputs.spans).flatten(1, 2)
        attn, rope = self.attn1, inputs.rope
        k, v = rotate(attn.norm_k(heads(attn.to_k(h), attn)), rope), heads(attn.to_v(h), attn)
        if target is not None and target < h.shape[1]:
            h, x, gate = h[:, -target:], x[:, :, -target:], gate[:, -1:]
            rope = tuple(table[-target:] for table in rope)
        return rotate(attn.norm_q(heads(attn.to_q(h), attn)), rope), k, v, x, gate

    def add_attended(self, x: Tensor, gate: Tensor, out: Tensor, spans: tuple[int, ...] | None) -> Tensor:
        out = self.attn1.to_out[0](out.transpose(1, 2).flatten(2))
        return add_gated(x, gate, out.unflatten(1, x.shape[1:3]), spans)

    def text_queries(self, x: Tensor, inputs: FrameInputs) -> tuple[Tensor, Tensor]:
        shift, scale, gate = modulation(self.norm2, inputs)
        h = modulate(self.norm2.norm(x), shift, scale, inputs.spans).flatten(1, 2)
        return self.attn2.norm_q(heads(self.attn2.to_q(h), self.attn2)), gate

    def add_mlp(self, x: Tensor, gate: Tensor | None, out: Tensor | None, inputs: FrameInputs) -> Tensor:
        """Adds what came of the text (gate, out), if there is any, and then what the MLP makes of the sum."""
        spans = inputs.spans
        if out is not None:
            out = self.attn2.to_out[0](out.transpose(1, 2).flatten(2))
            x = add_gated(x, gate, out.unflatten(1, x.shape[1:3]), spans)
        shift, scale, gate = modulation(self.norm3, inputs)
        h = modulate(self.norm3.norm(x), shift, scale, spans)
        return add_gated(x, gate, self.ff(h if inputs.mlp is None else inputs.mlp(h)), spans)

    def frame_keys_values(self, x: Tensor, inputs: FrameInputs) -> tuple[Tensor, Tensor]:
        """The (key, value) of each token for the first half, [B, heads, L, D], and nothing else."""
        shift, scale, _ = modulation(self.norm1, inputs)
        h, attn = modulate(self.norm1.norm(x), shift, scale, inputs.spans).flatten(1, 2), self.attn1
        return rotate(attn.norm_k(heads(attn.to_k(h), attn)), inputs.rope), heads(attn.to_v(h), attn)


def stacked(tokens: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """Tokens of frames behind one another, [B, tokens of all, C] -> (x [B, F, S, C], token_frame) for `run_blocks`."""
    if len(set(sizes)) == 1:
        return tokens.unflatten(1, (len(sizes), sizes[0])), None
    token_frame = torch.repeat_interleave(torch.tensor(sizes))
    return tokens[:, :, None], token_frame.to(tokens.device)


class CosmosFrames(CosmosTransformer3DModel):
    """diffusers' Cosmos transformer, which patchifies every frame at its own size."""

    def grid(self, size: Sequence[int]) -> tuple[int, int]:
        """Tokens down and across, of a latent's shape [..., h, w]."""
        (height, width), (_, ph, pw) = size[-2:], self.config.patch_size
        if height % ph or width % pw:
            raise DitError(f"A latent is {width}x{height}; its sides must be multiples of the patch, {pw}x{ph}.")
        return height // ph, width // pw

    def patches(self, latent: Tensor, *, clean: bool) -> Tensor:
        """[B, 16, h, w] -> [B, tokens, channels of a patch], mask channels added, in diffusers' order."""
        (gh, gw), (_, ph, pw) = self.grid(latent.shape), self.config.patch_size
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

    def rope_of(
        self, places: Sequence[tuple[int, int, int]], device: torch.device, positions: Positions = AS_TRAINED
    ) -> tuple[Tensor, Tensor]:
        """(picture index, tokens down, tokens across) of each frame -> cos and sin, [tokens of all, head_dim]."""
        # diffusers' CosmosRotaryPosEmbed counts through one grid; here each frame has its picture index as time, and
        # its rows and columns begin at 0. The factors (NTK) stretch the frequencies as in training.
        rope = self.rope
        angles = []
        for time, height, width in places:
            rows = []
            axes = (
                (rope.dim_t, rope.t_ntk_factor, time + 1),
                (rope.dim_h, rope.h_ntk_factor, height),
                (rope.dim_w, rope.w_ntk_factor, width),
            )
            for (dim, factor, count), (scale, shift) in zip(axes, positions, strict=True):
                steps = torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim
                seq = torch.arange(count, device=device, dtype=torch.float32) * scale + shift
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

    def timed(self, timestep: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Timesteps [B, F] -> (embedded, temb), each [B, F, 1, channels]."""
        temb, embedded = self.time_embed(like, timestep.flatten())
        return embedded.view(*timestep.shape, 1, -1), temb.view(*timestep.shape, 1, -1)

    def run_blocks(self, x: Tensor, inputs: FrameInputs) -> Tensor:
        """Patch embeddings [B, F, S, C] -> output patches [B, F, S, patch]; training's way through all blocks."""
        for index, block in enumerate(self.transformer_blocks):
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x = self._gradient_checkpointing_func(block, x, inputs, index)
            else:
                x = block(x, inputs, index)
            if inputs.after is not None:
                x = inputs.after(index, x)
        return self.head(x, inputs)

    def head(self, x: Tensor, inputs: FrameInputs) -> Tensor:
        """The last norm and projection: [B, F, S, C] -> [B, F, S, patch]"""
        shift, scale = modulation(self.norm_out, inputs)
        return self.proj_out(modulate(self.norm_out.norm(x), shift, scale, inputs.spans))
