"""A transformer over frames, whatever its family: pieces of its forward, and the one path through its blocks.

Both kinds of attention, drawing (prepared.py) and training (packing.py) run through the two halves of `PackedBlock`;
what differs is the attention that the caller gives them. Tokens are [B, F, S, C], and the modulations (adaLN)
[B, F, 1, C], one per timestep and not one per token as in diffusers' stock blocks:

    frames of one size     F frames of S tokens: the modulations broadcast over a frame's tokens
    frames of any size     F = all tokens, S = 1; `token_frame` tells the frame of each, and modulations are gathered
    drawing                F = 1, S = all tokens; `spans` tells how many tokens in a row have the same modulation, first
                           the finished frames, then the target. No gradients: results are written in place

A block stays one module call in training, which is what FSDP and gradient checkpointing go by. What a family does in
its own way (norms, modulations, positions, embeddings) are the methods that `PackedBlock` and `PackedFrames` name at
their tops; cosmos.py and wan.py have them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from duogen_core.dit import DitError

Rope = tuple[Tensor, Tensor]
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]  # (block index, q, k, v) -> [B, heads, L, head_dim]
AttendText = Callable[[int, "PackedBlock", Tensor], Tensor]  # (block index, the block, q) -> [B, heads, L, head_dim]
After = Callable[[int, Tensor], Tensor]  # (block index, its tokens [B, F, S, C]) -> tokens with a ControlNet's residual
Positions = tuple[tuple[float, float], ...]  # (scale, shift) of time, rows and columns before they turn
AS_TRAINED: Positions = ((1.0, 0.0),) * 3
FRAMES, TEXT, MLP = 0, 1, 2  # the parts of a block


@dataclass(frozen=True)
class FrameInputs:
    """What all blocks share. embedded, temb: [B, F, 1, channels], what the family's `timed` makes of the timesteps;
    attend_text None: there is no text. after: what a ControlNet adds behind a block (controlnet.py)."""

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


def heads(x: Tensor, attn: nn.Module) -> Tensor:
    """[B, L, heads * D] -> [B, heads, L, D]"""
    return x.unflatten(2, (attn.heads, -1)).transpose(1, 2)


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


def add_gated(x: Tensor, gate: Tensor | None, y: Tensor, spans: tuple[int, ...] | None) -> Tensor:
    """x + gate * y; with spans in the memory of `y`. gate None: this part has none."""
    if gate is None:
        return x + y
    if spans is None:
        return torch.addcmul(x, gate, y)
    if torch.compiler.is_compiling():
        parts = enumerate(zip(x.split(spans, dim=2), y.split(spans, dim=2), strict=True))
        return torch.cat([torch.addcmul(part, gate[:, i : i + 1], own) for i, (part, own) in parts], dim=2)
    for i, (part, own) in enumerate(zip(x.split(spans, dim=2), y.split(spans, dim=2), strict=True)):
        torch.addcmul(part, gate[:, i : i + 1], own, out=own)
    return y


class PackedBlock:
    """In front of a family's stock block: the same weights, which FrameInputs in the place of the text run over frames.

    The block has attn1 (between frames) and attn2 (to the text), each with to_q, to_k, to_v, to_out, norm_q, norm_k.
    Of the family are
        modulated(x, part, inputs) -> (what the part reads, its gate or None)      part: FRAMES, TEXT or MLP
        normed_heads(x, attn, norm) -> [B, heads, L, D]                            queries or keys, projected [B, L, C]
        turned(x, rope) -> x                                                       rotary positions of [B, heads, L, D]
        feed_forward(h) -> h
        without_text(x) -> x                                                       what a token without text gets
    """

    compilable = ("queries", "add_attended", "text_queries", "add_mlp")  # what compiling.py may compile

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args and isinstance(args[0], FrameInputs):
            return self.text_and_mlp(self.frame_attention(hidden_states, *args), *args)
        return super().forward(hidden_states, *args, **kwargs)

    def without_text(self, x: Tensor) -> Tensor:
        return x  # cross-attention adds nothing

    def frame_attention(self, x: Tensor, inputs: FrameInputs, index: int, target: int | None = None) -> Tensor:
        """The first half: frames look at frames. target: only the last so many tokens go on from here."""
        q, k, v, x, gate = self.queries(x, inputs, target)
        spans = inputs.spans if q.shape[2] == k.shape[2] else None
        return self.add_attended(x, gate, inputs.attend(index, q, k, v), spans)

    def text_and_mlp(self, x: Tensor, inputs: FrameInputs, index: int) -> Tensor:
        """The second half: each token looks at the text and goes through the MLP."""
        if inputs.attend_text is None:
            return self.add_mlp(x, None, None, inputs)
        q, gate = self.text_queries(x, inputs)
        return self.add_mlp(x, gate, inputs.attend_text(index, self, q), inputs)

    def text_keys_values(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """[B, N, W] -> the text's (key, value) [B, heads, N, D] in this block."""
        attn = self.attn2
        return self.normed_heads(attn.to_k(text), attn, attn.norm_k), heads(attn.to_v(text), attn)

    # What stands between two attentions: functions of tensors alone.

    def queries(self, x: Tensor, inputs: FrameInputs, target: int | None) -> tuple[Tensor, ...]:
        """(q, k, v, x, gate) for attention between frames; q, x and gate of the target alone, where it is given."""
        h, gate = self.modulated(x, FRAMES, inputs)
        h, attn, rope = h.flatten(1, 2), self.attn1, inputs.rope
        k, v = self.turned(self.normed_heads(attn.to_k(h), attn, attn.norm_k), rope), heads(attn.to_v(h), attn)
        if target is not None and target < h.shape[1]:
            h, x, gate = h[:, -target:], x[:, :, -target:], gate[:, -1:]
            rope = tuple(table[-target:] for table in rope)
        return self.turned(self.normed_heads(attn.to_q(h), attn, attn.norm_q), rope), k, v, x, gate

    def add_attended(self, x: Tensor, gate: Tensor, out: Tensor, spans: tuple[int, ...] | None) -> Tensor:
        out = self.attn1.to_out[0](out.transpose(1, 2).flatten(2))
        return add_gated(x, gate, out.unflatten(1, x.shape[1:3]), spans)

    def text_queries(self, x: Tensor, inputs: FrameInputs) -> tuple[Tensor, Tensor | None]:
        h, gate = self.modulated(x, TEXT, inputs)
        return self.normed_heads(self.attn2.to_q(h.flatten(1, 2)), self.attn2, self.attn2.norm_q), gate

    def add_mlp(self, x: Tensor, gate: Tensor | None, out: Tensor | None, inputs: FrameInputs) -> Tensor:
        """Adds what came of the text (gate, out), if there is any, and then what the MLP makes of the sum."""
        spans = inputs.spans
        if out is None:
            x = self.without_text(x)
        else:
            out = self.attn2.to_out[0](out.transpose(1, 2).flatten(2))
            x = add_gated(x, gate, out.unflatten(1, x.shape[1:3]), spans)
        h, gate = self.modulated(x, MLP, inputs)
        return add_gated(x, gate, self.feed_forward(h if inputs.mlp is None else inputs.mlp(h)), spans)

    def frame_keys_values(self, x: Tensor, inputs: FrameInputs) -> tuple[Tensor, Tensor]:
        """The (key, value) of each token for the first half, [B, heads, L, D], and nothing else."""
        h, attn = self.modulated(x, FRAMES, inputs)[0].flatten(1, 2), self.attn1
        return self.turned(self.normed_heads(attn.to_k(h), attn, attn.norm_k), inputs.rope), heads(attn.to_v(h), attn)


