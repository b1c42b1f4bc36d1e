"""Weights in files -> a torch module: the one way in which MLLM, DiT, connector and VAE are loaded.

    module  = build_empty(make, where, "a PackedCosmos")      the module that make() returns, without memory for weights
    formats = check_module(module, weights, where, "DiT")     names and shapes, from headers alone
    fill_module(module, weights, formats)                     the weights, mapped from the disk

In:  `WeightFiles`, of which only headers were read, and `rename`, a tensor's name in the file -> in the module.
Out: the module in eval mode on the CPU, every tensor there exactly once. What needs no conversion stays mapped, so
     loading needs little more memory than the model. Whatever does not fit is named before any weight is read.
Quantised layers (quantised.py) stay as they are where they are Linear and `prepare` gives them a class that runs them;
others are made whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from duogen_core.errors import DuoGenError, first_line, is_out_of_memory
from duogen_core.weights.gguf import is_packed
from duogen_core.weights.gguf_layers import can_stay_packed, unpacked_whole, use_packed_layers
from duogen_core.weights.headers import Entry, WeightError, check_tensors, shapes_of
from duogen_core.weights.quantised import (
    FP8,
    Prepare,
    check_names,
    dequantised,
    is_extra,
    layer_formats,
    plain_entry,
    unified,
    use_scaled_linear,
)
from duogen_core.weights.reading import WeightFiles

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
BLOCKS = {"nvfp4": 16, "mxfp8": 32}  # weights in these formats have whole blocks of rows and columns

Rename = Callable[[str], str]


def build_empty(make: Callable[[], nn.Module], where: object, what: str, *, real_buffers: bool = False) -> nn.Module:
    """Runs make() without memory for weights. A configuration that describes no such module is an error that names it.

    real_buffers: buffers are made for real, where they are in no file, such as the rotary tables of an MLLM.
    """
    from accelerate import init_empty_weights

    try:
        with init_empty_weights(include_buffers=False) if real_buffers else torch.device("meta"):
            return make()
    except DuoGenError as error:
        raise type(error)(f"{where}: {error}") from None
    except Exception as error:  # a wrong value raises whatever the layer that meets it raises
        if is_out_of_memory(error):
            raise
        raise WeightError(f"{where} does not describe {what}: {first_line(error)}.") from error


def plain_entries(
    weights: WeightFiles, where: object, rename: Rename = str, skip: Collection[str] = ()
) -> tuple[dict[str, Entry], dict[str, str]]:
    """Returns the tensors by the module's names, with the shapes they had before they were quantised; and {layer of the
    module: format} of the quantised layers. Refuses what could be read in part only, or in two ways."""
    formats = {
        rename(f"{layer}.weight").removesuffix(".weight"): format_
        for layer, format_ in layer_formats(weights).items()
        if f"{layer}.weight" not in skip
    }
    check_names(weights, formats, where, rename, skip)
    found = {}
    for name, entry in weights.entries.items():
        if is_extra(name) or name in skip:
            continue
        name = rename(name)
        format_ = formats.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        found[name] = plain_entry(entry, format_)
    return found, formats


def check_module(
    module: nn.Module,
    weights: WeightFiles,
    where: str | Path,
    what: str,
    *,
    rename: Rename = str,
    skip: Collection[str] = (),
    optional: Collection[str] = (),
) -> dict[str, str]:
    """Raises a WeightError unless nothing is missing, nothing unexpected, and every shape right.

    what: the model's name in the sentence. skip: tensors that are no weights. optional: names that may be absent.
    Returns {layer of the module: format} of the quantised layers.
    """
    (found, formats), expected = plain_entries(weights, where, rename, skip), shapes_of(module)
    for name in (f"{layer}.weight" for layer, format_ in formats.items() if format_ in BLOCKS):
        want, block = expected.get(name), BLOCKS[formats[name.removesuffix(".weight")]]
        if want and name in found and found[name].shape == tuple(-(-n // block) * block for n in want):
            found[name] = Entry(found[name].dtype, want)  # filled up to whole blocks
    check_tensors(found, expected, where, what, optional)
    for layer, format_ in formats.items():
        if (
            format_ not in FP8.values()
            and not is_packed(format_)
            and not isinstance(module.get_submodule(layer), nn.Linear)
        ):
            raise WeightError(f"{where}: {layer} is quantised as {format_}, which only linear layers can be.")
    return formats


def use_quantised_layers(module: nn.Module, formats: Mapping[str, str]) -> None:
    """Gives the quantised layers of a module the classes that hold and run them; before its weights are loaded."""
    packed = {layer: kind for layer, kind in formats.items() if is_packed(kind)}
    use_packed_layers(module, packed)
    use_scaled_linear(module, {layer: kind for layer, kind in formats.items() if layer not in packed})


def _stays(layer: nn.Module, kind: str) -> bool:
    """Whether a layer can keep its weight quantised."""
    return can_stay_packed(layer) if is_packed(kind) else isinstance(layer, nn.Linear)


def fill_module(
    module: nn.Module,
    weights: WeightFiles,
    formats: dict[str, str],
    *,
    rename: Rename = str,
    skip: Collection[str] = (),
    dtype: torch.dtype | None = None,
    prepare: Prepare | None = use_quantised_layers,
    copy: bool = False,
) -> nn.Module:
    """Puts the weights into their places, one by one; returns the module in eval mode.

    formats: as check_module returns them. dtype: of what is not quantised; None keeps the file's.
    prepare(module, {quantised Linear: format}) gives layers other classes before their weights come; None: every
    quantised layer is made whole. copy: nothing stays mapped, for files that are written anew while the module lives.
    """
    quantised: dict[str, dict[str, Tensor]] = {}  # layers that stay quantised, and their tensors
    if prepare is not None:
        quantised = {layer: {} for layer, kind in formats.items() if _stays(module.get_submodule(layer), kind)}
        prepare(module, {layer: formats[layer] for layer in quantised})
    dequantise: dict[str, dict[str, Tensor]] = {}  # layers to be made whole, and their tensors
    # Names first: a layer's weight and its scale may have the names of two layouts.
    wanted = [name for name in weights.entries if name not in skip]
    for name, tensor in unified(((rename(name), tensor) for name, tensor in weights.tensors(wanted)), formats):
        layer, _, last = name.rpartition(".")
        if layer in formats and (last == "weight" or is_extra(name)):
            into = quantised if layer in quantised else dequantise
            into.setdefault(layer, {})[last] = tensor.clone() if copy else tensor
            continue
        # A norm or bias may have been cast along with the matrices: no layer can compute with it in fp8.
        cast = tensor.dtype in (torch.float8_e4m3fn, torch.float8_e5m2)
        converted = tensor.to(dtype or (torch.bfloat16 if cast else tensor.dtype))
        if copy and converted is tensor:
            converted = tensor.clone()
        if layer in quantised:
            quantised[layer][last] = converted
        else:
            _set(module, name, converted)
    for layer, state in quantised.items():
        module.get_submodule(layer).load_state_dict(state, strict=False, assign=True)
    for layer, state in dequantise.items():
        kind, kept = formats[layer], dtype or torch.bfloat16
        if is_packed(kind):
            matrix = unpacked_whole(state["weight"], kind, kept)
        else:
            matrix = dequantised(state["weight"], state.get("weight_scale"), kept)
        _set(module, f"{layer}.weight", matrix)
    weights.check_unchanged()
    return module.eval()


def check_filled(module: nn.Module, formats: dict[str, str], where: object) -> None:
    """Raises a WeightError where a weight has no memory yet. Quantised layers may keep theirs elsewhere."""
    empty = [name for name, weight in module.named_parameters() if weight.is_meta]
    empty = [name for name in empty if name.rpartition(".")[0] not in formats]
    if empty:
        raise WeightError(f"{where}: no weights came for {empty[0]} and {len(empty) - 1} more.")


def _set(module: nn.Module, name: str, tensor: Tensor) -> None:
    owner, _, attribute = name.rpartition(".")
    owner = module.get_submodule(owner)
    if attribute in owner._buffers:
        owner._buffers[attribute] = tensor
    else:
        owner._parameters[attribute] = nn.Parameter(tensor, tensor.is_floating_point())


def main_dtype(weights: WeightFiles, skip: Collection[str] = ()) -> torch.dtype:
    """Returns the type of most weights that are not quantised; bf16 where all are quantised."""
    counts = {torch.bfloat16: 0}
    for name, entry in weights.entries.items():
        if entry.dtype in FLOATS and name not in skip and not is_extra(name):
            counts[FLOATS[entry.dtype]] = counts.get(FLOATS[entry.dtype], 0) + math.prod(entry.shape)
    return max(counts, key=counts.__getitem__)
