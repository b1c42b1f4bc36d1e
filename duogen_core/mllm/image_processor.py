"""What a family makes of a picture: the size it becomes, the tokens it takes, their positions, what the tower gets.

In: preprocessor_config.json of a model folder, or the sizes of a small model. Out: an `ImageProcessor`, one class for
each kind of published settings: Qwen-VL's here, LLaVA-OneVision's in any_resolution.py. They stand around transformers'
PIL processors, which need no torchvision: the same pixels on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from duogen_core.errors import DuoGenError
from duogen_core.files import read_json

if TYPE_CHECKING:
    from duogen_core.document import Picture

KINDS = {  # how image_processor_type of the settings begins: where its class is
    "Qwen2VLImageProcessor": ("duogen_core.mllm.image_processor", "QwenImages"),
    "LlavaOnevisionImageProcessor": ("duogen_core.mllm.any_resolution", "TiledImages"),
}


class ImageProcessor:
    """A family's rules for pictures. The settings of transformers' `processor` are read through: image_mean, resample.

    A picture's grid is a few whole numbers, all that its tokens, their positions and the tower need to know of its
    shape. Everything follows from the picture alone, so that a longer Document never changes what was read before.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __getattr__(self, name: str) -> Any:
        if name == "processor" or name.startswith("__"):  # while it is unpickled or copied, there is none yet
            raise AttributeError(name)
        return getattr(self.processor, name)

    def save_pretrained(self, folder: str | Path) -> None:
        self.processor.save_pretrained(folder)

    @classmethod
    def read(cls, config: dict[str, Any], file: Path) -> ImageProcessor:
        """Settings as published, without null values -> the processor. file: for sentences, and what lies beside it."""
        raise NotImplementedError

    def grid(self, size: tuple[int, int]) -> tuple[int, ...]:
        """(width, height) in pixels -> the picture's grid, without touching its pixels."""
        raise NotImplementedError

    def tokens(self, grid: Sequence[int]) -> int:
        """How many tokens a picture takes."""
        raise NotImplementedError

    def seen(self, grid: Sequence[int]) -> int:
        """How many patches of a picture the tower sees."""
        raise NotImplementedError

    def positions(self, ids: Sequence[int], grids: Sequence[Sequence[int]], image_pad: int) -> Tensor:
        """int64 [P, N]: the positions of a whole context."""
        raise NotImplementedError

    def patches(self, pictures: Sequence[Picture]) -> tuple[Tensor, Tensor]:
        """Pictures -> float32 pixel values, and their grids, int64 [pictures, …], as the family's `embed` has them."""
        raise NotImplementedError

    def model_inputs(self, ids: Tensor, image_pad: int, patches: Tensor | None, grids: Tensor | None) -> dict:
        """What transformers' own forward takes besides token ids [B, N]; patches and grids None: no pictures."""
        raise NotImplementedError

    def prepared(self, picture: Picture) -> np.ndarray:
        """uint8 […, 3]: what training keeps of a picture until its colours are normalised on the device. Pictures with
        equal grids can be stacked."""
        raise NotImplementedError


def load_image_processor(folder: str | Path) -> ImageProcessor:
    """Reads preprocessor_config.json, of either kind."""
    file = Path(folder) / "preprocessor_config.json"
    if not file.is_file():
        raise DuoGenError(f"The model folder {folder} has no preprocessor_config.json.")
    return image_processor_of(read_json(file, "settings for images"), file)


def image_processor_of(config: Any, file: Path) -> ImageProcessor:
    """The same from what the file says, or would say where there is none."""
    kind = config.get("image_processor_type") if isinstance(config, dict) else None
    found = next((KINDS[name] for name in KINDS if isinstance(kind, str) and kind.startswith(name)), None)
    if found is None:
        raise DuoGenError(f"{file} describes {kind!r}; expected a {' or a '.join(KINDS)}.")
    config = {name: value for name, value in config.items() if value is not None}  # those have their usual value
    check_values(config, file)
    return getattr(import_module(found[0]), found[1]).read(config, file)


def check_values(config: dict[str, Any], file: Path) -> None:
    """The values that decide what the model sees are of their kind and range: most would fail at the first picture."""

    def number(value: object, low: float, high: float) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high

    def whole(value: object, high: int) -> bool:
        return isinstance(value, int) and number(value, 1, high)

    for name, value in config.items():
        if name in ("patch_size", "merge_size", "temporal_patch_size"):
            right, wanted = whole(value, 1024), "a whole number of 1 to 1024"
        elif name in ("min_pixels", "max_pixels"):
            right, wanted = whole(value, 10**9), "a whole number of 1 to 1,000,000,000"
        elif name in ("image_mean", "image_std"):
            low = 1e-6 if name == "image_std" else -1e6
            right = isinstance(value, list) and len(value) == 3 and all(number(n, low, 1e6) for n in value)
            wanted = "three numbers" + (" above 0" if name == "image_std" else "")
        elif name == "rescale_factor":
            right, wanted = number(value, 1e-9, 1e9), "a number above 0"
        elif name == "resample":
            right, wanted = isinstance(value, int) and number(value, 0, 5), "a whole number of 0 to 5"
        elif name.startswith("do_"):
            right, wanted = isinstance(value, bool), "true or false"
        else:
            continue
        if not right:
            raise DuoGenError(f"{file} has {name} {value!r}; expected {wanted}.")
    if config.get("min_pixels", 1) > config.get("max_pixels", 10**9):
        raise DuoGenError(f"{file} has min_pixels {config['min_pixels']} above max_pixels {config['max_pixels']}.")


