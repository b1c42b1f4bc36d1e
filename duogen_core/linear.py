"""Float32 Linear layers and attention on the CPU, by oneDNN where PyTorch's own choice is slow. Equal to rounding.

PyTorch multiplies float32 matrices with MKL, which on processors that are not Intel's stays with AVX2. oneDNN, in the
same PyTorch, takes AVX512 on all of them. Measured on an AMD EPYC, one core, processor time: 256 rows through 512 to
2048 channels 5.1 -> 2.2 ms, 128 rows through 192 to 768 0.34 -> 0.17 ms; a single row 13 -> 21 us, so few rows stay.
Attention of 256 queries to 512, 1,280 and 2,560 keys, 8 heads of 64: 2.9 -> 1.8, 7.4 -> 4.1 and 15.0 -> 8.1 ms.
What decides is the processor and the shapes, never a measurement: one seed gives the same bytes every time.
"""

from __future__ import annotations

import platform
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW = 32  # rows from which on oneDNN is faster
# Attention: scores of one head from which on it is faster than PyTorch's kernel, and how many are held at once.
SCORES, HELD = 1 << 17, 1 << 20


@lru_cache(maxsize=1)
def onednn_is_faster() -> bool:
    """Whether this is a processor with AVX512 that is not Intel's, and this PyTorch has both libraries."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return False
    try:
        processor = Path("/proc/cpuinfo").read_text("utf-8", "replace")[:4000]
    except OSError:  # not Linux
        processor = platform.processor()
    return "AuthenticAMD" in processor and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear: x [..., in], weight [out, in], bias [out] or None -> [..., out]."""
    if (
        torch.compiler.is_compiling()  # first: Inductor chooses for itself, without a guard by shape
        or x.device.type != "cpu"
        or x.dtype != torch.float32
        or x.numel() < FEW * x.shape[-1]
        or weight.device.type != "cpu"
        or weight.dtype != torch.float32
        or (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))  # it has no gradient
        or not weight.is_contiguous()  # a slice of columns takes a slow way there: 27 ms in the place of 0.07
        or not onednn_is_faster()
        or type(x) is not Tensor
    ):
        return F.linear(x, weight, bias)
    return product(x, weight, bias, "none", [], "")


def product(*arguments: object) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(*arguments)  # what Inductor puts in for a Linear layer on the CPU


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """F.scaled_dot_product_attention without a mask: q [B, heads, Lq, D], k and v [B, heads, Lk, D] -> as q."""
    queries, keys = q.shape[2], k.shape[2]
    if (
        q.device.type != "cpu"
        or queries * keys < SCORES
        or queries < 4 * FEW
        or not (q.dtype == k.dtype == v.dtype == torch.float32)
        or (torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad))
        or not onednn_is_faster()
        or not (type(q) is type(k) is type(v) is Tensor)
    ):
        return F.scaled_dot_product_attention(q, k, v)
    batch, heads, _, width = q.shape
    out = q.new_empty(batch, queries, heads, width)  # the order in which the heads are joined afterwards
    q = q * width**-0.5
    rows = max(FEW, min(256, HELD // keys))
    for b in range(batch):
        for h in range(heads):
            # Whole rows in a row of their own: a slice of columns, as heads are cut out, takes oneDNN's slow way.
            key, value = k[b, h].contiguous(), v[b, h].contiguous().t()
            for start in range(0, queries, rows):
                some = slice(start, start + rows)
                scores = product(q[b, h, some], key, None, "none", [], "")
                out[b, some, h] = product(scores.softmax(-1), value, None, "none", [], "")
    return out.transpose(1, 2)


class FastLinear(nn.Linear):
    """nn.Linear through `linear`. `self` may stand for a layer whose weights ComfyUI has cast for this call."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def use_fast_linear(module: nn.Module) -> None:
    """Lets the plain Linear layers inside run through `linear`, where that can be faster."""
    if onednn_is_faster():
        for layer in module.modules():
            if type(layer) is nn.Linear:
                layer.__class__ = FastLinear
