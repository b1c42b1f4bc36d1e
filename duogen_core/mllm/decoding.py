"""What makes writing one token after another fast: keys and values that are not copied, and products on all cores.

KeyValueCache: transformers' Cache whose layers keep keys and values [rows, heads, tokens, width] in a buffer with room
for STEP tokens more, so that a token is written in its place (transformers' DynamicCache copies all of them). Cropping
is exact and free. `Batch` puts several conversations side by side, ended alike.
several_cores: while open, float32 layers on the CPU multiply few rows by oneDNN. The product of one row which PyTorch
takes from MKL runs on a single core, that of two is slower than two of one. Measured on 2 cores, a matrix of
1728 x 640: one row 0.26 -> 0.12 ms, two 1.1 -> 0.16, eight 0.67 -> 0.5. Many rows, as of a prompt or an image, go
the way that duogen_core/linear.py chooses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from duogen_core.linear import linear, onednn_is_faster

STEP = 256
FEW = 32  # rows
LARGE = 1 << 18  # weights of a layer from which on a second core gains more than it costs


class GrowingLayer(DynamicLayer):
    """Keys and values of one decoder layer; `keys` and `values` are what is filled of the buffers."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor | None = None) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self._buffers = [states.new_zeros(*states.shape[:2], 0, states.shape[3]) for states in (key_states,) * 2]
        self.keys, self.values = self._buffers
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states)
        start = self.keys.shape[2]
        end = start + key_states.shape[2]
        if end > self._buffers[0].shape[2]:
            self.reserve(end)
        keys, values = self._buffers
        keys[:, :, start:end] = key_states
        values[:, :, start:end] = value_states
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]
        return self.keys, self.values

    def reserve(self, tokens: int) -> None:
        """Makes room for so many tokens, in whole steps."""
        rows, heads, filled, width = self.keys.shape
        room = -(-tokens // STEP) * STEP
        for i, old in enumerate((self.keys, self.values)):
            self._buffers[i] = old.new_zeros(rows, heads, room, width)  # zeros: before a short row, nothing may be NaN
            self._buffers[i][:, :, :filled] = old


class KeyValueCache(Cache):
    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=GrowingLayer)


@contextmanager
def several_cores(model: nn.Module) -> Iterator[None]:
    """While open, plain Linear layers on the CPU use all cores for few rows (see above); classes are put back after.

    Without gradients: the operator is the one that torch.compile puts in, and has none.
    """
    layers: Sequence[nn.Linear] = ()
    several = torch.get_num_threads() > 1
    both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    if (several and both) or onednn_is_faster():
        layers = [layer for layer in model.modules() if type(layer) is nn.Linear and _on_cpu(layer.weight)]
    for layer in layers:
        layer.__class__ = _FewRowsLinear
    try:
        yield
    finally:
        for layer in layers:
            layer.__class__ = nn.Linear


def _on_cpu(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.is_contiguous()


class _FewRowsLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # it knows the operator itself, and refuses to be given it
            return F.linear(x, self.weight, self.bias)
        gains = torch.get_num_threads() > 1 or onednn_is_faster()
        few = x.numel() <= FEW * self.in_features and self.weight.numel() >= LARGE and gains
        # Weights may have come to a card, layer by layer, since their device was looked at.
        if not few or x.device.type != "cpu" or x.requires_grad:
            return linear(x, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


class Batch:
    """Conversations side by side, for one forward of one token each.

    Every row's keys and values are copied to the right end of a common buffer; `mask` hides what is left of a shorter
    one. `give_back` copies the new tokens' into the caches that they came from, which `Batch` itself never changes.
    """

    def __init__(self, caches: Sequence[KeyValueCache]) -> None:
        self.caches, self.new = caches, 0
        self.lengths = [cache.get_seq_length() for cache in caches]
        self.width = max(self.lengths)
        self.cache = KeyValueCache()
        for layers in zip(*(cache.layers for cache in caches)):
            (_, heads, _, size), first = layers[0].keys.shape, layers[0].keys
            layer = GrowingLayer()
            layer.lazy_initialization(first.new_zeros(len(caches), heads, 0, size))
            layer.reserve(self.width + STEP)
            for row, (length, own) in enumerate(zip(self.lengths, layers)):
                start = self.width - length
                for buffer, states in zip(layer._buffers, (own.keys, own.values)):
                    buffer[row, :, start : self.width] = states[0]
            layer.keys, layer.values = (buffer[:, :, : self.width] for buffer in layer._buffers)
            self.cache.layers.append(layer)
        starts = torch.tensor([[self.width - length] for length in self.lengths], device=first.device)
        hidden = torch.arange(self.width, device=first.device) < starts
        self._mask = first.new_zeros(hidden.shape).masked_fill(hidden, torch.finfo(first.dtype).min)

    def mask(self) -> Tensor | None:
        """What is added to the scores of the coming token [rows, 1, 1, tokens]; None where all rows are as long."""
        if min(self.lengths) == self.width:
            return None
        more = self.width + self.new + 1 - self._mask.shape[1]
        if more > 0:
            self._mask = nn.functional.pad(self._mask, (0, STEP))
        return self._mask[:, None, None, : self.width + self.new + 1]

    def give_back(self) -> None:
        new = slice(self.width, self.width + self.new)
        for index, layer in enumerate(self.cache.layers):
            for row, cache in enumerate(self.caches):
                cache.update(layer.keys[row : row + 1, :, new], layer.values[row : row + 1, :, new], index)
        self.caches, self.new = (), 0
