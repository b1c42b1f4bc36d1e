"""The picture settings of a Qwen2-VL model: how large a picture becomes, and its patches, without torchvision.

In: preprocessor_config.json of a model folder, or the patch size of a small model. Out: transformers' PIL processor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from duogen_core.errors import DuoGenError
from duogen_core.files import read_json


def picture_processing() -> tuple[type, Any]:
    """transformers' numpy and PIL processor class for Qwen2-VL (it needs no torchvision), and its smart_resize."""
    try:
        from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as module
    except ImportError:  # transformers 4: the class without a suffix is the PIL one
        from transformers.models.qwen2_vl import image_processing_qwen2_vl as module

        return module.Qwen2VLImageProcessor, module.smart_resize
    return module.Qwen2VLImageProcessorPil, module.smart_resize


def load_image_processor(folder: str | Path) -> Any:
    """Read preprocessor_config.json into the PIL processor, whatever is installed: same pixels on every machine."""
    file = Path(folder) / "preprocessor_config.json"
    if not file.is_file():
        raise DuoGenError(f"The model folder {folder} has no preprocessor_config.json.")
    config = read_json(file, "settings for pictures")
    kind = config.get("image_processor_type") if isinstance(config, dict) else None
    if not isinstance(kind, str) or not kind.startswith("Qwen2VLImageProcessor"):
        raise DuoGenError(f"{file} describes {kind!r}; expected a Qwen2VLImageProcessor.")
    size = config.pop("size", None) or {}
    for old, new in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):  # both versions know the old
        if new in size and config.get(old) is None:
            config[old] = size[new]
    return picture_processing()[0].from_dict(config)


def small_image_processor(patch_size: int = 16, max_pixels: int = 1024 * 1024) -> Any:
    """Qwen2-VL's picture preprocessing (PIL, no torchvision); sides that are multiples of 2*patch pass unscaled."""
    unit = 2 * patch_size
    return picture_processing()[0](
        patch_size=patch_size,
        merge_size=2,
        temporal_patch_size=2,
        min_pixels=unit * unit,
        max_pixels=max_pixels,
    )
