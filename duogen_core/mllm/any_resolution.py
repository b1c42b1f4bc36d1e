"""LLaVA-OneVision's pictures: the whole one in small, and tiles of it at the resolution that fits it best.

A picture becomes 1 + rows x columns squares of `side` pixels (384): itself, squeezed into one square, and the tiles of
itself scaled without distortion into the best of the `image_grid_pinpoints`, black where it does not fill them. Every
square gives cells x cells tokens (27 x 27). Those of the tiles are put together to one grid, the cells that lie in the
black are cut away, a grid of more than `most_tiles` squares is scaled down, and every row of it ends with a learnt
token, image_newline. So 1024x1024 is 729 + 81 x (81 + 1) = 7,371 tokens, where Qwen2.5-VL takes 1,369.
Source: LLaVA-OneVision (arXiv 2408.03326) as transformers computes it (`pack_image_features`), against which counts
and pixels are tested. Every picture is read so, also where there are several: its tokens follow from itself alone. (The
published code gives several pictures of one prompt no tiles; a shorter image_grid_pinpoints does the same here.)
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from duogen_core.errors import DuoGenError
from duogen_core.files import read_json
from duogen_core.mllm.image_processor import ImageProcessor, normalised, resized

if TYPE_CHECKING:
    from duogen_core.document import Picture

SCALED_FROM = 1.1  # a grid longer than this many times the longest one allowed is scaled down


def tile_processing() -> type:
    """transformers' numpy and PIL processor class for LLaVA-OneVision (it needs no torchvision)."""
    try:
        from transformers.models.llava_onevision import image_processing_pil_llava_onevision as module
    except ImportError:  # transformers 4: the class without a suffix is the PIL one
        from transformers.models.llava_onevision import image_processing_llava_onevision as module

        return module.LlavaOnevisionImageProcessor
    return module.LlavaOnevisionImageProcessorPil


