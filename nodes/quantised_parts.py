"""MLLM and DiT of a DuoGen checkpoint that `convert --quantise` wrote: loaded onto ComfyUI's own layer classes.

In: a checkpoint's folder, looked at already. Out: the core's object and the Precision to manage it with, which is None
where nothing is quantised and everything is as ever.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.model_management as mm

if TYPE_CHECKING:
    from .managed import Precision

PARTS = ("mllm", "dit")


def precisions(folder: Path) -> dict[str, Precision]:
    """Of the parts that are quantised."""
    return {part: found for part in PARTS if (found := _precision(folder / part, part)) is not None}


def loaders(found: dict[str, Precision]) -> dict[str, Callable[[Path], Any]]:
    """For load_checkpoint."""
    return {part: partial(_loader(part), dtype=one.kept, prepare=one.prepare) for part, one in found.items()}


def load_part(part: str, folder: Path) -> tuple[Any, Precision | None]:
    found = _precision(folder / part, part)
    load = _loader(part) if found is None else loaders({part: found})[part]
    return load(folder / part), found


def _loader(part: str) -> Callable[..., Any]:
    from duogen_core.dit import load_dit
    from duogen_core.mllm.base import Mllm

    return Mllm.from_pretrained if part == "mllm" else load_dit


def _precision(folder: Path, part: str) -> Precision | None:
    from duogen_core.formats.quantised import layer_formats
    from duogen_core.formats.reading import find_weights
    from duogen_core.mllm.loading import stored_in

    from .managed import Precision

    if not layer_formats(find_weights(folder)):
        return None
    device = mm.text_encoder_device() if part == "mllm" else mm.get_torch_device()
    return Precision.of(*stored_in(folder), device)
