"""Layers whose weights stay in GGUF's blocks and are made whole only while they are used.

    numbers = unpacked(blocks, "Q4_K", dtype)     [rows, bytes of a row] uint8 -> [rows, columns]
    use_packed_layers(module, {layer: type})      Linear -> PackedLinear, Embedding -> PackedEmbedding, before loading

A PackedLinear makes its matrix whole some rows at a time (on a card: mostly all) and computes in its input's type.
A PackedEmbedding makes whole the rows that it is asked for and nothing else; it answers in the type of `like`, which
`Module.to` and `devices.move` convert like a weight. What is quantised stays so in `.to(dtype)`: blocks are bytes.
In bf16 on the CPU, layers in 4 bits with one scale for 32 numbers (Q4_K, Q4_0, Q4_1) are laid out anew once, for
PyTorch's own 4-bit product: a row through 1536 to 8960 channels takes 0.37 ms there, 1.4 ms as a bf16 matrix, 8 ms made
whole anew each time. Its results are as near to float32 as those of the bf16 matrix.

The block formats are ggml's (ggml-quants.c), here written with as few passes as torch allows: 1.5 to 3 times as fast on
a CPU as diffusers' functions, which serve the rarer types; what these lack (IQ1 to IQ3, TQ, MXFP4) is made whole by the
gguf package's numpy, slowly. All are tested against that numpy, to the bit.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import weakref
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from duogen_core.errors import DuoGenError
from duogen_core.weights.gguf import block_of, is_packed

CHUNK = 1 << 20  # numbers made whole at once on the CPU: 4 MB of float32, which a core's caches hold
CARD_CHUNK = 1 << 25  # and on a card: every layer but the output of a large vocabulary at once
LARGE = 1 << 26  # bytes of blocks, such as an output matrix: read once a token, its pages are not kept
FEW = 4  # rows up to which a product in half precision goes through float32, which needs no second conversion
AT_ONCE = 16  # rows that the 4-bit product is quickest with

# ---------------------------------------------------------------- blocks -> numbers
# Each takes blocks [n, bytes] and fills out [n, numbers], float32. A block's numbers follow ggml's order.


def _half(blocks: Tensor, at: int) -> Tensor:
    return blocks[:, at : at + 2].view(torch.float16).float()


def _shifts(blocks: Tensor, *values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.uint8, device=blocks.device).view(1, -1, 1)


def _k_scales(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Of Q4_K and Q5_K: eight scales and eight smallest values, 6 bits each, packed in 12 bytes."""
    packed = blocks[:, 4:16]
    top = packed[:, :8] >> 6 << 4
    scale = torch.cat([packed[:, :4] & 63, packed[:, 8:] & 15 | top[:, :4]], 1)
    least = torch.cat([packed[:, 4:8] & 63, packed[:, 8:] >> 4 | top[:, 4:]], 1)
    return _half(blocks, 0) * scale, _half(blocks, 2) * least


def _q4_k(blocks: Tensor, out: Tensor) -> None:
    scale, least = _k_scales(blocks)
    q, o = blocks[:, 16:].view(-1, 4, 32), out.view(-1, 4, 2, 32)
    o[:, :, 0], o[:, :, 1] = q & 15, q >> 4
    o.mul_(scale.view(-1, 4, 2, 1)).sub_(least.view(-1, 4, 2, 1))


def _q5_k(blocks: Tensor, out: Tensor) -> None:
    scale, least = _k_scales(blocks)
    q, o = blocks[:, 48:].view(-1, 4, 32), out.view(-1, 4, 2, 32)
    fifth = blocks[:, 16:48].unsqueeze(1) >> _shifts(blocks, 0, 2, 4, 6)
    o[:, :, 0], o[:, :, 1] = q & 15 | (fifth & 1) << 4, q >> 4 | (fifth & 2) << 3
    o.mul_(scale.view(-1, 4, 2, 1)).sub_(least.view(-1, 4, 2, 1))


def _q6_k(blocks: Tensor, out: Tensor) -> None:
    low, high = blocks[:, :128].view(-1, 2, 2, 32), blocks[:, 128:192].view(-1, 2, 1, 32)
    o = out.view(-1, 2, 4, 32)
    o[:, :, :2] = (low & 15 | high << _shifts(blocks, 4, 2) & 48).view(torch.int8) - 32
    o[:, :, 2:] = (low >> 4 | high >> _shifts(blocks, 0, 2) & 48).view(torch.int8) - 32
    scale = _half(blocks, 208) * blocks[:, 192:208].view(torch.int8)
    out.view(-1, 16, 16).mul_(scale.unsqueeze(2))


