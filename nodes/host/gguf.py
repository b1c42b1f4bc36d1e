"""Layers of GGUF's blocks under ComfyUI's memory management.

In: layers of a module without weights, and the type of each one's blocks. Out: classes that keep the blocks as their
weight, which ComfyUI moves and offloads as the bytes they are, and that make them whole on the device that computes.
A LoRA (or any other patch of the weight) changes the whole matrix. Where ComfyUI patches as a layer runs, that matrix
lives as long as the call; where it patches what it has loaded, `convert_weight` and `set_weight` are the two hooks that
it asks for, and the layer is a plain one, and as large, until the patch goes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import comfy.ops
import torch
import torch.nn.functional as F
from torch import nn

from duogen_core.weights.gguf_layers import (
    CARD_CHUNK,
    PackedEmbedding,
    PackedLinear,
    largest_layer,
    packed_linear,
    unpacked,
    unpacked_whole,
    use_packed_layers,
)


class _Castable(comfy.ops.CastWeightBiasOp):
    comfy_cast_weights = True
    gguf_type: str
    weight: torch.Tensor
    compute: torch.dtype

    def patches(self) -> list[Any]:
        """What changes the whole weight of this call: ComfyUI's functions, and those of its dynamic patcher."""
        dynamic = getattr(self, "weight_lowvram_function", None)
        return [*([] if dynamic is None else [dynamic]), *self.weight_function]

    @contextmanager
    def on(self, device: torch.device, dtype: torch.dtype) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """The blocks and the bias on a device, as long as the block runs; nothing but bytes is done to the blocks."""
        functions, dynamic = self.weight_function, getattr(self, "weight_lowvram_function", None)
        self.weight_function, self.weight_lowvram_function = [], None
        try:
            blocks, bias, stream = comfy.ops.cast_bias_weight(
                self, dtype=torch.uint8, device=device, bias_dtype=dtype, offloadable=True
            )
        finally:
            self.weight_function, self.weight_lowvram_function = functions, dynamic
        yield blocks, bias
        comfy.ops.uncast_bias_weight(self, blocks, bias, stream)

    def whole(self, blocks: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        weight = unpacked_whole(blocks, self.gguf_type, dtype)
        for patch in self.patches():
            weight = patch(weight)
        return weight

    def convert_weight(self, weight: torch.Tensor, inplace: bool = False, **_: Any) -> torch.Tensor:
        """ComfyUI casts a weight before it asks: a byte is the same number in every type that it casts to."""
        if self.weight.dtype != torch.uint8:
            return weight
        return unpacked_whole(weight.to(torch.uint8), self.gguf_type, torch.float32)

    def set_weight(self, weight: torch.Tensor, return_weight: bool = False, **_: Any) -> torch.Tensor | None:
        weight = weight.to(self.compute)
        if return_weight:
            return weight
        self.weight = nn.Parameter(weight, requires_grad=False)
        return None


class GgufLinear(_Castable, PackedLinear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.weight.dtype != torch.uint8:
            weight, bias, stream = comfy.ops.cast_bias_weight(self, x, offloadable=True)
            out = F.linear(x, weight, bias)
            comfy.ops.uncast_bias_weight(self, weight, bias, stream)
            return out
        with self.on(x.device, x.dtype) as (blocks, bias):
            if self.patches():
                return F.linear(x, self.whole(blocks, x.dtype), bias)
            return packed_linear(x, blocks, bias, self.gguf_type)


class GgufEmbedding(_Castable, PackedEmbedding):
    linear_class = GgufLinear
    bias = None  # ComfyUI's casting reads both

    def forward(self, ids: torch.Tensor, out_dtype: torch.dtype | None = None) -> torch.Tensor:
        dtype = out_dtype or self.compute
        if self.weight.dtype != torch.uint8:
            weight, _, stream = comfy.ops.cast_bias_weight(self, device=ids.device, dtype=dtype, offloadable=True)
            out = F.embedding(ids, weight)
            comfy.ops.uncast_bias_weight(self, weight, None, stream)
            return out
        if self.patches():
            with self.on(ids.device, dtype) as (blocks, _):
                return F.embedding(ids, self.whole(blocks, dtype))
        # Where the table lies on the computer's side, only the rows that are asked for go to the card.
        rows = F.embedding(ids.to(self.weight.device), self.weight).to(ids.device)
        return unpacked(rows, self.gguf_type, dtype)


def use_gguf_layers(module: nn.Module, formats: Mapping[str, str], compute: torch.dtype) -> None:
    """Before the weights come. compute: what they are made whole in."""
    use_packed_layers(module, formats, compute, linear=GgufLinear, embedding=GgufEmbedding)
    for name in formats:
        module.get_submodule(name).compute = compute


def whole_shape(layer: nn.Module) -> tuple[int, ...]:
    """The shape of a layer's weight, whether it lies in blocks or not."""
    if isinstance(layer, GgufLinear):
        return layer.out_features, layer.in_features
    if isinstance(layer, GgufEmbedding):
        return layer.num_embeddings, layer.embedding_dim
    return tuple(layer.weight.shape)


def memory_of_blocks(module: nn.Module, size: int) -> int:
    """Bytes for the rows of the largest layer in blocks that are whole at once: in float32, and in what computes."""
    return min(largest_layer(module), CARD_CHUNK) * (4 + size)
