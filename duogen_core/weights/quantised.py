"""Quantised layers in weight files: which they are, fp8 layers that run anywhere, and how to write them.

Reading. ComfyUI marks a quantised layer in one of four ways: a tensor `LAYER.comfy_quant` (JSON as bytes), the same in
the file's metadata (`_quantization_metadata`), the older `scaled_fp8` with `LAYER.scale_weight`, or nothing but a
weight in fp8. `layer_formats` reads all four from headers; `unified` gives the tensors of all four the names of the
first, which ComfyUI's own mixed-precision layers and our `ScaledLinear` take.

Writing (`convert --quantise`). `quantised_pieces` takes the pieces of a model that is about to be written (writing.py)
and puts three in place of each matrix of the blocks: LAYER.weight, LAYER.weight_scale, LAYER.comfy_quant. The
timestep's part of the blocks (adaLN), norms, embeddings, the output layer and the vision tower stay as they are.
    fp8   float8_e4m3fn, one scale per matrix: absmax / 448. Runs everywhere.
    int8  int8_tensorwise, one scale per row: absmax / 127. Closer to the original; runs in ComfyUI only.
Source: ComfyUI's QUANTIZATION.md, comfy/utils.py (convert_old_quants), comfy/quant_ops.py, comfy/ops.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from duogen_core.errors import DuoGenError
from duogen_core.weights.gguf import is_packed
from duogen_core.weights.headers import Entry, WeightError
from duogen_core.weights.writing import CHUNK, Piece

if TYPE_CHECKING:
    from duogen_core.weights.reading import WeightFiles

NOTE = "comfy_quant"
OLD_NAMES = {"scale_weight": "weight_scale", "scale_input": "input_scale"}
PARTS_OF_W4A8 = ("weight_s_rel", "weight_s_channel", "weight_codebook")
EXTRAS = (NOTE, "weight_scale", "weight_scale_2", "input_scale", "pre_quant_scale", *PARTS_OF_W4A8, *OLD_NAMES)
FP8 = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
PACKED_BY_TWO = ("nvfp4", "convrot_w4a4", "asym_w4a8_int8")  # two numbers lie in one byte of a weight

Prepare = Callable[[nn.Module, Mapping[str, str]], None]


def layer_formats(weights: WeightFiles) -> dict[str, str]:
    """{layer: format} of all quantised layers, by the file's own names; reads headers and the small notes only."""
    formats = {
        name.removesuffix(".weight"): FP8[entry.dtype]
        for name, entry in weights.entries.items()
        if entry.dtype in FP8 and name.endswith(".weight") and len(entry.shape) > 1
    }
    formats |= {
        name.removesuffix(".weight"): entry.dtype
        for name, entry in weights.entries.items()
        if name.endswith(".weight") and is_packed(entry.dtype)
    }
    # The more a source says, the later it comes, since the last word counts: a weight in fp8 says only its type.
    formats.update(_of_metadata(weights))
    for name in weights.entries:
        if name.endswith(f".{NOTE}"):
            formats[name.removesuffix(f".{NOTE}")] = _of_note(weights, name)
    return formats


