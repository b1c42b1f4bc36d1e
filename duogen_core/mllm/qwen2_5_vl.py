"""The Qwen2.5-VL family on transformers' Qwen2_5_VLForConditionalGeneration: 3B, 7B, 32B, 72B, Cosmos-Reason1.

Everything that decides shapes comes from config.json; of a file without one, from its tensors' shapes and from what all
published sizes share. Names and positions: qwen_vl.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from duogen_core.errors import DuoGenError
from duogen_core.mllm.batched_tower import sees_whole_pictures, tower_features
from duogen_core.mllm.chat import control_ids
from duogen_core.mllm.decoder import UNPUBLISHED, Sizes, both_spellings, count_layers
from duogen_core.mllm.image_processor import normalised, small_image_processor
from duogen_core.mllm.qwen_vl import QwenVL

HEAD_DIM = 128  # of every published size
VISION_HEADS = 16
TIED_WIDTHS = (2048,)  # 3B: its files hold no lm_head.weight


class Qwen25VL(QwenVL):
    model_type = "qwen2_5_vl"
    published_as = ("Qwen2_5_VL", "qwen2.5-vl")
    picture_settings = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "min_pixels": 56 * 56,
        "max_pixels": 12845056,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }

    @classmethod
    def look_at(cls, model: nn.Module, pictures: Tensor, grid: Sequence[int]) -> Tensor:
        tower = model.model.visual
        if tower.patch_embed.proj.weight.dtype == torch.float32 and sees_whole_pictures(tower):
            return tower_features(tower, normalised(pictures, cls.picture_settings))
        return super().look_at(model, pictures, grid)

    @classmethod
    def build(cls, config: dict[str, Any]) -> nn.Module:
        from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

        return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_dict(both_spellings(config)))

    @classmethod
    def guess_config(cls, shapes: Mapping[str, Sequence[int]]) -> dict[str, Any] | None:
        text, vision = "model.language_model.", "model.visual."
        if (
            f"{text}layers.0.self_attn.k_proj.bias" not in shapes
            or f"{vision}blocks.0.mlp.gate_proj.weight" not in shapes
        ):
            return None
        vocabulary, width = shapes[f"{text}embed_tokens.weight"]
        channels = shapes[f"{vision}patch_embed.proj.weight"][0]
        depth, patch = count_layers(shapes, f"{vision}blocks."), shapes[f"{vision}patch_embed.proj.weight"][-1]
        published = cls.picture_settings["patch_size"]
        queries, keys = (shapes[f"{text}layers.0.self_attn.{name}_proj.weight"][0] for name in "qk")
        heads = all(rows and rows % HEAD_DIM == 0 for rows in (queries, keys))
        if not heads or channels % VISION_HEADS or patch != published:
            raise DuoGenError(UNPUBLISHED.format(name="Qwen2.5-VL"))
        return {
            "model_type": cls.model_type,
            "hidden_size": width,
            "vocab_size": vocabulary,
            "intermediate_size": shapes[f"{text}layers.0.mlp.gate_proj.weight"][0],
            "num_hidden_layers": count_layers(shapes, f"{text}layers."),
            "num_attention_heads": queries // HEAD_DIM,
            "num_key_value_heads": keys // HEAD_DIM,
            "max_position_embeddings": 128000,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0,
            "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
            "tie_word_embeddings": width in TIED_WIDTHS and "lm_head.weight" not in shapes,
            "vision_config": {
                "depth": depth,
                "hidden_size": channels,
                "intermediate_size": shapes[f"{vision}blocks.0.mlp.gate_proj.weight"][0],
                "num_heads": VISION_HEADS,
                "out_hidden_size": width,
                "patch_size": patch,
                "window_size": 112,
                "fullatt_block_indexes": list(range(7, depth, 8)),
                "tokens_per_second": 2,
            },
        }


def new_model(
    tokenizer: Any,
    *,
    mrope_section: Sequence[int] = (4, 6, 6),
    **sizes: int,
) -> nn.Module:
    """A randomly initialised Qwen2_5_VLForConditionalGeneration; sizes: those of `decoder.Sizes`.

    The head width is hidden_size / heads and must be twice the sum of mrope_section.
    """
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    size = Sizes(**sizes)
    if size.hidden_size % size.heads or size.hidden_size // size.heads != 2 * sum(mrope_section):
        raise DuoGenError(
            f"hidden_size {size.hidden_size} over {size.heads} heads must be heads of "
            f"{2 * sum(mrope_section)} channels, twice the sum of mrope_section {tuple(mrope_section)}."
        )
    control = control_ids(tokenizer, need_bov=False)
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": size.hidden_size,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.kv_heads,
            "intermediate_size": size.intermediate_size,
            "max_position_embeddings": size.max_positions,
            "rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": list(mrope_section)},
            "rope_theta": 10000.0,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": control.im_end,
            "pad_token_id": control.end_of_text,
        },
        vision_config={
            "depth": size.vision_layers,
            "hidden_size": size.vision_hidden_size,
            "num_heads": size.vision_heads,
            "intermediate_size": size.vision_intermediate_size,
            "patch_size": size.patch_size,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 8 * size.patch_size,
            "fullatt_block_indexes": list(range(size.vision_layers)),  # small pictures: full attention throughout
            "out_hidden_size": size.hidden_size,
        },
        image_token_id=control.image_pad,
        video_token_id=len(tokenizer),  # no video in this vocabulary: an id that never occurs
        vision_start_token_id=control.vision_start,
        vision_end_token_id=control.vision_end,
        tie_word_embeddings=True,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def create_tiny(tokenizer: Any, **sizes: Any) -> Qwen25VL:
    """new_model with its picture settings, ready to write: what tests and the first training step start from."""
    processor = small_image_processor(sizes.get("patch_size", 16))
    return Qwen25VL(new_model(tokenizer, **sizes).eval(), tokenizer, processor)
