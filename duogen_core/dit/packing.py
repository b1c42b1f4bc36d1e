"""Training of the packed DiT: sequences of unlike picture sizes and counts in one pass, without padding.

In:  a `TrainingSequence` per document: clean and noisy frames, the text, and which of the text each frame may see.
Out: the velocity of every noisy frame, equal to running the sequences one by one.

The tokens of all frames of all sequences lie behind one another, so every linear layer, norm and MLP runs once over
the whole pack. Attention is block-diagonal: sequences whose frames have the same sizes lie side by side and attend as
one batch, others by themselves, and nothing is multiplied only to be masked. Text goes the same way: keys and values
are made of all tokens of the pack at once.
Under `full` attention a sequence is what the paper trains on: finished pictures and one target. Under `frame_causal`
one sequence can hold many targets: a noisy frame sees the clean frames before its place, and itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from duogen_core.dit import DitError
from duogen_core.dit.frames import After, FrameInputs, PackedBlock, PackedFrames, stacked


@dataclass(frozen=True)
class TrainingSequence:
    """clean, noisy: latents [16, h, w]. frame_indices: each one's picture index in the document, clean ones first.

    timestep [noisy]; text [N, text_embed_dim]; sees bool [clean + noisy, N]: what each frame may see of the text.
    """

    clean: tuple[Tensor, ...]
    noisy: tuple[Tensor, ...]
    frame_indices: tuple[int, ...]
    timestep: Tensor
    text: Tensor
    sees: Tensor

    @property
    def shape(self) -> tuple:
        """Sequences of one shape attend as one batch."""
        sizes = tuple(tuple(frame.shape[-2:]) for frame in (*self.clean, *self.noisy))
        return len(self.clean), self.frame_indices, sizes

    def check(self, attention: str) -> None:
        frames = len(self.clean) + len(self.noisy)
        if not self.noisy or len(self.frame_indices) != frames or self.timestep.shape != (len(self.noisy),):
            raise DitError(
                f"{len(self.clean)} clean and {len(self.noisy)} noisy frames with {len(self.frame_indices)} indices "
                f"and timesteps {tuple(self.timestep.shape)} do not fit together."
            )
        if self.sees.shape != (frames, len(self.text)):
            raise DitError(f"sees is {tuple(self.sees.shape)}; expected {(frames, len(self.text))}, frames by tokens.")
        if attention == "full" and len(self.noisy) > 1:
            raise DitError("Under full attention targets would see each other; give every target its own sequence.")


def attention_product(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k' / sqrt(D) + mask) v, where no row of `mask` hides everything.

    On a CPU in bfloat16 as two products: there torch's fused kernel is slow on the way back, and its plain one computes
    in float32 and guards against empty rows; both took 1.8 to 3.6 times as long (torch 2.13, AMX, a document's sizes).
    """
    if q.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return (scores if mask is None else scores + mask).softmax(-1) @ v


class Group:
    """Sequences of one shape, whose tokens lie behind one another in the pack."""

    def __init__(self, model: PackedFrames, members: list[TrainingSequence]) -> None:
        first = members[0]
        self.members, self.n, self.clean = members, len(members), len(first.clean)
        self.grids = [model.grid(frame.shape) for frame in (*first.clean, *first.noisy)]
        self.sizes = [height * width for height, width in self.grids]
        self.length, self.frame_indices = sum(self.sizes), first.frame_indices
        self.tokens = self.n * self.length
        self.text_lengths = [len(member.text) for member in members]
        self.text_tokens = sum(self.text_lengths)

    def patches(self, model: PackedFrames) -> Tensor:
        """[n * length, channels of a patch]"""
        columns = zip(*((*member.clean, *member.noisy) for member in self.members), strict=True)
        found = [model.patches(torch.stack(each), clean=i < self.clean) for i, each in enumerate(columns)]
        return torch.cat(found, dim=1).flatten(0, 1)

    def stacked(self, x: Tensor) -> Tensor:
        """[heads, tokens of the group, D] -> [n, heads, length, D]"""
        return x.unflatten(1, (self.n, self.length)).transpose(0, 1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, attention: str) -> Tensor:
        """[n, heads, length, D]. One SDPA per frame over just the keys it sees: no mask, nothing masked away."""
        if attention == "full" or len(self.sizes) == 1:
            return attention_product(q, k, v)
        qs, ks, vs = (t.split(self.sizes, dim=2) for t in (q, k, v))
        out, ends = [], [0, *torch.tensor(self.sizes).cumsum(0).tolist()]
        for i, place in enumerate(self.frame_indices):
            if i < self.clean:  # it sees the clean frames up to and including itself, which stand first and in order
                keys, values = k[:, :, : ends[i + 1]], v[:, :, : ends[i + 1]]
            else:  # a target sees the clean frames before its place, then itself, and no other target
                seen = ends[sum(other < place for other in self.frame_indices[: self.clean])]
                keys, values = (torch.cat([t[:, :, :seen], own[i]], dim=2) for t, own in ((k, ks), (v, vs)))
            out.append(attention_product(qs[i], keys, values))
        return torch.cat(out, dim=2)