class TiledImages(ImageProcessor):
    """grid: (height, width) of the picture in pixels, which transformers calls image_sizes."""

    def __init__(self, processor: Any, patch_size: int = 14, most_tiles: int = 9) -> None:
        """patch_size: pixels of a token; most_tiles: of `anyres_max_9`. Both stand in the model's config.json."""
        super().__init__(processor)
        self.patch_size, self.most_tiles = patch_size, most_tiles
        self.side = int(processor.size["height"])
        self.cells = self.side // patch_size
        self.pinpoints = [tuple(pair) for pair in processor.image_grid_pinpoints]

    @classmethod
    def read(cls, config: dict[str, Any], file: Path) -> TiledImages:
        size = config.get("size", {"height": 384, "width": 384})
        side = size.get("height") if isinstance(size, dict) else None
        if type(side) is not int or not 1 <= side <= 4096 or size.get("width") != side:
            raise DuoGenError(f"{file} has size {size!r}; expected a height and a width that are equal, such as 384.")
        usual = tile_processing().from_dict({}).image_grid_pinpoints  # multiples of 384, up to 36 squares of that
        pairs = config.get("image_grid_pinpoints", usual)
        if not _are_pinpoints(pairs, side):
            raise DuoGenError(
                f"{file} has image_grid_pinpoints {str(pairs)[:80]}; expected a list of [height, width] in pixels, "
                f"multiples of {side}, of at most 64 squares each."
            )
        for name in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
            if not config.get(name, True):
                raise DuoGenError(f"{file} has {name} false; LLaVA-OneVision's images are always so treated.")
        if not math.isclose(config.get("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-3):
            raise DuoGenError(f"{file} has rescale_factor {config['rescale_factor']}; expected 1/255.")
        beside = file.with_name("config.json")
        model = read_json(beside, "configuration of an MLLM") if beside.is_file() else {}
        patch, most = tile_numbers(model, beside)
        if side // patch < 1:
            raise DuoGenError(f"{file} has a size of {side} pixels, less than a patch of {patch}.")
        config = config | {"size": {"height": side, "width": side}, "image_grid_pinpoints": pairs}
        return cls(tile_processing().from_dict(config), patch, most)

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        width, height = size
        if max(width, height) > 200 * min(width, height):
            raise DuoGenError(
                f"An image is {width}x{height} pixels, more than 200 times as long as it is wide; crop it first."
            )
        return height, width

    def resolution(self, grid: Sequence[int]) -> tuple[int, int]:
        """(height, width) of the pinpoint that a picture is scaled into."""
        from transformers.image_processing_utils import select_best_resolution

        return select_best_resolution(tuple(grid), self.pinpoints)

    def tokens(self, grid: Sequence[int]) -> int:
        (height, width), best = grid, self.resolution(grid)
        rows, columns = (self.cells * (pixels // self.side) for pixels in best)
        # Cells in the black are cut away, as many on either side: transformers' unpad_image, and its rounding.
        if width / height > columns / rows:
            rows -= (rows - int(round(height * (columns / width), 7))) // 2 * 2
        else:
            columns -= (columns - int(round(width * (rows / height), 7))) // 2 * 2
        ratio = math.sqrt(rows * columns / (self.most_tiles * self.cells**2))
        if ratio > SCALED_FROM:
            rows, columns = int(rows // ratio), int(columns // ratio)
        return self.cells**2 + rows * (columns + 1)

    def seen(self, grid: Sequence[int]) -> int:
        height, width = self.resolution(grid)
        return (1 + height // self.side * (width // self.side)) * self.cells**2

    def positions(self, ids: Sequence[int], grids: Sequence[Sequence[int]], image_pad: int) -> Tensor:
        return torch.arange(len(ids))[None]

    def prepared(self, picture: Picture) -> np.ndarray:
        """uint8 [1 + tiles, side, side, 3]: the whole picture, then its tiles row by row."""
        pixels, grid, side = picture.pixels, self.grid(picture.size), self.side
        height, width = self.resolution(grid)
        across, down = width / grid[1], height / grid[0]
        if across < down:
            inner = (width, min(math.ceil(grid[0] * across), height))
        else:
            inner = (min(math.ceil(grid[1] * down), width), height)
        large = np.zeros((height, width, 3), dtype=np.uint8)
        left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
        large[top : top + inner[1], left : left + inner[0]] = resized(pixels, inner, self.resample)
        tiles = large.reshape(height // side, side, width // side, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)
        return np.concatenate([resized(pixels, (side, side), self.resample)[None], tiles])

    def patches(self, pictures: Sequence[Picture]) -> tuple[Tensor, Tensor]:
        """pixel_values float32 [squares, 3, side, side] of all pictures, and image_sizes int64 [pictures, 2]."""
        squares = torch.from_numpy(np.concatenate([self.prepared(picture) for picture in pictures]))
        grids = torch.tensor([self.grid(picture.size) for picture in pictures])
        return channels_first(normalised(squares, self)), grids

    def model_inputs(self, ids: Tensor, image_pad: int, patches: Tensor | None, grids: Tensor | None) -> dict:
        return {} if patches is None else {"pixel_values": patches, "image_sizes": grids}


def channels_first(squares: Tensor) -> Tensor:
    """[…, side, side, 3] -> [squares, 3, side, side]"""
    return squares.flatten(0, -4).permute(0, 3, 1, 2).contiguous()


def tile_numbers(model: Any, where: object) -> tuple[int, int]:
    """(pixels of a patch, squares that `anyres_max_N` allows) of a model's config.json, which may say neither."""
    model = model if isinstance(model, dict) else {}
    vision = model.get("vision_config")
    patch = (vision if isinstance(vision, dict) else {}).get("patch_size", 14)
    ratio = model.get("vision_aspect_ratio") or "anyres_max_9"
    most = ratio.removeprefix("anyres_max_") if isinstance(ratio, str) else ""
    if not re.fullmatch(r"[0-9]{1,2}", most) or not 1 <= int(most) <= 64:
        raise DuoGenError(f"{where} has vision_aspect_ratio {ratio!r}; expected anyres_max_N, N of 1 to 64.")
    if type(patch) is not int or not 1 <= patch <= 1024:
        raise DuoGenError(f"{where} has a patch_size of {patch!r}; expected a whole number of 1 to 1024.")
    return patch, int(most)


def _are_pinpoints(value: object, side: int) -> bool:
    if not isinstance(value, list) or not 1 <= len(value) <= 1000:
        return False
    pairs = [pair for pair in value if isinstance(pair, (list, tuple)) and len(pair) == 2]
    whole = all(type(n) is int and n > 0 and n % side == 0 for pair in pairs for n in pair)
    return len(pairs) == len(value) and whole and all(h // side * (w // side) <= 64 for h, w in pairs)
