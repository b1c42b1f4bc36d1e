"""ComfyUI's own VAELoader reads the VAE of a checkpoint, and its VAE nodes give what the core gives."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image
from server import Server

from duogen_core.checkpoint import VAE_FILE
from duogen_core.sketchbook.checker import read_scene
from duogen_core.sketchbook.drawing import draw_scene
from duogen_core.sketchbook.tasks.common import random_scene
from duogen_core.vae import PictureVae, pixels_to_tensor, tensor_to_pixels

SIZES = ((128, 128), (160, 96), (96, 160))


def round_trips(server: Server, pictures: list[np.ndarray], vae: str) -> list[np.ndarray]:
    """Each picture through LoadImage, VAEEncode, VAEDecode and SaveImage, all in one graph."""
    graph: dict[str, Any] = {"vae": {"class_type": "VAELoader", "inputs": {"vae_name": vae}}}
    for k, pixels in enumerate(pictures):
        Image.fromarray(pixels).save(server.base / "input" / f"vae{k}.png")
        graph |= {
            f"load{k}": {"class_type": "LoadImage", "inputs": {"image": f"vae{k}.png"}},
            f"encode{k}": {"class_type": "VAEEncode", "inputs": {"pixels": [f"load{k}", 0], "vae": ["vae", 0]}},
            f"decode{k}": {"class_type": "VAEDecode", "inputs": {"samples": [f"encode{k}", 0], "vae": ["vae", 0]}},
            f"save{k}": {
                "class_type": "SaveImage",
                "inputs": {"images": [f"decode{k}", 0], "filename_prefix": "vae"},
            },
        }
    result = server.run(graph)
    assert result.error is None, result.error
    back = []
    for k in range(len(pictures)):
        saved = result.outputs[f"save{k}"]["images"][0]
        with Image.open(server.base / "output" / saved["subfolder"] / saved["filename"]) as image:
            back.append(np.asarray(image.convert("RGB")))
    return back


@pytest.mark.slow
def test_stock_loader_reads_the_vae(server: Server, checkpoint: Path):
    name = f"{checkpoint.name}.safetensors"
    link = server.base / "models" / "vae" / name
    if not link.exists():
        link.symlink_to(checkpoint / "vae" / VAE_FILE)
    trained = checkpoint.name != "random"
    rng = Random(5)
    scenes = [random_scene(rng, 3, SIZES[k % 3]) for k in range(30 if trained else 3)]
    pictures = [draw_scene(scene) for scene in scenes]
    back = round_trips(server, pictures, name)
    core = PictureVae.from_pretrained(checkpoint / "vae" / VAE_FILE)
    for ours, picture in zip(back[:3], pictures, strict=False):
        expected = tensor_to_pixels(core.decode(core.encode(pixels_to_tensor(picture))))
        assert ours.shape == picture.shape
        assert np.abs(ours.astype(int) - expected.astype(int)).mean() <= 1.0
    if trained:
        same = sum(read_scene(ours) == scene for ours, scene in zip(back, scenes, strict=True))
        assert same / len(scenes) >= 0.9, "too many scenes read differently after the round trip"