def _q8_0(blocks: Tensor, out: Tensor) -> None:
    out.copy_(blocks[:, 2:].view(torch.int8)).mul_(_half(blocks, 0))


def _q4_0(blocks: Tensor, out: Tensor) -> None:
    q = blocks[:, 2:]
    out[:, :16], out[:, 16:] = (q & 15).view(torch.int8) - 8, (q >> 4).view(torch.int8) - 8
    out.mul_(_half(blocks, 0))


def _q4_1(blocks: Tensor, out: Tensor) -> None:
    q = blocks[:, 4:]
    out[:, :16], out[:, 16:] = q & 15, q >> 4
    out.mul_(_half(blocks, 0)).add_(_half(blocks, 2))


@lru_cache(maxsize=4)
def _bits(device: torch.device) -> Tensor:
    """[256] int64: the eight bits of a byte as eight bytes, 0 or 16 each."""
    table = torch.arange(256).unsqueeze(1) >> torch.arange(8) & 1
    return (table << 4).to(torch.uint8).view(torch.int64).squeeze(1).to(device)


def _fifths(packed: Tensor) -> Tensor:
    """[n, 4] bytes -> [n, 32], 16 where a bit is set."""
    return _bits(packed.device)[packed.int()].view(torch.uint8)


def _q5_0(blocks: Tensor, out: Tensor) -> None:
    q, fifth = blocks[:, 6:], _fifths(blocks[:, 2:6])
    out[:, :16] = (q & 15 | fifth[:, :16]).view(torch.int8) - 16
    out[:, 16:] = (q >> 4 | fifth[:, 16:]).view(torch.int8) - 16
    out.mul_(_half(blocks, 0))


def _q5_1(blocks: Tensor, out: Tensor) -> None:
    q, fifth = blocks[:, 8:], _fifths(blocks[:, 4:8])
    out[:, :16], out[:, 16:] = q & 15 | fifth[:, :16], q >> 4 | fifth[:, 16:]
    out.mul_(_half(blocks, 0)).add_(_half(blocks, 2))


FILL: dict[str, Callable[[Tensor, Tensor], None]] = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0, "Q4_K": _q4_k, "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}  # fmt: skip


@lru_cache(maxsize=1)
def _diffusers_functions() -> dict[str, Callable[..., Tensor]]:
    from diffusers.quantizers.gguf.utils import dequantize_functions

    return {kind.name: function for kind, function in dequantize_functions.items()}


