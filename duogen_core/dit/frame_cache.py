"""Keys and values of finished frames, which a frame_causal DiT reuses for steps, guidance branches and later pictures.

What a finished picture leaves behind depends on its own latent, on the pictures before it and on the text before it,
and on nothing else. So a document is a line of frames, and a new request reuses the longest prefix that one of the
cached lines shares with it, as an LLM's prefix cache does. A line's keys and values lie in one buffer per block; the
place behind the last finished frame is scratch, in which each step puts the target's own, so that attention reads one
tensor and nothing is concatenated.

A cache belongs to one state of the weights: make a new one (or `clear`) when weights change, LoRAs included.

In:  finished frames as `FrameKey`. Out: `FrameLine`, per block (keys, values), each [B, heads, tokens, D].
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


def same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)


@dataclass(frozen=True)
class FrameKey:
    """What decides a finished frame's keys and values, with those of the frames before it.

    latent [B, c, h, w]; text [B, n, W]: between the frame before it and this one, up to `end`. tokens: of the frame.
    how: the attention function and the positions it was computed with.
    """

    latent: Tensor
    text: Tensor
    end: int
    tokens: int
    how: tuple[Any, ...] = ()

    def equals(self, other: FrameKey) -> bool:
        # By their numbers, not by names: so a rerolled picture, an edited text or another model's states miss, and
        # whatever is equal is found, without anybody having to say what changed. Once a picture, not once a step: a
        # comparison waits for the device.
        if self.end != other.end or self.how != other.how:
            return False
        return same(self.latent, other.latent) and same(self.text, other.text)

    def copied(self) -> FrameKey:
        """A copy that the caller's tensors cannot change any more."""
        return replace(self, latent=self.latent.detach().clone(), text=self.text.detach().clone())


def _empty(like: Tensor, *shape: int) -> Tensor:
    # A tensor made in inference mode could only be written to in inference mode, and a line may outlive it.
    with torch.inference_mode(False):
        return like.new_empty(shape)


class FrameLine:
    """Finished frames behind one another. buffers: per block keys and values [2, B, heads, capacity, D]."""

    def __init__(self) -> None:
        self.frames: list[FrameKey] = []
        self.buffers: dict[int, Tensor] = {}
        self.users: weakref.WeakSet[Any] = weakref.WeakSet()  # who still draws with it

    @property
    def length(self) -> int:
        """Tokens of the finished frames; what lies behind them in the buffers is scratch."""
        return sum(frame.tokens for frame in self.frames)

    @property
    def bytes(self) -> int:
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers.values())

    def common(self, wanted: Sequence[FrameKey]) -> int:
        """How many of the wanted frames stand here already, from the first on."""
        n = 0
        while n < min(len(self.frames), len(wanted)) and self.frames[n].equals(wanted[n]):
            n += 1
        return n

    def put(self, block: int, row: int | None, start: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Writes a frame's keys and values [B, heads, S, D] from `start` on; returns all up to its end.

        row: of the line's batch, for a frame of batch 1; None: all rows. A buffer that is too short grows to just what
        is needed: a frame of a 2B model takes 0.9 GB at 1024x1024, and growing by doubling would waste half of it.
        """
        end = start + key.shape[2]
        if block not in self.buffers:
            self.buffers[block] = _empty(key, 2, *key.shape[:2], end, key.shape[3])
        elif self.buffers[block].shape[3] < end:
            old = self.buffers[block]
            self.buffers[block] = _empty(old, *old.shape[:3], end, old.shape[4])
            self.buffers[block][:, :, :, :start] = old[:, :, :, :start]
        buffer = self.buffers[block] if row is None else self.buffers[block][:, row : row + 1]
        buffer[0, :, :, start:end] = key
        buffer[1, :, :, start:end] = value
        return buffer[0, :, :, :end], buffer[1, :, :, :end]

    def fork(self, frames: int) -> FrameLine:
        """A line of its own with the first frames of this one."""
        new = FrameLine()
        new.frames = self.frames[:frames]
        length = new.length
        for block, buffer in self.buffers.items():
            new.buffers[block] = _empty(buffer, *buffer.shape[:3], length, buffer.shape[4])
            new.buffers[block].copy_(buffer[:, :, :, :length])
        return new


class FrameCache:
    """Lines of frames, the one used last at the end.

    max_bytes: lines that nobody draws with any more are dropped, oldest first, until the rest takes no more than that.
    What the present picture needs is kept whatever it takes.
    """

    def __init__(self, max_bytes: int = 2**30) -> None:
        self.max_bytes = max_bytes
        self.hits = self.misses = 0  # frames found and frames to be computed, for tests and reports
        self.clear()

    def clear(self) -> None:
        self.lines: list[FrameLine] = []

    @property
    def bytes(self) -> int:
        return sum(line.bytes for line in self.lines)

    def line(self, wanted: Sequence[FrameKey], user: Any) -> FrameLine:
        """A line whose frames are the longest prefix of `wanted` that is cached; the caller appends the others."""
        shared = [line.common(wanted) for line in self.lines]
        best = max(range(len(shared)), key=shared.__getitem__, default=None)
        found = 0 if best is None else shared[best]
        if not found:
            line = FrameLine()
        else:
            line = self.lines[best]
            if found < len(line.frames):
                if line.users:  # somebody still draws with the frames that would be cut off
                    line = line.fork(found)
                else:
                    self.lines.pop(best)
                    del line.frames[found:]
            else:
                self.lines.pop(best)
        line.users.add(user)
        self.lines.append(line)
        self.hits += found
        self.misses += len(wanted) - found
        self.drop_unused(self.max_bytes)
        return line

    def drop_unused(self, max_bytes: int) -> None:
        """Drops lines that nobody draws with, oldest first, until the rest takes at most max_bytes."""
        unused = [line for line in self.lines if not line.users]
        while unused and self.bytes > max_bytes:
            self.lines.remove(unused.pop(0))
