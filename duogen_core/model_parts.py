"""A model put together from published files: an MLLM, Cosmos-Predict2.5, a Wan VAE. Nothing of it was tuned together.

In: a path for each part (folder or single file). Out: Components, as a DuoGen checkpoint gives them. Whether the parts
belong together is looked at before any weights are loaded.
"""

from __future__ import annotations

import os

from duogen_core.checkpoint import (
    CheckpointConfig,
    Components,
    PictureSize,
    check_fit,
    resolve_mllm,
)
from duogen_core.dit.published import open_cosmos
from duogen_core.weights.cosmos_keys import model_name

PICTURE = PictureSize(1280, 704, 1280)  # the pipeline's own size


def load_parts(
    mllm: str | os.PathLike,
    dit: str | os.PathLike,
    vae: str | os.PathLike,
    *,
    convention: str | None = None,
    tokenizer: str | os.PathLike | None = None,
) -> Components:
    """On the CPU, in eval mode, in the types of the files. tokenizer: a folder, where the MLLM is a single file."""
    from duogen_core.mllm.base import Mllm
    from duogen_core.mllm.loading import what_is
    from duogen_core.vae import PictureVae

    file, mllm = open_cosmos(dit, convention), resolve_mllm(mllm)
    text = what_is(mllm)[1]
    text = text.get("text_config") or text
    shape = text["num_hidden_layers"], text["hidden_size"]
    connector = file.load_connector(shape)
    writer = Mllm.from_pretrained(mllm, tokenizer=tokenizer)
    config = CheckpointConfig(model_name(file.config), file.sampling, PICTURE)
    components = Components(writer, connector, file.load_dit(), PictureVae.from_pretrained(vae), config)
    check_fit(components)
    return components