def _of_metadata(weights: WeightFiles) -> dict[str, str]:
    text = weights.metadata.get("_quantization_metadata")
    if text is None:
        return {}
    try:
        return {str(layer): str(notes["format"]) for layer, notes in json.loads(text)["layers"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightError(f"{weights.files[0]}: its _quantization_metadata is not readable ({error}).") from None


def _of_note(weights: WeightFiles, name: str) -> str:
    try:
        return str(json.loads(weights.note(name))["format"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, WeightError):
            raise
        raise WeightError(f"{weights.files[0]}: {name} does not say how its layer is quantised ({error}).") from None


def is_extra(name: str) -> bool:
    """Whether a tensor belongs to a layer's quantisation rather than to the model."""
    return name.rpartition(".")[2] in EXTRAS


def check_names(
    weights: WeightFiles,
    formats: Mapping[str, str],
    where: object,
    rename: Callable[[str], str] = str,
    skip: Iterable[str] = (),
) -> None:
    """Refuses weights that could only be read in part, or in two ways; before any of them is read.

    Every tensor is there once, whatever names a file may give it, and every note and scale has its quantised layer.
    formats: {layer: format} by the names that `rename` gives. skip: tensors that are no weights.
    """
    names: dict[str, str] = {}  # the module's name -> the file's
    for name in weights.entries:
        if name in skip:
            continue
        layer, _, last = rename(name).rpartition(".")
        full_name = f"{layer}.{OLD_NAMES.get(last, last)}"
        if full_name in names:
            raise WeightError(
                f"{where} holds {full_name} twice, as {names[full_name]} and as {name}; give a file of one model."
            )
        names[full_name] = name
    for full_name, name in names.items():
        layer = full_name.rpartition(".")[0]
        if is_extra(full_name) and layer not in formats:
            raise WeightError(
                f"{where} describes the quantisation of {layer}, which it does not hold as quantised: {name} stands "
                f"alone; give a whole file of one model."
            )
    for layer, format_ in formats.items():
        name = names.get(f"{layer}.weight")
        if name is None:
            raise WeightError(f"{where} says how {layer} is quantised, but holds no weight of that layer.")
        stored = weights.entries[name].dtype
        if format_ in FP8.values() and FP8.get(stored) != format_:
            raise WeightError(f"{where}: {layer} is said to be quantised as {format_}, but is stored as {stored}.")


def plain_entry(entry: Entry, format_: str | None) -> Entry:
    """A weight's type and shape before it was quantised; `format_` is None for one that never was."""
    return Entry("BF16", plain_shape(entry.shape, format_)) if format_ else entry


def plain_shape(shape: tuple[int, ...], format_: str | None) -> tuple[int, ...]:
    """The shape of a weight before it was packed."""
    return (*shape[:-1], 2 * shape[-1]) if format_ in PACKED_BY_TWO and len(shape) == 2 else shape


def unified(tensors: Iterator[tuple[str, Tensor]], formats: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
    """The tensors with every quantised layer in one form: LAYER.weight, .weight_scale, …, .comfy_quant."""
    scaled: set[str] = set()
    noted: set[str] = set()
    for name, tensor in tensors:
        layer, _, last = name.rpartition(".")
        last = OLD_NAMES.get(last, last)
        if last == NOTE:
            noted.add(layer)  # it may say more than the format
        if last == "weight_scale":
            scaled.add(layer)
        yield f"{layer}.{last}", tensor
    for layer, format_ in formats.items():
        if is_packed(format_):  # GGUF's blocks hold their scales
            continue
        note: dict[str, object] = {"format": format_}
        if layer not in scaled and format_ in FP8.values():  # cast to fp8 without a scale
            yield f"{layer}.weight_scale", torch.ones(())
            # No scale of the inputs was measured either, so only the weight may be in fp8 (see WEIGHTS_ALONE).
            note["full_precision_matrix_mult"] = True
        if layer not in noted:
            yield f"{layer}.{NOTE}", torch.tensor(list(json.dumps(note).encode()), dtype=torch.uint8)


def dequantised(weight: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """fp8 [out, …] and its scale, one number or one per row -> the weight."""
    weight = weight.to(dtype)
    return weight if scale is None else weight * scale.to(dtype).reshape(-1, *[1] * (weight.ndim - 1))


class ScaledLinear(nn.Linear):
    """A Linear whose weight stays in fp8 and is made whole each time it is used: half the memory, a little slower."""

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *args: object) -> None:
        for unused in (NOTE, "input_scale"):  # the scale for multiplying in fp8, which is not done here
            state.pop(prefix + unused, None)
        scale = state.pop(prefix + "weight_scale", None)
        self.register_buffer("weight_scale", scale)
        super()._load_from_state_dict(state, prefix, *args)
        if scale is not None and scale.numel() not in (1, self.out_features):
            raise WeightError(
                f"The scale of {prefix.rstrip('.')} has {scale.numel()} numbers; expected 1 or {self.out_features}."
            )
        self.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, dequantised(self.weight, self.weight_scale, x.dtype), self.bias)


def use_scaled_linear(module: nn.Module, formats: Mapping[str, str]) -> None:
    """Gives the quantised layers of a module the class that can hold them; before its weights are loaded."""
    for layer, format_ in formats.items():
        if format_ not in FP8.values():
            raise DuoGenError(
                f"The layer {layer} is quantised as {format_}, which runs in ComfyUI alone; "
                f"give a file in bf16, fp16 or fp8."
            )
        module.get_submodule(layer).__class__ = ScaledLinear


# ---------------------------------------------------------------- writing

LAYERS = re.compile(
    r"(^|\.)((transformer_)?blocks\.\d+\.(attn\d\.to_(q|k|v|out\.0)|ffn?\.net\.(0\.proj|2))"
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
        tensor = quantise(tensor_of(piece.name), to)[which]
        flat = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
        for start in range(0, len(flat), CHUNK):
            yield memoryview(flat[start : start + CHUNK])

    return read


def quantise(weight: Tensor, to: Format) -> tuple[Tensor, Tensor]:
    """[out, in] -> (numbers of eight bits, scale float32): weight is about numbers * scale."""
    weight = weight.float()
    largest = weight.abs().amax(dim=1, keepdim=True) if to.by_row else weight.abs().amax()
    scale = (largest / to.largest).clamp(min=1e-12)
    numbers = (weight / scale).clamp(-to.largest, to.largest)
    if to.dtype == "I8":
        return numbers.round().to(torch.int8), scale
    return numbers.to(torch.float8_e4m3fn), scale
