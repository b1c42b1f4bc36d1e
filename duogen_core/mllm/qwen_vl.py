"""What the Qwen-VL families share: the module layout `model.visual`, mrope, and how their files name their weights.

Positions count time, rows and columns (`image_processor.mrope_positions`). In training, pictures of one size run
through the tower together (`look_at`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from duogen_core.errors import DuoGenError
from duogen_core.mllm.batched_tower import patches_of
from duogen_core.mllm.chat import IMAGE_PAD
from duogen_core.mllm.decoder import DecoderMllm, check_rules, is_whole, text_rules
from duogen_core.mllm.image_processor import normalised


class QwenVL(DecoderMllm):
    vision = ("model.visual.",)
    image_token = IMAGE_PAD

    @classmethod
    def look(cls, model: nn.Module, patches: Tensor, grids: Tensor) -> Tensor:
        seen = model.model.visual(patches, grid_thw=grids)
        return getattr(seen, "pooler_output", seen)  # transformers 5 returns an output object, 4 the tensor itself

    @classmethod
    def look_at(cls, model: nn.Module, pictures: Tensor, grid: Sequence[int]) -> Tensor:
        tower = model.model.visual
        patches = patches_of(normalised(pictures, cls.picture_settings), tower.config, frames=True)
        grids = torch.tensor([list(grid)] * len(pictures), device=pictures.device)
        return cls.look(model, patches.flatten(0, 1).to(tower.dtype), grids).unflatten(0, (len(pictures), -1))

    @classmethod
    def check_parts(cls, module: nn.Module, image_processor: Any, path: Path) -> None:
        where = path / "config.json" if path.is_dir() else path
        text, vision = module.config.text_config, module.config.vision_config
        # transformers 5 has rope_parameters, 4 rope_scaling
        rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None)
        section = rope.get("mrope_section") if isinstance(rope, dict) else None
        half = (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads) // 2
        whole = isinstance(section, (list, tuple)) and all(type(n) is int and n > 0 for n in section)
        if not whole or len(section) != 3 or sum(section) != half:
            raise DuoGenError(
                f"{where} has mrope_section {section!r}; expected three whole numbers whose sum is {half}, half a head."
            )
        sizes = {"patch_size": "patch_size", "merge_size": "spatial_merge_size", "temporal_patch_size": None}
        for ours, theirs in sizes.items():
            mine, other = getattr(image_processor, ours), getattr(vision, theirs or ours)
            if mine != other:
                raise DuoGenError(
                    f"{where} has a {theirs or ours} of {other!r}, but the settings for images beside it one of "
                    f"{mine!r}; they belong to two models."
                )
        # Every picture is filled up to whole windows: a window of a million pixels takes minutes and gigabytes.
        token = vision.patch_size * vision.spatial_merge_size
        check_rules(where, [
            *text_rules(text),
            (vision, "num_heads", lambda n: is_whole(n, 1), "a whole number of at least 1"),
            (vision, "window_size", lambda n: is_whole(n, token, 1024 * token), f"{token} to {1024 * token} pixels"),
            (vision, "fullatt_block_indexes", _indexes, "a list of whole numbers"),
            (vision, "deepstack_visual_indexes", _indexes, "a list of whole numbers"),
        ])  # windows are Qwen2.5-VL's, deepstack Qwen3-VL's  # fmt: skip

    @classmethod
    def module_name(cls, name: str) -> str:
        """A tensor's name in a file -> in the module. The files of Qwen2.5-VL and of ComfyUI are flatter."""
        if name.startswith("visual."):
            return f"model.{name}"
        if name.startswith("model.") and not name.startswith(("model.visual.", "model.language_model.")):
            return f"model.language_model.{name.removeprefix('model.')}"
        return name


def _indexes(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(is_whole(index, 0) for index in value)
