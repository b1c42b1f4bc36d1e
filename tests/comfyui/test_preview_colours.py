"""What is shown while a picture is sampled has the colours of the picture."""

from __future__ import annotations

import io

import graphs
import numpy as np
import pytest
from answers import saved_document
from conftest import BUNDLED
from PIL import Image
from server import Server

LATENT_CELL = 8  # pixels a side


@pytest.mark.slow
def test_previews_have_the_colours_of_the_picture(server: Server):
    """The bundled VAE's latents mean other colours than those of Wan 2.1, whose factors ComfyUI knows."""
    if not (BUNDLED / "model_index.json").is_file():
        pytest.skip("The bundled model models/duogen-tiny is not here.")
    result = server.run(graphs.answer(BUNDLED.name, prefix="previews", seed=5, max_images=1))
    (picture,) = saved_document(server, result).pictures
    width, height = (side // LATENT_CELL for side in picture.size)
    with Image.open(io.BytesIO(result.last_preview)) as image:
        preview = np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BOX), dtype=float)
    cells = picture.pixels.reshape(height, LATENT_CELL, width, LATENT_CELL, 3).mean((1, 3))
    difference = np.abs(preview - cells).mean()
    assert difference < 25, f"the preview is off by {difference:.1f} of 255 in the mean"
