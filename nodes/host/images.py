"""Converts between ComfyUI's IMAGE and the core's Picture.

IMAGE: float [B, H, W, C] in 0..1, one size for the whole batch. Picture: uint8 RGB [H, W, 3], one image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from duogen_core.document import Picture


def pictures_from_image(image: torch.Tensor) -> list[Picture]:
    """IMAGE [B, H, W, 1|3|4] -> one Picture an entry of the batch; transparency is laid on white."""
    import torch

    from duogen_core.document import Picture
    from duogen_core.errors import DuoGenError

    if image.ndim != 4 or image.shape[-1] not in (1, 3, 4):
        raise DuoGenError(f"An IMAGE must be [batch, height, width, channels]; this one is {list(image.shape)}.")
    image = image.float().cpu().clamp(0, 1)
    if image.shape[-1] == 4:
        image = image[..., :3] * image[..., 3:] + (1 - image[..., 3:])
    if image.shape[-1] == 1:
        image = image.expand(-1, -1, -1, 3)
    return [Picture(one.numpy()) for one in (image * 255).round().to(torch.uint8)]


def image_from_picture(picture: Picture) -> torch.Tensor:
    """Picture -> IMAGE [1, H, W, 3] on the device and in the dtype ComfyUI keeps its images in."""
    import comfy.model_management as mm
    import numpy as np
    import torch

    image = torch.from_numpy(np.array(picture.pixels))[None].float() / 255
    return image.to(device=mm.intermediate_device(), dtype=mm.intermediate_dtype())


def image_list(pictures: Sequence[Picture]) -> list[Any]:
    """For an output that is a list. Without images, what hangs on it is skipped; an empty list would crash it."""
    from comfy_execution.graph_utils import ExecutionBlocker

    return [image_from_picture(picture) for picture in pictures] or [ExecutionBlocker(None)]


def one_batch(pictures: Sequence[Picture]) -> torch.Tensor | None:
    """IMAGE [n, H, W, 3] of several images, for a node that takes them all at once; None where there are none.

    An IMAGE has one size. Images of another one are scaled to fit into the largest sides there are, on white.
    """
    import torch

    if not pictures:
        return None
    size = tuple(max(picture.size[side] for picture in pictures) for side in (0, 1))
    return torch.cat([image_from_picture(on_canvas(picture, size)) for picture in pictures])


def on_canvas(picture: Picture, size: tuple[int, int]) -> Picture:
    """The image as large as it fits into (width, height), in the middle of white."""
    if picture.size == size:
        return picture
    import numpy as np
    from PIL import Image, ImageOps

    from duogen_core.document import Picture

    image = ImageOps.pad(Image.fromarray(picture.pixels), size, Image.Resampling.LANCZOS, color=(255, 255, 255))
    return Picture(np.asarray(image))
