"""Drawing with frame-causal attention: a picture only looks back, so keys and values of finished pictures are reused.

A frame sees itself, the frames before it and the text before its own place. So finished frames are run one after
another, each against the keys and values of those before it; the target comes last. No attention mask is needed.
Training runs all frames at once (packing.py).

What a finished picture leaves behind depends on its own latent, on the pictures before it and on the text before it,
and on nothing else; so the entries of `FrameCache` form a tree whose branches share their beginnings. Steps, later
pictures and both guidance branches find the same entries by themselves. A cache belongs to one state of the weights:
make a new one (or `clear`) when weights change, LoRAs included.

In:  latents [B, 16, h, w] and text [B, N, W] as given to `forward_packed`.
Out: per block (key, value), each [B, heads, tokens, head_dim].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor

from duogen_core.dit.frames import CosmosFrames, keys_values

KeysValues = list[tuple[Tensor, Tensor]]  # one pair per block


def same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)


@dataclass(eq=False)
class Frame:
    """One finished picture in its place."""

    latent: Tensor
    text: Tensor  # between the previous picture and this one
    end: int
    kv: KeysValues
    depth: int
    parent: Frame | None
    children: list[Frame] = field(default_factory=list)
    used: int = 0


class FrameCache:
    def __init__(self, max_frames: int = 64, max_texts: int = 4) -> None:
        self.max_frames, self.max_texts = max_frames, max_texts
        self.hits = self.misses = 0  # frames found and frames computed, for tests and reports
        self.clear()

    def clear(self) -> None:
        self._root: list[Frame] = []
        self._frames: list[Frame] = []
        self._texts: list[tuple[Tensor, KeysValues]] = []
        self._clock = 0

    @property
    def bytes(self) -> int:
        pairs = [pair for frame in self._frames for pair in frame.kv] + [p for _, kv in self._texts for p in kv]
        return sum(t.numel() * t.element_size() for pair in pairs for t in pair)

    def text(self, text: Tensor, compute: Callable[[Tensor], KeysValues]) -> KeysValues:
        """Keys and values of a text condition; the last few texts are kept (the two guidance branches alternate)."""
        for index, (known, kv) in enumerate(self._texts):
            if same(known, text):
                self._texts.append(self._texts.pop(index))
                return kv
        kv = compute(text)
        self._texts = [*self._texts[1 - self.max_texts :], (text.detach().clone(), kv)]
        return kv

    def frame(
        self, parent: Frame | None, latent: Tensor, text: Tensor, end: int, compute: Callable[[], KeysValues]
    ) -> Frame:
        """The entry of a finished picture that follows `parent`, computed when it is not there yet."""
        siblings = self._root if parent is None else parent.children
        before = text[:, 0 if parent is None else parent.end : end]
        self._clock += 1
        for found in siblings:
            # By their numbers, not by names: so a rerolled picture, an edited text or another model's states miss, and
            # whatever is equal is found, without anybody having to say what changed.
            if found.end == end and same(found.latent, latent) and same(found.text, before):
                self.hits += 1
                found.used = self._clock
                return found
        self.misses += 1
        depth = 0 if parent is None else parent.depth + 1
        new = Frame(latent.detach().clone(), before.detach().clone(), end, compute(), depth, parent, [], self._clock)
        siblings.append(new)
        self._frames.append(new)
        self._evict(keep=new)
        return new

    def _evict(self, keep: Frame) -> None:
        """Drops the leaf that was not used for longest, never the branch that is being walked."""
        walked = set()
        node: Frame | None = keep
        while node is not None:
            walked.add(id(node))
            node = node.parent
        while len(self._frames) > self.max_frames:
            leaves = [frame for frame in self._frames if not frame.children and id(frame) not in walked]
            if not leaves:
                return
            oldest = min(leaves, key=lambda frame: frame.used)
            (self._root if oldest.parent is None else oldest.parent.children).remove(oldest)
            self._frames.remove(oldest)


def path(frame: Frame | None) -> list[Frame]:
    """From the first picture to this one."""
    frames: list[Frame] = []
    while frame is not None:
        frames.append(frame)
        frame = frame.parent
    return frames[::-1]


def run_frame(
    model: CosmosFrames,
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
    out = model.run_blocks(x, timestep[:, None], rope, attend, attend_text if text_end else None)
    return out, own


def forward_frame_causal(
    model: CosmosFrames,
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
