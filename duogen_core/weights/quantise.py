"""Weights written in eight bits: which layers, and their tensors in ComfyUI's `comfy_quant` form.

In:  the pieces of a model that is about to be written (writing.py). Out: the same, with three in place of each matrix
     of the blocks: LAYER.weight, LAYER.weight_scale, LAYER.comfy_quant. The timestep's part of the blocks (adaLN),
     norms, embeddings, the output layer and the vision tower stay as they are.
    fp8   float8_e4m3fn, one scale a matrix: absmax / 448. Runs everywhere (quantised.py).
    int8  int8_tensorwise, one scale a row: absmax / 127. Closer to the original; run by ComfyUI alone.
Source: ComfyUI's QUANTIZATION.md and comfy/ops.py (_load_quantized_module).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from duogen_core.weights.headers import WeightError
from duogen_core.weights.quantised import NOTE
from duogen_core.weights.writing import CHUNK, Piece

if TYPE_CHECKING:
    from torch import Tensor

LAYERS = re.compile(
    r"(^|\.)(transformer_blocks\.\d+\.(attn\d\.to_(q|k|v|out\.0)|ff\.net\.(0\.proj|2))"
    r"|blocks\.\d+\.((self|cross)_attn\.(q|k|v|output)_proj|mlp\.layer[12])"
    r"|layers\.\d+\.(self_attn|mlp)\.\w+_proj)\.weight$"
)
FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Format:
    """name: ComfyUI's. dtype: of the weights in the file, whose largest number is `largest`. by_row: so are scales.

    note: what ComfyUI is told besides the name.
    """

    name: str
    dtype: str
    largest: float
    by_row: bool
    note: dict[str, bool]


# Inputs would be rounded to fp8 too on cards that multiply in it, clipped at 448 where no scale for them was measured.
WEIGHTS_ALONE = {"full_precision_matrix_mult": True}
FORMATS = {
    "fp8": Format("float8_e4m3fn", "F8_E4M3", 448.0, False, WEIGHTS_ALONE),
    "int8": Format("int8_tensorwise", "I8", 127.0, True, {}),
}


def quantised_pieces(pieces: Iterable[Piece], kind: str, tensor_of: Callable[[str], Tensor], where: str) -> list[Piece]:
    """tensor_of(a piece's name) -> its tensor. A model that has no such layer, or has them quantised, is refused."""
    out: list[Piece] = []
    count = 0
    for piece in pieces:
        if not LAYERS.search(piece.name) or len(piece.shape) != 2:
            out.append(piece)
            continue
        if piece.dtype not in FLOATS:
            raise WeightError(f"{where} is quantised already: {piece.name} is {piece.dtype}; give it in bf16 or fp16.")
        out.extend(_three(piece, FORMATS[kind], tensor_of))
        count += 1
    if not count:
        raise WeightError(f"{where} holds no layer that can be quantised.")
    return out


def _three(piece: Piece, to: Format, tensor_of: Callable[[str], Tensor]) -> Iterator[Piece]:
    layer = piece.name.removesuffix(".weight")
    note = json.dumps({"format": to.name, **to.note}).encode()
    rows = piece.shape[0] if to.by_row else 1
    yield Piece(piece.name, to.dtype, piece.shape, piece.shape[0] * piece.shape[1], _bytes_of(piece, to, tensor_of, 0))
    scale = (rows, 1) if to.by_row else ()
    yield Piece(f"{layer}.weight_scale", "F32", scale, 4 * rows, _bytes_of(piece, to, tensor_of, 1))
    yield Piece(f"{layer}.{NOTE}", "U8", (len(note),), len(note), lambda: [note])


def _bytes_of(
    piece: Piece, to: Format, tensor_of: Callable[[str], Tensor], which: int
) -> Callable[[], Iterator[memoryview]]:
    def read() -> Iterator[memoryview]:
        import torch

        tensor = quantise(tensor_of(piece.name), to)[which]
        flat = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
        for start in range(0, len(flat), CHUNK):
            yield memoryview(flat[start : start + CHUNK])

    return read


def quantise(weight: Tensor, to: Format) -> tuple[Tensor, Tensor]:
    """[out, in] -> (numbers of eight bits, scale float32): weight is about numbers * scale."""
    import torch

    weight = weight.float()
    largest = weight.abs().amax(dim=1, keepdim=True) if to.by_row else weight.abs().amax()
    scale = (largest / to.largest).clamp(min=1e-12)
    numbers = (weight / scale).clamp(-to.largest, to.largest)
    if to.dtype == "I8":
        return numbers.round().to(torch.int8), scale
    return numbers.to(torch.float8_e4m3fn), scale
