"""The DiT of a DuoGen checkpoint -> its module, built without memory, with its weights mapped from the file.

In:  a diffusers folder of one of our classes, with the notes and scales of quantised.py where `convert --quantise`
     wrote it. Out: the module in eval mode, every weight in the type of the file unless another is named, quantised
     layers as they are. Names and shapes are compared before any weight is read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duogen_core.errors import DuoGenError
from duogen_core.formats.quantised import is_extra, layer_formats, plain_shape, unified, use_scaled_linear
from duogen_core.formats.reading import WeightFiles, find_weights
from duogen_core.weights import Entry, WeightError, check_tensors, shapes_of

if TYPE_CHECKING:
    import torch
    from torch import nn

    from duogen_core.formats.quantised import Prepare

WHAT = "weights of the DiT"


def weights_in(folder: str | Path) -> WeightFiles:
    file = Path(folder) / "diffusion_pytorch_model.safetensors"
    return WeightFiles([file], WHAT) if file.is_file() else find_weights(folder, WHAT)


def is_quantised(folder: str | Path) -> bool:
    return bool(layer_formats(weights_in(folder)))


def load_mapped(
    folder: str | Path, cls: Any, dtype: torch.dtype | None = None, prepare: Prepare | None = None
) -> nn.Module:
    """dtype: of what is not quantised; None keeps the file's. prepare: as in Mllm.from_pretrained."""
    import torch

    folder = Path(folder)
    weights = weights_in(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    try:
        with torch.device("meta"):
            dit = cls.from_config(config)
    except (ValueError, TypeError, RuntimeError, LookupError, AttributeError, ArithmeticError) as error:
        if isinstance(error, DuoGenError):
            raise
        raise WeightError(f"{folder / 'config.json'} describes no {cls.__name__} ({error}).") from error
    formats = layer_formats(weights)
    check_tensors(plain_entries(weights, formats), shapes_of(dit), folder, "DiT")
    (prepare or use_scaled_linear)(dit, formats)
    state = {}
    for name, tensor in unified(weights.tensors(), formats):
        layer, _, last = name.rpartition(".")
        plain = not is_extra(name) and not (last == "weight" and layer in formats)
        state[name] = tensor.to(dtype) if dtype is not None and plain else tensor
    dit.load_state_dict(state, strict=False, assign=True)
    weights.check_unchanged()
    return dit.eval()


def plain_entries(weights: WeightFiles, formats: dict[str, str]) -> dict[str, Entry]:
    """The model's tensors in the shapes that they had before they were quantised."""
    return {
        name: Entry(entry.dtype, plain_shape(entry.shape, formats.get(name.removesuffix(".weight"))))
        for name, entry in weights.entries.items()
        if not is_extra(name)
    }
