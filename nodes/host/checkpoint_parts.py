"""MLLM and DiT of a DuoGen checkpoint, loaded onto ComfyUI's own layer classes.

In: a checkpoint's folder, looked at already. Out: the core's object and the Precision to manage it with. Weights are
mapped from the files in the types they have there, quantised ones (`convert --quantise`) included.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.model_management as mm

if TYPE_CHECKING:
    from .model_management import Precision

PARTS = ("mllm", "dit")


def precisions(folder: Path) -> dict[str, Precision]:
    return {part: _precision(folder / part, part) for part in PARTS}


def loaders(found: dict[str, Precision]) -> dict[str, Callable[[Path], Any]]:
    """For load_checkpoint."""
    return {part: partial(_loader(part), dtype=one.kept, prepare=one.prepare) for part, one in found.items()}


def load_part(part: str, folder: Path) -> tuple[Any, Precision]:
    found = _precision(folder / part, part)
    return loaders({part: found})[part](folder / part), found


def _loader(part: str) -> Callable[..., Any]:
    from duogen_core.dit import load_dit
    from duogen_core.mllm.base import Mllm

    return Mllm.from_pretrained if part == "mllm" else load_dit


def _precision(folder: Path, part: str) -> Precision:
    from duogen_core.mllm.loading import stored_in

    from .model_management import Precision

    device = mm.text_encoder_device() if part == "mllm" else mm.get_torch_device()
    return Precision.of(*stored_in(folder, f"weights of the {'MLLM' if part == 'mllm' else 'DiT'}"), device)