def stacked(tokens: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """Tokens of frames behind one another, [B, tokens of all, C] -> (x [B, F, S, C], token_frame) for `run_blocks`."""
    if len(set(sizes)) == 1:
        return tokens.unflatten(1, (len(sizes), sizes[0])), None
    token_frame = torch.repeat_interleave(torch.tensor(sizes))
    return tokens[:, :, None], token_frame.to(tokens.device)


class PackedFrames:
    """In front of diffusers' transformer: every frame is cut into patches at its own size. Of the family are
    transformer_blocks                                        the blocks, each a PackedBlock
    rope_axes -> ((dim, theta), ...)                          of time, rows and columns; dim numbers of a head turn
    rope_layout(t, h, w) -> angles [..., width of the tables]
    extra_channels(latent, clean) -> [tensor [B, n, h, w], ...]     behind a latent's own channels
    embed(patches [B, L, channels of a patch]) -> [B, L, C]
    project_text(text [B, N, text_embed_dim]) -> [B, N, W]    what the blocks' attn2 reads
    timed(timestep [B, F] in 0..1, like) -> (embedded, temb)  each [B, F, 1, channels]
    head(x [B, F, S, C], inputs) -> [B, F, S, patch]          the last norm and projection
    """

    rope_dtype = torch.float32

    def grid(self, size: Sequence[int]) -> tuple[int, int]:
        """Tokens down and across, of a latent's shape [..., h, w]."""
        (height, width), (_, ph, pw) = size[-2:], self.config.patch_size
        if height % ph or width % pw:
            raise DitError(f"A latent is {width}x{height}; its sides must be multiples of the patch, {pw}x{ph}.")
        return height // ph, width // pw

    def extra_channels(self, latent: Tensor, clean: bool) -> list[Tensor]:
        return []

    def patches(self, latent: Tensor, *, clean: bool) -> Tensor:
        """[B, channels, h, w] -> [B, tokens, channels of a patch], in diffusers' order: channel, row, column."""
        (gh, gw), (_, ph, pw) = self.grid(latent.shape), self.config.patch_size
        if latent.shape[1] != self.config.out_channels:
            raise DitError(f"A latent has {latent.shape[1]} channels; this DiT takes {self.config.out_channels}.")
        extra = self.extra_channels(latent, clean)
        x = (torch.cat([latent, *extra], dim=1) if extra else latent).unflatten(3, (gw, pw)).unflatten(2, (gh, ph))
        return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def unpatch(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """[B, tokens, patch] -> [B, channels, h, w]. A patch is read as (channel, row, column) and written as (row,
        column, channel) in both families."""
        _, ph, pw = self.config.patch_size
        x = x.unflatten(2, (ph, pw, -1)).unflatten(1, grid)
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)

    def rope_of(
        self, places: Sequence[tuple[int, int, int]], device: torch.device, positions: Positions = AS_TRAINED
    ) -> tuple[Tensor, Tensor]:
        """(picture index, tokens down, tokens across) of each frame -> cos and sin, [tokens of all, width]."""
        # diffusers' own tables count through one grid; here each frame has its picture index as time, and its rows and
        # columns begin at 0.
        angles = []
        for time, height, width in places:
            rows = []
            counts = (time + 1, height, width)
            for (dim, theta), count, (scale, shift) in zip(self.rope_axes, counts, positions, strict=True):
                steps = torch.arange(0, dim, 2, device=device, dtype=self.rope_dtype) / dim
                seq = torch.arange(count, device=device, dtype=self.rope_dtype) * scale + shift
                rows.append(torch.outer(seq, 1.0 / (theta**steps)))
            t = rows[0][-1].expand(height, width, -1)
            h = rows[1][:, None].expand(-1, width, -1)
            w = rows[2][None].expand(height, -1, -1)
            angles.append(self.rope_layout(t, h, w).flatten(0, 1))
        angle = torch.cat(angles)
        return torch.cos(angle).float(), torch.sin(angle).float()

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
