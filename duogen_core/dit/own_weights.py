"""The DiT of a DuoGen checkpoint -> its module, built without memory, with its weights mapped from the file.

In:  a diffusers folder of one of our classes, with the notes and scales of quantised.py where `convert --quantise`
     wrote it. Out: the module in eval mode, every weight in the type of the file unless another is named, quantised
     layers as they are. Names and shapes are compared before any weight is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from duogen_core.errors import DuoGenError, first_line, is_out_of_memory
from duogen_core.files import read_json
from duogen_core.weights.headers import (
    Entry,
    WeightError,
    check_sizes,
    check_tensors,
    shapes_of,
)
from duogen_core.weights.quantised import check_names, is_extra, layer_formats, plain_entry, unified, use_scaled_linear
from duogen_core.weights.reading import (
    STEMS,
    WeightFiles,
    find_weights,
    folder_weights,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import nn

    from duogen_core.weights.quantised import Prepare

WHAT = "weights of the DiT"


def weights_in(folder: str | Path) -> WeightFiles:
    """Those under diffusers' name, in one file or in shards, else the one set that the folder holds."""
    for end in ("", ".index.json"):
        if (Path(folder) / f"{STEMS[0]}.safetensors{end}").is_file():
            return folder_weights(folder, STEMS[0], WHAT)
    return find_weights(folder, WHAT)


def is_quantised(folder: str | Path) -> bool:
    return bool(layer_formats(weights_in(folder)))


def load_mapped(
    folder: str | Path,
    cls: Any,
    dtype: torch.dtype | None = None,
    prepare: Prepare | None = None,
    settings: Mapping[str, Any] | None = None,
) -> nn.Module:
    """dtype: of what is not quantised; None keeps the file's. prepare: as in Mllm.from_pretrained.

    settings: values that take the place of those of config.json.
    """
    import torch

    folder = Path(folder)
    weights = weights_in(folder)
    config = read_json(folder / "config.json", "configuration of a DiT")
    if not isinstance(config, dict):
        raise WeightError(f"{folder / 'config.json'} holds a {type(config).__name__}; expected a JSON object.")
    config |= settings or {}
    check_sizes(config, weights.entries, folder / "config.json")
    try:
        with torch.device("meta"):
            dit = cls.from_config(config)
    except DuoGenError as error:
        raise type(error)(f"{folder / 'config.json'}: {error}") from None
    except Exception as error:  # a wrong value raises whatever the layer that meets it raises
        if is_out_of_memory(error):
            raise
        raise WeightError(f"{folder / 'config.json'} describes no {cls.__name__} ({first_line(error)}).") from error
    formats = layer_formats(weights)
    check_tensors(plain_entries(weights, formats), shapes_of(dit), folder, "DiT")
    check_names(weights, formats, folder)
    (prepare or use_scaled_linear)(dit, formats)
    state = {}
    for name, tensor in unified(weights.tensors(), formats):
        layer, _, last = name.rpartition(".")
        if not is_extra(name) and not (last == "weight" and layer in formats):
            # A norm or bias that was cast along with the matrices: no layer can compute with it in fp8.
            cast = tensor.dtype in (torch.float8_e4m3fn, torch.float8_e5m2)
            tensor = tensor.to(dtype or (torch.bfloat16 if cast else tensor.dtype))
        state[name] = tensor
    dit.load_state_dict(state, strict=False, assign=True)
    weights.check_unchanged()
    return dit.eval()


def plain_entries(weights: WeightFiles, formats: dict[str, str]) -> dict[str, Entry]:
    """The model's tensors as they were before they were quantised."""
    return {
        name: plain_entry(entry, formats.get(name.removesuffix(".weight")) if name.endswith(".weight") else None)
        for name, entry in weights.entries.items()
        if not is_extra(name)
    }
