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
    """Reads preprocessor_config.json into the PIL processor, whatever is installed: same pixels on every machine."""
    file = Path(folder) / "preprocessor_config.json"
    if not file.is_file():
        raise DuoGenError(f"The model folder {folder} has no preprocessor_config.json.")
    config = read_json(file, "settings for images")
    kind = config.get("image_processor_type") if isinstance(config, dict) else None
    if not isinstance(kind, str) or not kind.startswith("Qwen2VLImageProcessor"):
        raise DuoGenError(f"{file} describes {kind!r}; expected a Qwen2VLImageProcessor.")
    config = {name: value for name, value in config.items() if value is not None}  # those have their usual value
    size = config.pop("size", {})
    for old, new in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):  # both versions know the old
        if isinstance(size, dict) and size.get(new) is not None:
            config.setdefault(old, size[new])
    _check_values(config, file)
    return picture_processing()[0].from_dict(config)


def _check_values(config: dict[str, Any], file: Path) -> None:
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