def normalised(pixels: Tensor, settings: Any) -> Tensor:
    """uint8 […, 3] -> float32, by the image_mean and image_std of a processor or of a family's picture_settings."""
    mean, std = (
        settings[name] if isinstance(settings, dict) else getattr(settings, name)
        for name in ("image_mean", "image_std")
    )
    x = pixels.float() / 255
    return (x - x.new_tensor(mean)) / x.new_tensor(std)


# ---------------------------------------------------------------- Qwen-VL


def picture_processing() -> tuple[type, Any]:
    """transformers' numpy and PIL processor class for Qwen2-VL (it needs no torchvision), and its smart_resize."""
    try:
        from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as module
    except ImportError:  # transformers 4: the class without a suffix is the PIL one
        from transformers.models.qwen2_vl import image_processing_qwen2_vl as module

        return module.Qwen2VLImageProcessor, module.smart_resize
    return module.Qwen2VLImageProcessorPil, module.smart_resize


class QwenImages(ImageProcessor):
    """Qwen2.5-VL and Qwen3-VL: a picture keeps its shape, in patches of which merge x merge become a token.

    grid: (1, rows, columns) of patches.
    """

    @classmethod
    def read(cls, config: dict[str, Any], file: Path) -> QwenImages:
        config = dict(config)
        size = config.pop("size", {})
        for old, new in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):  # both versions know the old
            if isinstance(size, dict) and size.get(new) is not None:
                config.setdefault(old, size[new])
        check_values(config, file)
        return cls(picture_processing()[0].from_dict(config))

    def grid(self, size: tuple[int, int]) -> tuple[int, int, int]:
        width, height = size
        if max(width, height) > 200 * min(width, height):
            raise DuoGenError(
                f"An image is {width}x{height} pixels, more than 200 times as long as it is wide; crop it first."
            )
        patch, pixels = self.patch_size, self.processor.size
        height, width = picture_processing()[1](
            height,
            width,
            patch * self.merge_size,
            min_pixels=pixels["shortest_edge"],
            max_pixels=pixels["longest_edge"],
        )
        return 1, height // patch, width // patch

    def tokens(self, grid: Sequence[int]) -> int:
        return grid[1] * grid[2] // self.merge_size**2

    def seen(self, grid: Sequence[int]) -> int:
        return grid[1] * grid[2]

    def positions(self, ids: Sequence[int], grids: Sequence[Sequence[int]], image_pad: int) -> Tensor:
        return mrope_positions(ids, grids, image_pad, self.merge_size)

    def patches(self, pictures: Sequence[Picture]) -> tuple[Tensor, Tensor]:
        """pixel_values float32 [patches, 3*temporal*patch*patch] and image_grid_thw int64 [pictures, 3]."""
        out = self.processor(images=[picture.pixels for picture in pictures], input_data_format="channels_last")
        values = [torch.as_tensor(rows) for rows in out["pixel_values"]]
        patches = torch.stack(values) if values[0].ndim == 1 else torch.cat(values)
        return patches, torch.as_tensor(out["image_grid_thw"]).long().reshape(-1, 3)

    def model_inputs(self, ids: Tensor, image_pad: int, patches: Tensor | None, grids: Tensor | None) -> dict:
        found = {"mm_token_type_ids": (ids == image_pad).long()}  # 1: image
        return found if patches is None else {**found, "pixel_values": patches, "image_grid_thw": grids}

    def prepared(self, picture: Picture) -> np.ndarray:
        """uint8 [H, W, 3], resized; always a copy."""
        _, rows, columns = self.grid(picture.size)
        return resized(picture.pixels, (columns * self.patch_size, rows * self.patch_size), self.resample)


def resized(pixels: np.ndarray, size: tuple[int, int], resample: Any) -> np.ndarray:
    """uint8 [H, W, 3] at (width, height), as transformers' PIL processors resize; always a copy."""
    if (pixels.shape[1], pixels.shape[0]) == size:
        return pixels.copy()
    from PIL import Image

    return np.array(Image.fromarray(pixels).resize(size, resample))


def mrope_positions(ids: Sequence[int], grids: Sequence[Sequence[int]], image_pad: int, merge: int) -> Tensor:
    """int64 [3, N]: time, row and column position of every token. grids: (1, rows, columns) of patches per picture.

    Text counts 1, 1, 1; a picture's tokens share one time and count rows and columns of its merged grid. Same rule as
    transformers' get_rope_index, against which it is tested.
    """
    pieces, position, i, pictures = [], 0, 0, iter(grids)
    while i < len(ids):
        if ids[i] == image_pad:
            _, rows, columns = (int(n) for n in next(pictures))
            rows, columns = rows // merge, columns // merge
            row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
            pieces.append(torch.stack([torch.zeros_like(row), row, column]).flatten(1) + position)
            # Text goes on after the largest position in use, so a picture takes its longer side and not rows * columns.
            position += max(rows, columns)
            i += rows * columns
        else:
            start = i
            while i < len(ids) and ids[i] != image_pad:
                i += 1
            pieces.append(torch.arange(position, position + i - start).expand(3, -1))
            position += i - start
    return torch.cat(pieces, dim=1) if pieces else torch.zeros(3, 0, dtype=torch.long)


def small_image_processor(patch_size: int = 16, max_pixels: int = 1024 * 1024) -> QwenImages:
    """Qwen2-VL's picture preprocessing (PIL, no torchvision); sides that are multiples of 2*patch pass unscaled."""
    unit = 2 * patch_size
    return QwenImages(
        picture_processing()[0](
            patch_size=patch_size,
            merge_size=2,
            temporal_patch_size=2,
            min_pixels=unit * unit,
            max_pixels=max_pixels,
        )
    )