def unpacked(blocks: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
    """[…, bytes of a row] uint8 -> […, numbers of a row] in dtype. Scales and sums are float32 on the way."""
    numbers, size = block_of(kind)
    shape = (*blocks.shape[:-1], blocks.shape[-1] // size * numbers)
    flat = blocks.reshape(-1, size)
    if kind in FILL:
        out = torch.empty(len(flat), numbers, device=blocks.device)
        FILL[kind](flat, out)
    elif kind in _diffusers_functions():
        out = _diffusers_functions()[kind](flat, numbers, size, dtype=torch.float32)
    else:
        import gguf

        out = torch.from_numpy(gguf.dequantize(flat.cpu().numpy(), gguf.GGMLQuantizationType[kind])).to(blocks.device)
    return out.reshape(shape).to(dtype)


def unpacked_whole(blocks: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
    """The same for a large matrix, some rows at a time, so that little more memory is taken than for the result."""
    numbers, size = block_of(kind)
    out = torch.empty(*blocks.shape[:-1], blocks.shape[-1] // size * numbers, dtype=dtype, device=blocks.device)
    rows, into = blocks.reshape(-1, blocks.shape[-1]), out.view(-1, out.shape[-1])
    step = max(1, CHUNK // out.shape[-1])
    for start in range(0, len(rows), step):
        into[start : start + step] = unpacked(rows[start : start + step], kind, dtype)
    return out


def packed_linear(x: Tensor, blocks: Tensor, bias: Tensor | None, kind: str) -> Tensor:
    """F.linear with a weight in blocks: x […, in], blocks [out, bytes of a row] -> […, out]."""
    on_cpu = x.device.type == "cpu"
    few = on_cpu and x.dtype != torch.float32 and x.numel() < FEW * x.shape[-1]
    rows, inputs = max(1, (CHUNK if on_cpu else CARD_CHUNK) // x.shape[-1]), x.float() if few else x
    if rows >= blocks.shape[0]:
        out = F.linear(inputs, unpacked(blocks, kind, inputs.dtype)).to(x.dtype)
        return out if bias is None else out + bias
    out = inputs.new_empty(*x.shape[:-1], blocks.shape[0])
    for start in range(0, blocks.shape[0], rows):
        some = slice(start, start + rows)
        out[..., some] = F.linear(inputs, unpacked(blocks[some], kind, inputs.dtype))
        if on_cpu and blocks.numel() > LARGE:
            let_go(blocks[some])
    out = out.to(x.dtype)
    return out if bias is None else out + bias


# ---------------------------------------------------------------- 4 bits, in bf16 on the CPU


def suits_int4(x: Tensor, kind: str, outputs: int) -> bool:
    return (
        kind in INT4
        and x.device.type == "cpu"
        and x.dtype == torch.bfloat16
        and outputs % 16 == 0
        and not torch.is_grad_enabled()
        and hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu")
    )


def _int4_of_q4_k(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scale, least = _k_scales(blocks)
    q = blocks[:, 16:].view(-1, 4, 1, 32)
    return torch.cat([q & 15, q >> 4], 2), scale, 8 * scale - least


def _int4_of_q4_0(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scale, q = _half(blocks, 0), blocks[:, 2:]
    return torch.cat([q & 15, q >> 4], 1), scale, torch.zeros_like(scale)


def _int4_of_q4_1(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scale, q = _half(blocks, 0), blocks[:, 4:]
    return torch.cat([q & 15, q >> 4], 1), scale, 8 * scale + _half(blocks, 2)


# Numbers 0 to 15, scales and zeros of each 32: a weight is (number - 8) * scale + zero.
INT4 = {"Q4_K": _int4_of_q4_k, "Q4_0": _int4_of_q4_0, "Q4_1": _int4_of_q4_1}


def int4_of(blocks: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """blocks [out, bytes of a row] -> PyTorch's own layout, and scales and zeros [in / 32, out, 2] in bf16."""
    outputs, (numbers, size) = blocks.shape[0], block_of(kind)
    columns = blocks.shape[1] // size * numbers
    step = max(64, CHUNK // columns // 64 * 64)  # the layout is one of blocks of 64 rows
    packed, scales = [], []
    for start in range(0, outputs, step):
        some = blocks[start : start + step]
        q, scale, zero = INT4[kind](some.reshape(-1, size))
        q = q.reshape(len(some), columns).int()
        packed.append(torch.ops.aten._convert_weight_to_int4pack_for_cpu(q, 1))
        scales.append(torch.stack([scale.view(len(some), -1), zero.view(len(some), -1)], -1).bfloat16())
    return torch.cat(packed), torch.cat(scales).transpose(0, 1).contiguous()


def int4_linear(x: Tensor, int4: tuple[Tensor, Tensor], bias: Tensor | None) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    parts = [torch.ops.aten._weight_int4pack_mm_for_cpu(part, int4[0], 32, int4[1]) for part in rows.split(AT_ONCE)]
    out = parts[0] if len(parts) == 1 else torch.cat(parts)
    out = out.reshape(*x.shape[:-1], -1)
    return out if bias is None else out.add_(bias)


_MAPS: weakref.WeakValueDictionary[int, mmap.mmap] = weakref.WeakValueDictionary()  # by their first byte's address


def mapped(path: str | Path) -> Tensor:
    """A file's bytes, uint8; read as they are touched, and private, so that writing to them leaves the file alone."""
    with open(path, "rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    bytes_ = torch.frombuffer(data, dtype=torch.uint8)  # which keeps the map alive
    _MAPS[bytes_.data_ptr()] = data
    return bytes_


def trim() -> None:
    """Has glibc give back memory that was freed in pieces, which it would keep for later."""
    if sys.platform.startswith("linux") and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)


def let_go(blocks: Tensor) -> None:
    """Gives back the pages of blocks that lie in a mapped file; they come again, from the system's cache, when read."""
    first = blocks.data_ptr() if blocks.device.type == "cpu" else 0
    for start, data in list(_MAPS.items()):
        if start <= first and first + blocks.numel() <= start + len(data) and hasattr(data, "madvise"):
            page = mmap.PAGESIZE
            begin, end = -(-(first - start) // page) * page, (first - start + blocks.numel()) // page * page
            if begin < end:
                data.madvise(mmap.MADV_DONTNEED, begin, end - begin)


# ---------------------------------------------------------------- layers


class _Packed:
    """What both layers share: blocks in place of the weight, of the type that `gguf_type` names."""

    gguf_type: str
    plain_class: type[nn.Module]  # what the layer was, and is again once it is made whole

    def take(self, state: dict[str, Tensor], prefix: str, shape: tuple[int, int]) -> None:
        blocks = state.pop(f"{prefix}weight", None)
        if blocks is None:
            return
        numbers, size = block_of(self.gguf_type)
        expected = (shape[0], shape[1] // numbers * size)
        if blocks.dtype != torch.uint8 or tuple(blocks.shape) != expected:
            raise DuoGenError(
                f"The weight of {prefix.rstrip('.')} has the shape {list(blocks.shape)} in {self.gguf_type}; expected "
                f"{list(expected)}."
            )
        self.weight = nn.Parameter(blocks, requires_grad=False)


class PackedLinear(_Packed, nn.Linear):
    int4: tuple[Tensor, Tensor] | None = None  # the same weight for PyTorch's 4-bit product, once it was needed

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *args: object) -> None:
        self.take(state, prefix, (self.out_features, self.in_features))
        super()._load_from_state_dict(state, prefix, *args)

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if suits_int4(x, self.gguf_type, self.out_features):
            if self.int4 is None:
                self.int4 = int4_of(self.weight, self.gguf_type)
                let_go(self.weight)
                trim()
            return int4_linear(x, self.int4, bias)
        return packed_linear(x, self.weight, bias, self.gguf_type)


class PackedEmbedding(_Packed, nn.Embedding):
    linear_class: type[PackedLinear] = PackedLinear  # of an output that is the same matrix

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *args: object) -> None:
        self.take(state, prefix, (self.num_embeddings, self.embedding_dim))
        super()._load_from_state_dict(state, prefix, *args)

    def forward(self, ids: Tensor) -> Tensor:
        rows = unpacked(F.embedding(ids, self.weight), self.gguf_type, self.like.dtype)
        scale = getattr(self, "embed_scale", None)  # Gemma's
        return rows if scale is None else rows * torch.as_tensor(scale, device=rows.device).to(rows.dtype)


def tie_packed(model: nn.Module, head: str) -> bool:
    """Makes embedding and output one matrix of blocks; False where the embedding is none."""
    embedding, output = model.get_input_embeddings(), model.get_submodule(head)
    if not isinstance(embedding, PackedEmbedding):
        return False
    if not isinstance(output, PackedLinear):
        output.__class__, output.plain_class = embedding.linear_class, type(output)
        output.__dict__ |= {name: value for name, value in embedding.__dict__.items() if name == "compute"}
    output.gguf_type, output.weight = embedding.gguf_type, embedding.weight
    return True


def unpack_layers(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Makes every layer in blocks whole, for good: faster, and two to seven times as large."""
    whole: dict[int, nn.Parameter] = {}  # by the blocks: tied layers stay one
    for layer in [each for each in module.modules() if isinstance(each, _Packed)]:
        blocks = layer.weight
        if id(blocks) not in whole:
            whole[id(blocks)] = nn.Parameter(unpacked_whole(blocks, layer.gguf_type, dtype), requires_grad=False)
        layer.weight = whole[id(blocks)]
        layer.__class__ = layer.plain_class
        layer._parameters.pop("like", None)
        layer.__dict__.pop("int4", None)
    return module


def largest_layer(module: nn.Module) -> int:
    """How many numbers the largest Linear in blocks has, of which at most CARD_CHUNK are whole at once; 0: none."""
    layers = (layer for layer in module.modules() if isinstance(layer, PackedLinear))
    return max((layer.out_features * layer.in_features for layer in layers), default=0)


def can_stay_packed(layer: nn.Module) -> bool:
    """Whether one of the two classes can stand for a layer: of an Embedding's subclasses, only Gemma's is known."""
    return isinstance(layer, nn.Linear) or type(layer) is nn.Embedding or hasattr(layer, "embed_scale")


def use_packed_layers(
    module: nn.Module,
    formats: Mapping[str, str],
    dtype: torch.dtype = torch.float32,
    *,
    linear: type[PackedLinear] = PackedLinear,
    embedding: type[PackedEmbedding] = PackedEmbedding,
) -> None:
    """Gives quantised layers the class that holds and runs them; before the weights come.

    dtype: of an embedding's output.
    """
    for name, kind in formats.items():
        layer = module.get_submodule(name)
        if not is_packed(kind):
            raise DuoGenError(f"The layer {name} is quantised as {kind}, which is not one of GGUF's types.")
        layer.plain_class = type(layer)
        if isinstance(layer, nn.Embedding):
            layer.__class__ = embedding
            layer.like = nn.Parameter(torch.empty(0, dtype=dtype), requires_grad=False)
        else:
            layer.__class__ = linear
        layer.gguf_type = kind
        layer.weight.requires_grad_(False)