class TextAttention:
    """Cross-attention of one group: keys and values are taken out of the pack's, masked where a frame may not look."""

    def __init__(self, group: Group, dtype: torch.dtype, device: torch.device) -> None:
        longest = max(group.text_lengths)
        self.group, self.index, self.mask, self.has_text = group, None, None, None
        if not longest:
            return
        sees = torch.zeros(group.n, len(group.sizes), longest, dtype=torch.bool)
        index = torch.zeros(group.n, longest, dtype=torch.long)
        start = 0
        for row, (member, length) in enumerate(zip(group.members, group.text_lengths, strict=True)):
            sees[row, :, :length] = member.sees.cpu()
            index[row, :length] = torch.arange(start, start + length)
            start += length
        any_text = sees.any(-1)
        if group.n > 1:
            self.index = index.to(device)
        spread = torch.tensor(group.sizes)
        # Softmax over nothing is NaN. So a frame that sees no text attends to all of it, and what it got is multiplied
        # by 0 afterwards: cross-attention then adds nothing to it, in forward and backward.
        if not bool(sees.all()):
            self.mask = additive(sees | ~any_text[..., None], dtype).repeat_interleave(spread, 1)[:, None].to(device)
        if not bool(any_text.all()):
            self.has_text = any_text.to(dtype).repeat_interleave(spread, 1)[:, None, :, None].to(device)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [n, heads, length, D], k and v [heads, text of the group, D]"""
        if not self.group.text_tokens:
            return torch.zeros_like(q)
        k, v = (t[None] if self.index is None else t[:, self.index].transpose(0, 1) for t in (k, v))
        out = attention_product(q, k, v, self.mask)
        return out if self.has_text is None else out * self.has_text


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Boolean mask (True = seen) -> what SDPA adds; made once, since SDPA would convert it in every block."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))


Residuals = Mapping[int, Sequence[Sequence[Tensor]]]  # block -> per sequence, of each noisy frame, [tokens, C]


def after_blocks(groups: Sequence[Group], numbers: Sequence[Sequence[int]], residuals: Residuals) -> After:
    """What a ControlNet adds to the noisy frames behind some blocks, as one tensor over all tokens of the pack."""
    whole = {}
    for block, of_sequences in residuals.items():
        rows = []
        for group, own in zip(groups, numbers, strict=True):
            clean = sum(group.sizes[: group.clean])
            for frames in (of_sequences[number] for number in own):
                rows += [frames[0].new_zeros(clean, frames[0].shape[-1]), *frames]
        whole[block] = torch.cat(rows)
    return lambda block, x: x + whole[block].view(x.shape) if block in whole else x


def forward_train(
    model: PackedFrames, sequences: Sequence[TrainingSequence], residuals: Residuals | None = None
) -> list[list[Tensor]]:
    """See `PackedDit.forward_train`."""
    attention = model.config.attention
    # Only attention has to know which tokens belong together: sequences of one shape become one batch there.
    by_shape: dict[tuple, list[int]] = {}
    for number, sequence in enumerate(sequences):
        sequence.check(attention)
        by_shape.setdefault(sequence.shape, []).append(number)
    groups = [Group(model, [sequences[number] for number in numbers]) for numbers in by_shape.values()]
    lengths, text_lengths = [group.tokens for group in groups], [group.text_tokens for group in groups]
    members = [member for group in groups for member in group.members]
    clean_time = model.config.clean_timestep
    # A negative clean_timestep means, as in Cosmos, that finished frames share the target's own time.
    times = torch.cat([
        torch.cat([m.timestep.new_full((len(m.clean),), clean_time) if clean_time >= 0 else
                   m.timestep[:1].expand(len(m.clean)), m.timestep]) for m in members
    ])[None]  # fmt: skip
    sizes = [size for group in groups for _ in range(group.n) for size in group.sizes]
    x, token_frame = stacked(model.embed(torch.cat([group.patches(model) for group in groups])[None]), sizes)
    ropes = [
        model.rope_of([(place, *grid) for place, grid in zip(group.frame_indices, group.grids, strict=True)], x.device)
        for group in groups
    ]
    rope = tuple(torch.cat([each[i].repeat(g.n, 1) for g, each in zip(groups, ropes, strict=True)]) for i in (0, 1))

    def attend(_block: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = zip(groups, *(t[0].split(lengths, dim=1) for t in (q, k, v)), strict=True)
        return packed([group.attend(*map(group.stacked, own), attention) for group, *own in parts])

    text = model.project_text(torch.cat([member.text for member in members])[None])
    crosses = [TextAttention(group, x.dtype, x.device) for group in groups]

    def attend_text(_index: int, block: PackedBlock, q: Tensor) -> Tensor:
        k, v = (t[0].split(text_lengths, dim=1) for t in block.text_keys_values(text))
        parts = zip(crosses, q[0].split(lengths, dim=1), k, v, strict=True)
        return packed([cross(cross.group.stacked(own), k, v) for cross, own, k, v in parts])

    embedded, temb = model.timed(times, x)
    after = after_blocks(groups, list(by_shape.values()), residuals) if residuals else None
    looked_at = attend_text if text.shape[1] else None
    inputs = FrameInputs(embedded, temb, rope, attend, looked_at, token_frame, after=after)
    out = model.run_blocks(x, inputs).flatten(1, 2)
    found: list[list[Tensor]] = [[] for _ in sequences]
    for numbers, group, tokens in zip(by_shape.values(), groups, out[0].split(lengths), strict=True):
        frames = tokens.unflatten(0, (group.n, -1)).split(group.sizes, dim=1)
        for patches, grid in list(zip(frames, group.grids, strict=True))[group.clean :]:
            for number, v in zip(numbers, model.unpatch(patches, grid), strict=True):
                found[number].append(v)
    return found


def packed(outs: list[Tensor]) -> Tensor:
    """Each group's [n, heads, length, D] -> [1, heads, tokens, D]"""
    return torch.cat([out.transpose(0, 1).flatten(1, 2) for out in outs], dim=1)[None]
