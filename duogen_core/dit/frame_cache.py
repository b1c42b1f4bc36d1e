"""What a frame-causal DiT need not compute again: keys and values of finished pictures, and of the text.

A finished picture's keys and values depend on its own latent, on the pictures before it and on the text before it, and
on nothing else; so they form a tree whose branches share their beginnings. Lookup compares contents (latents, text
between two pictures), never names or counters: a wrong hit cannot happen, a missed one only costs time. Steps, later
pictures and both guidance branches therefore find the same entries by themselves.

In:  latents [B, 16, h, w] and text [B, N, W] as given to `forward_packed`.
Out: per block (key, value), each [B, heads, tokens, head_dim].

A cache belongs to one state of the weights: make a new one (or `clear`) when weights change, LoRAs included.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

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
