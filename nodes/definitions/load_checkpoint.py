"""DuoGen Load Checkpoint: one folder -> MLLM, connector, MODEL, VAE.

Checkpoints are the folders in this pack's `models/` (the bundled `duogen-tiny`) and in ComfyUI's `models/duogen`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import folder_paths
from comfy_api.latest import io

from .. import PACK
from . import sockets

if TYPE_CHECKING:
    import numpy as np

    from duogen_core.vae import PictureVae

    from ..host.diffusion_model import PictureLatent

FOLDER = "duogen"
INDEX = "model_index.json"
WAN_WIDTH = 96  # of Wan 2.1's VAE as published


def register_model_folder() -> None:
    """ComfyUI's models/duogen, beside whatever extra_model_paths.yaml names for `duogen`."""
    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))


def checkpoints() -> dict[str, Path]:
    """Name -> folder, in the order of the list. A folder of the user's without an index is listed as well: loading it
    says what it lacks, which helps more than its absence."""
    found = {entry.parent.name: entry.parent for entry in sorted((PACK / "models").glob(f"*/{INDEX}"))}
    for root in folder_paths.get_folder_paths(FOLDER):
        if Path(root).is_dir():
            for folder in sorted(entry for entry in Path(root).iterdir() if entry.is_dir()):
                found.setdefault(folder.name, folder)
    return found


def checkpoint_folder(name: str) -> Path:
    from duogen_core.errors import DuoGenError

    folder = checkpoints().get(name)
    if folder is None:
        raise DuoGenError(f"There is no DuoGen checkpoint {name!r}; put its folder into models/{FOLDER}.")
    return folder


def checkpoint_fingerprint(name: str, *parts: str) -> str:
    """Changes when a file of the checkpoint (or of these parts of it) does, so that it is loaded again."""
    folder = checkpoints().get(name)
    if folder is None:
        return ""
    return fingerprint_of(folder / INDEX, *(folder / part for part in parts or ("",)))


def fingerprint_of(*paths: Path) -> str:
    """Changes when one of these files, or a file in one of these folders, does. Times and sizes tell it, and not the
    content, which may be gigabytes; the time at which a file was put there (ctime) tells of an older one as well."""
    files = []
    for path in paths:
        inside = [Path(top, file) for top, _, names in os.walk(path, followlinks=True) for file in names]
        files += sorted(inside) if path.is_dir() else [path]
    stats = [(str(file), file.stat()) for file in files if file.is_file()]
    return repr([(file, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino) for file, stat in stats])


class DuoGenLoadCheckpoint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenLoadCheckpoint",
            display_name="DuoGen Load Checkpoint",
            category="DuoGen/loaders",
            description="Loads a DuoGen model: the language model that writes, the connector, the diffusion "
            "transformer that draws, and its VAE. duogen-tiny comes with this pack and needs no download.",
            search_aliases=["interleaved", "duogen-tiny", "load duogen"],
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=list(checkpoints()),
                    tooltip="The DuoGen model to load. Listed are the one that comes with this pack and every folder "
                    "in ComfyUI's models/duogen.",
                ),
            ],
            outputs=[
                sockets.Mllm.Output(
                    "mllm", tooltip="The language model: writes, decides when to draw, looks at pictures."
                ),
                sockets.Connector.Output("connector", tooltip="Carries what the language model thinks to the DiT."),
                io.Model.Output(
                    "model", tooltip="The diffusion transformer, for KSampler and every node that takes a MODEL."
                ),
                io.Vae.Output("vae", tooltip="The VAE (Wan 2.1 family) of this model."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str) -> str:
        return checkpoint_fingerprint(checkpoint)

    @classmethod
    def execute(cls, checkpoint: str) -> io.NodeOutput:
        from duogen_core.checkpoint import check_checkpoint, load_checkpoint

        from ..host import checkpoint_parts
        from ..host.diffusion_model import make_model
        from ..host.model_management import manage_connector, manage_mllm

        folder = checkpoint_folder(checkpoint)
        check_checkpoint(folder)
        precisions = checkpoint_parts.precisions(folder)
        parts = load_checkpoint(folder, loaders=checkpoint_parts.loaders(precisions))
        vae, latents = load_vae(parts.vae)
        sampling = parts.config.sampling
        model = make_model(
            parts.dit, shift=sampling.shift, latent_format=latents, sampling=sampling, precision=precisions["dit"]
        )
        mllm = manage_mllm(parts.mllm, precisions["mllm"])
        mllm.config = parts.config
        return io.NodeOutput(mllm, manage_connector(parts.connector), model, vae)


def load_vae(vae: PictureVae, *, latents_only: bool = False) -> tuple[Any, PictureLatent]:
    """The core's VAE -> (ComfyUI's VAE, what its latents look like to a MODEL)."""
    import comfy.sd
    import torch

    from ..host.diffusion_model import PictureLatent
    from ..host.model_management import SMALL_MODEL

    small = sum(p.numel() for p in vae.model.parameters()) < SMALL_MODEL // 10
    statistics = vae.model.config
    colours = preview_colours(vae) if small else None
    own_width = None if statistics.base_dim == WAN_WIDTH else statistics.base_dim
    latents = PictureLatent(statistics.latents_mean, statistics.latents_std, colours, own_width)
    if latents_only:
        return None, latents
    loaded = comfy.sd.VAE(sd=vae.to_single_file(), dtype=torch.float32 if small else None)
    loaded.throw_exception_if_invalid()
    loaded.duogen_latents = latents  # for fit.check_vae
    return loaded, latents


def preview_colours(vae: PictureVae) -> tuple[list[list[float]], list[float]]:
    """(16 x RGB factors, bias): the linear map from this VAE's latents to colours that fits its own world best.

    ComfyUI's previews need one, and the published one fits Wan's own weights only. A VAE this small is at home in the
    pictures it was trained on and nowhere else, so the map is fitted to a few of those: every colour and kind of shape.
    """
    import numpy as np

    latents, colours = [], []
    for chart in sketchbook_charts():
        height, width = (side // 8 for side in chart.shape[:2])
        latents.append(vae.encode(chart)[0].flatten(1).T.double().cpu().numpy())  # [cells, 16]
        colours.append(chart.reshape(height, 8, width, 8, 3).mean((1, 3)).reshape(-1, 3) / 127.5 - 1)
    cells = np.vstack(latents)
    solution: Any = np.linalg.lstsq(np.hstack([cells, np.ones((len(cells), 1))]), np.vstack(colours), rcond=None)[0]
    return solution[:-1].tolist(), solution[-1].tolist()


def sketchbook_charts(count: int = 4) -> list[np.ndarray]:
    """Pictures [128, 128, 3] of the bundled model's world, that show all its colours and kinds of shapes."""
    from itertools import cycle

    from duogen_core.sketchbook.drawing import draw_scene
    from duogen_core.sketchbook.scene import (
        CELLS,
        COLOURS,
        KINDS,
        Scene,
        Shape,
    )

    kinds, colours = cycle(KINDS), cycle(colour for colour in COLOURS if colour != "cream")
    return [
        draw_scene(Scene(tuple(Shape(cell, next(kinds), next(colours)) for cell in CELLS[number % 2 :: 2])))
        for number in range(count)
    ]
