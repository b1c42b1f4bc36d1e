"""LLaVA-OneVision's tiles: sizes, counts and pixels are those of transformers' own processor and model."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from duogen_core.document import Picture
from duogen_core.errors import DuoGenError
from duogen_core.mllm.any_resolution import TiledImages
from duogen_core.mllm.image_processor import image_processor_of, load_image_processor
from duogen_core.mllm.llava_onevision import LlavaOneVision
from duogen_core.mllm.loading import load_mllm
from tests.core.mllm_families import lively, picture


@pytest.fixture(scope="module")
def published() -> TiledImages:
    return image_processor_of(LlavaOneVision.picture_settings, Path("preprocessor_config.json"))


SIZES = [(1, 1), (1, 150), (384, 384), (385, 384), (1024, 1024), (4000, 30), (2304, 2304), (5000, 5000), (640, 480)]


def sizes(count: int) -> list[tuple[int, int]]:
    draw = random.Random(0)
    return SIZES + [(draw.randint(16, 3000), draw.randint(16, 3000)) for _ in range(count)]


def test_counts_are_those_of_transformers_processor(published) -> None:
    from transformers import LlavaOnevisionProcessor

    class Counting(LlavaOnevisionProcessor):
        def __init__(self) -> None:  # without a tokenizer: counting needs none
            self.image_processor, self.num_image_tokens = published.processor, 729
            self.vision_aspect_ratio = "anyres_max_9"

    theirs = Counting()
    for width, height in sizes(2000):
        wanted = theirs._get_number_of_features(height, width, 384, 384)
        assert published.tokens(published.grid((width, height))) == wanted, (width, height)
    assert published.tokens((1024, 1024)) == 7371  # what the docs say


def test_counts_are_the_features_that_the_model_packs() -> None:
    mllm = lively("llava_onevision")
    images, seen = mllm.image_processor, set()
    for width, height in sizes(60):
        if max(width, height) > 200 * min(width, height):
            continue
        pictures = [Picture(np.zeros((min(height, 600), min(width, 600), 3), dtype=np.uint8))]
        patches, grids = images.patches(pictures)
        with torch.no_grad():
            features = mllm.look(mllm.model, patches, grids)
        count = images.tokens(grids[0].tolist())
        assert len(features) == count, (width, height)
        seen.add((len(patches), count))
    assert len({tiles for tiles, _ in seen}) >= 4 and len(seen) > 10  # of many shapes


@pytest.mark.parametrize("size", [(64, 64), (50, 70), (33, 31), (300, 40), (40, 300), (192, 128), (500, 500), (3, 8)])
def test_pixels_are_those_of_transformers_processor(size) -> None:
    images = lively("llava_onevision").image_processor
    one = picture(*size)
    patches, grids = images.patches([one])
    theirs = images.processor(images=[one.pixels], input_data_format="channels_last", return_tensors="pt")
    assert torch.equal(grids, torch.as_tensor(theirs["image_sizes"]))
    torch.testing.assert_close(patches, theirs["pixel_values"][0], atol=1e-6, rtol=0)


def test_pictures_that_are_far_too_long_are_refused(published) -> None:
    with pytest.raises(DuoGenError, match="2x402 pixels, more than 200 times"):
        published.grid((2, 402))


def test_settings_are_written_and_read(tmp_path) -> None:
    mllm = lively("llava_onevision")
    mllm.save_pretrained(tmp_path)
    back = load_image_processor(tmp_path)
    ours = mllm.image_processor
    assert isinstance(back, TiledImages) and (back.side, back.patch_size, back.most_tiles) == (64, 16, 4)
    assert back.pinpoints == ours.pinpoints and list(back.image_mean) == [0.5] * 3
    assert torch.equal(back.patches([picture(90, 40)])[0], ours.patches([picture(90, 40)])[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": {"height": 64, "width": 32}}, "height and a width that are equal"),
        ({"size": {"shortest_edge": 64}}, "height and a width that are equal"),
        ({"image_grid_pinpoints": [[64, 65]]}, "multiples of 64"),
        ({"image_grid_pinpoints": [[64, 6400]]}, "at most 64 squares"),
        ({"image_grid_pinpoints": []}, "multiples of 64"),
        ({"image_grid_pinpoints": [64, 64]}, "multiples of 64"),
        ({"image_grid_pinpoints": None}, "at most 64 squares"),  # the usual ones are for squares of 384
        ({"image_grid_pinpoints": None, "size": {"height": 512, "width": 512}}, "multiples of 512"),
        ({"do_rescale": False}, "do_rescale false"),
        ({"rescale_factor": 1.0}, r"expected 1/255"),
        ({"image_std": [0, 1, 1]}, "three numbers above 0"),
        ({"image_processor_type": "CLIPImageProcessor"}, "Qwen2VLImageProcessor or a LlavaOnevisionImageProcessor"),
    ],
)
def test_settings_that_cannot_be_are_named(change, message, tmp_path) -> None:
    lively("llava_onevision").save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(DuoGenError, match=message):
        load_image_processor(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_aspect_ratio": "anyres_max_\u00b2"}, "expected anyres_max_N, N of 1 to 64"),
        ({"vision_aspect_ratio": "anyres_max_" + "9" * 5000}, "expected anyres_max_N, N of 1 to 64"),
        ({"image_grid_pinpoints": [5]}, r"image_grid_pinpoints \[5\]; expected a list of \[height, width\]"),
        ({"image_token_index": 5}, "says that 5 is the token of an image, but the tokenizer gives <image> the id"),
    ],
)
def test_configurations_that_cannot_be_are_named(change, message, tmp_path) -> None:
    lively("llava_onevision").save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(DuoGenError, match=message):
        load_mllm(tmp_path)
