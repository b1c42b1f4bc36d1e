"""Blocks made whole, against the gguf package's own; layers that keep them, against the same weights whole."""

from __future__ import annotations

import mmap
import sys

import gguf
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from duogen_core.weights.gguf_layers import (
    FILL,
    INT4,
    PackedEmbedding,
    PackedLinear,
    largest_layer,
    packed_linear,
    unpacked,
    unpacked_whole,
    use_packed_layers,
)
from duogen_core.weights.reading import GgufFiles
from tests.core.gguf_files import QUANTISED, SCALES, Types, blocks, write_gguf

KINDS = [*QUANTISED, *SCALES]


@pytest.mark.parametrize("kind", KINDS)
def test_every_type_is_made_whole_to_the_bit(kind):
    packed = blocks(kind, 6, 512)
    if kind in SCALES:  # any bytes are a block
        assert packed.min() == 0 and packed.max() == 255
    expected = gguf.dequantize(packed, Types[kind])
    ours = unpacked(torch.from_numpy(packed), kind, torch.float32)
    assert ours.shape == (6, 512)
    assert np.array_equal(ours.numpy(), expected) or np.abs(ours.numpy() - expected).max() <= 2e-7
    if kind in FILL:
        assert np.array_equal(ours.numpy(), expected)


def test_all_our_types_are_among_those_compared():
    assert set(FILL) | set(INT4) <= set(KINDS)


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_0", "Q2_K", "IQ3_S"])
def test_whole_matrices_are_made_in_pieces(kind, monkeypatch):
    monkeypatch.setattr("duogen_core.weights.gguf_layers.CHUNK", 1024)
    packed = torch.from_numpy(blocks(kind, 7, 512))
    assert torch.equal(unpacked_whole(packed, kind, torch.bfloat16), unpacked(packed, kind, torch.bfloat16))


def linear(kind, bias=True, columns=512, rows=48):
    layer = nn.Linear(columns, rows, bias=bias)
    module = nn.ModuleDict({"a": layer})
    packed = torch.from_numpy(blocks(kind, rows, columns))
    use_packed_layers(module, {"a": kind})
    layer.load_state_dict({"weight": packed}, strict=False, assign=True)
    whole = nn.Linear(columns, rows, bias=bias)
    whole.weight.data, whole.bias = unpacked(packed, kind, torch.float32), layer.bias
    return layer, whole


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "Q8_0", "Q5_1", "IQ4_XS"])
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (1, 40)])
@torch.no_grad()
def test_a_packed_linear_is_the_linear(kind, shape, monkeypatch):
    monkeypatch.setattr("duogen_core.weights.gguf_layers.CHUNK", 4096)  # 8 of its 48 rows at once
    layer, whole = linear(kind)
    assert isinstance(layer, PackedLinear) and layer.weight.dtype == torch.uint8
    x = torch.randn(*shape, 512)
    assert torch.allclose(layer(x), whole(x), atol=1e-4)
    half = whole(x).bfloat16().float()
    assert (layer(x.bfloat16()).float() - half).abs().max() < 0.02 * half.abs().max()


@pytest.mark.parametrize("kind", INT4)
@torch.no_grad()
def test_four_bits_in_bf16_are_as_near_as_the_bf16_matrix(kind):
    layer, whole = linear(kind, rows=64)
    x = torch.randn(3, 13, 512)
    reference = whole(x)
    ours = layer(x.bfloat16())
    assert layer.int4 is not None and ours.dtype == torch.bfloat16
    error = (ours.float() - reference).norm()
    of_matrix = (F.linear(x.bfloat16(), whole.weight.bfloat16(), whole.bias.bfloat16()).float() - reference).norm()
    assert error < 1.3 * of_matrix
    assert torch.allclose(layer(x), reference, atol=1e-4)  # float32 still goes by the blocks


def test_gradients_flow_through_a_packed_linear():
    layer, whole = linear("Q4_K")
    x = torch.randn(2, 512, dtype=torch.bfloat16, requires_grad=True)
    layer(x).float().sum().backward()
    expected = whole.weight.sum(0)
    assert (x.grad[0].float() - expected).abs().max() < 0.02 * expected.abs().max() + 0.05
    assert not layer.weight.requires_grad


@torch.no_grad()
def test_an_embedding_makes_whole_the_rows_it_is_asked_for(monkeypatch):
    seen = []
    real = unpacked
    monkeypatch.setattr(
        "duogen_core.weights.gguf_layers.unpacked", lambda b, *rest: seen.append(b.shape[:-1]) or real(b, *rest)
    )
    module = nn.ModuleDict({"a": nn.Embedding(100, 256)})
    packed = torch.from_numpy(blocks("Q6_K", 100, 256))
    use_packed_layers(module, {"a": "Q6_K"})
    module.a = module["a"]
    module["a"].load_state_dict({"weight": packed}, strict=False, assign=True)
    assert isinstance(module["a"], PackedEmbedding)
    ids = torch.tensor([[3, 99, 3]])
    assert torch.equal(module["a"](ids), real(packed, "Q6_K", torch.float32)[ids])
    assert seen == [(1, 3)]
    module.to(torch.bfloat16)
    assert module["a"](ids).dtype == torch.bfloat16 and module["a"].weight.dtype == torch.uint8


def test_a_packed_linear_takes_a_card_as_whole_matrix():
    layer, whole = linear("Q4_K", bias=False)
    x = torch.randn(2, 512)
    elsewhere = packed_linear(x.to("meta"), layer.weight.to("meta"), None, "Q4_K")
    assert elsewhere.shape == whole(x).shape


def test_pages_of_a_file_are_given_back_and_other_memory_is_left_alone(tmp_path, monkeypatch):
    given: list[int] = []

    class Map(mmap.mmap):
        def madvise(self, option, start, length):
            given.append(length)
            return super().madvise(option, start, length)

    monkeypatch.setattr(mmap, "mmap", Map)
    monkeypatch.setattr("duogen_core.weights.gguf_layers.LARGE", 0)
    monkeypatch.setattr("duogen_core.weights.gguf_layers.CHUNK", 512 * 20)
    packed = blocks("Q4_K", 400, 512)
    path = write_gguf(tmp_path / "a.gguf", "test", {"a.weight": (packed, "Q4_K")})
    mapped, x = GgufFiles(path).tensor("a.weight"), torch.randn(2, 512)
    wanted = F.linear(x, unpacked(torch.from_numpy(packed), "Q4_K", torch.float32))
    with torch.no_grad():
        for _ in range(2):
            assert torch.allclose(packed_linear(x, mapped, None, "Q4_K"), wanted, atol=1e-4)
        assert not sys.platform.startswith("linux") or (len(given) > 10 and sum(given) > mapped.numel() // 2)
        mapped[0, 0] = 255 - mapped[0, 0]
        assert path.read_bytes().count(packed.tobytes()) == 1
        given.clear()
        own = torch.from_numpy(packed.copy())
        assert torch.allclose(packed_linear(x, own, None, "Q4_K"), wanted, atol=1e-4)
        assert not given and np.array_equal(own.numpy(), packed)


def test_the_largest_layer_is_counted_where_memory_is_planned():
    module = nn.ModuleDict({"a": nn.Linear(512, 48), "b": nn.Linear(512, 80), "c": nn.Linear(512, 800)})
    use_packed_layers(module, {"a": "Q4_K", "b": "Q8_0"})
    assert largest_layer(module) == 512 * 80
