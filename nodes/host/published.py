"""Published models -> what travels between nodes: an MLLM, a connector, a MODEL, each from its own file or folder.

In: a path (`model_files`). Out: Managed or ModelPatcher. Headers are looked at first; then the module is built without
memory, its layers get ComfyUI's classes, and the weights are mapped from the file. A fault raises before anything is
handed on, so nothing half-loaded is left.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import comfy.model_management as mm

from duogen_core.checkpoint import CheckpointConfig

from .model_management import (
    Managed,
    Precision,
    manage_connector,
    manage_mllm,
)

if TYPE_CHECKING:
    import comfy.model_patcher


def load_mllm(path: Path, tokenizer: Path | None = None) -> Managed:
    """tokenizer: a folder, where the model is a single file. Its pictures are as large as the painter's own."""
    from duogen_core.checkpoint import PUBLISHED_PICTURE
    from duogen_core.mllm.base import Mllm
    from duogen_core.mllm.loading import stored_in, what_is

    what_is(path)  # says what is wrong with a folder or file before anything else does
    precision = Precision.of(*stored_in(path), mm.text_encoder_device())
    core = Mllm.from_pretrained(path, precision.kept, precision.prepare, tokenizer=None if path.is_dir() else tokenizer)
    managed = manage_mllm(core, precision)
    managed.config = CheckpointConfig(name=name_of(path), picture=PUBLISHED_PICTURE)
    return managed


def load_dit(path: Path, convention: str | None = None) -> comfy.model_patcher.ModelPatcher:
    """Cosmos-Predict2.5 in any of its layouts; convention: "pre-trained", "post-trained", None: as the file says."""
    from duogen_core.dit.loading import open_cosmos

    from .diffusion_model import PictureLatent, make_model

    file = open_cosmos(path, convention)
    count = sum(math.prod(entry.shape) for entry in file.weights.entries.values())
    precision = Precision.of(file.dtype, count, mm.get_torch_device())
    dit = file.load_dit(precision.kept, precision.prepare)
    return make_model(
        dit, shift=file.sampling.shift, latent_format=PictureLatent(), sampling=file.sampling, precision=precision
    )


def load_connector(path: Path, mllm: Managed | None = None) -> Managed:
    """`crossattn_proj` of a Cosmos-Predict2.5. mllm: says how many layers it has, where that is not known."""
    from duogen_core.dit.loading import open_cosmos

    shape = (mllm.core.num_layers, mllm.core.hidden_size) if mllm is not None else None
    return manage_connector(open_cosmos(path).load_connector(shape))


def name_of(path: Path) -> str:
    return path.name if path.is_dir() else path.stem
