"""The Qwen3-VL family (dense) on transformers' Qwen3VLForConditionalGeneration: 2B, 4B, 8B, 32B, Cosmos-Reason2.

Its tower gives every picture token more than an embedding: "deepstack" features, added to the outputs of the first
decoder layers. `look` lays them beside the embedding along the channels ([1, n, (1 + levels) * hidden_size], zero for
text), so that any slice of it is complete: chunked prefill, the KV cache and training need to know nothing about them.
The states handed out are what transformers reports: a layer's output before deepstack features are added to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from duogen_core.errors import DuoGenError
from duogen_core.mllm.chat import control_ids
from duogen_core.mllm.decoder import UNPUBLISHED, Sizes, both_spellings, count_layers
from duogen_core.mllm.image_processor import QwenImages, picture_processing
from duogen_core.mllm.qwen_vl import QwenVL

HEAD_DIM = 128  # of every published size
VISION_HEADS = 16
TIED_WIDTHS = (2048, 2560)  # 2B and 4B: their files hold no lm_head.weight
DEEPSTACK = {24: [5, 11, 17], 27: [8, 16, 24]}  # by the tower's depth: which blocks give features


class Qwen3VL(QwenVL):
    model_type = "qwen3_vl"
    published_as = ("Qwen3VL", "qwen3-vl")
    picture_settings = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "min_pixels": 256 * 256,
        "max_pixels": 4096 * 4096,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }

    @classmethod
    def look(cls, model: nn.Module, patches: Tensor, grids: Tensor) -> Tensor:
        seen = model.model.visual(patches, grid_thw=grids)
        # transformers 5 returns an output object, 4 a pair.
        features, deeper = seen if isinstance(seen, tuple) else (seen.pooler_output, seen.deepstack_features)
        return torch.cat([features, *deeper], dim=-1)

    @classmethod
    def decode(
        cls,
        model: nn.Module,
        embeds: Tensor,
        positions: Tensor,
        cache: Any = None,
        on_layer: Callable[[int, Tensor], None] | None = None,
        **extra: Any,
    ) -> Tensor:
        embeds, *deeper = embeds.split(model.config.text_config.hidden_size, dim=-1)
        if cache is None and transformers_version().startswith("4."):
            # transformers 4 takes times that stand still, as in an image, for the end of one sequence and the beginning
            # of another, unless it is told that all is one.
            extra["attention_mask"] = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
        if deeper:
            # Text has zeros to add.
            extra["visual_pos_masks"] = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
            extra["deepstack_visual_embeds"] = [each.flatten(0, 1) for each in deeper]
        return super().decode(model, embeds, positions, cache, on_layer, **extra)

    @classmethod
    def build(cls, config: dict[str, Any]) -> nn.Module:
        from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

        return Qwen3VLForConditionalGeneration(Qwen3VLConfig.from_dict(both_spellings(config)))

    @classmethod
    def guess_config(cls, shapes: Mapping[str, Sequence[int]]) -> dict[str, Any] | None:
        text, vision = "model.language_model.", "model.visual."
        if f"{vision}deepstack_merger_list.0.norm.weight" not in shapes:
            return None
        vocabulary, width = shapes[f"{text}embed_tokens.weight"]
        (head,) = shapes[f"{text}layers.0.self_attn.q_norm.weight"]
        channels = shapes[f"{vision}patch_embed.proj.weight"][0]
        depth, levels = (
            count_layers(shapes, f"{vision}blocks."),
            count_layers(shapes, f"{vision}deepstack_merger_list."),
        )
        patch = shapes[f"{vision}patch_embed.proj.weight"][-1]
        if head != HEAD_DIM or channels % VISION_HEADS or patch != cls.picture_settings["patch_size"]:
            raise DuoGenError(UNPUBLISHED.format(name="Qwen3-VL"))
        tied = width in TIED_WIDTHS and "lm_head.weight" not in shapes
        return {
            "model_type": cls.model_type,
            "tie_word_embeddings": tied,
            "text_config": {
                "hidden_size": width,
                "vocab_size": vocabulary,
                "intermediate_size": shapes[f"{text}layers.0.mlp.gate_proj.weight"][0],
                "num_hidden_layers": count_layers(shapes, f"{text}layers."),
                "num_attention_heads": shapes[f"{text}layers.0.self_attn.q_proj.weight"][0] // head,
                "num_key_value_heads": shapes[f"{text}layers.0.self_attn.k_proj.weight"][0] // head,
                "head_dim": head,
                "max_position_embeddings": 262144,
                "rms_norm_eps": 1e-6,
                "rope_theta": 5000000.0,
                "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [24, 20, 20]},
                "tie_word_embeddings": tied,
            },
            "vision_config": {
                "depth": depth,
                "hidden_size": channels,
                "intermediate_size": shapes[f"{vision}blocks.0.mlp.linear_fc1.weight"][0],
                "num_heads": VISION_HEADS,
                "out_hidden_size": width,
                "patch_size": patch,
                "num_position_embeddings": shapes[f"{vision}pos_embed.weight"][0],
                "deepstack_visual_indexes": DEEPSTACK.get(depth, list(range(levels))),
            },
        }


def transformers_version() -> str:
    import transformers

    return transformers.__version__


def new_model(
    tokenizer: Any,
    *,
    mrope_section: Sequence[int] = (6, 5, 5),
    deepstack: Sequence[int] = (0, 1),
    **sizes: int,
) -> nn.Module:
    """A randomly initialised Qwen3VLForConditionalGeneration; heads are twice the sum of mrope_section wide.

    sizes: those of `decoder.Sizes`. deepstack: which blocks of the tower give features to the first decoder layers.
    """
    size = Sizes(**sizes)
    if len(deepstack) >= size.layers or any(not 0 <= block < size.vision_layers for block in deepstack):
        raise DuoGenError(
            f"deepstack {tuple(deepstack)} must name blocks of a tower of {size.vision_layers}, fewer than "
            f"{size.layers} of them."
        )
    control = control_ids(tokenizer, need_bov=False)
    config = {
        "text_config": {
            "vocab_size": len(tokenizer),
            "hidden_size": size.hidden_size,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.kv_heads,
            "head_dim": 2 * sum(mrope_section),
            "intermediate_size": size.intermediate_size,
            "max_position_embeddings": size.max_positions,
            "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": list(mrope_section)},
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": control.im_end,
            "pad_token_id": control.end_of_text,
        },
        "vision_config": {
            "depth": size.vision_layers,
            "hidden_size": size.vision_hidden_size,
            "num_heads": size.vision_heads,
            "intermediate_size": size.vision_intermediate_size,
            "patch_size": size.patch_size,
            "out_hidden_size": size.hidden_size,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": list(deepstack),
        },
        "image_token_id": control.image_pad,
        "video_token_id": len(tokenizer),  # no video in this vocabulary: an id that never occurs
        "vision_start_token_id": control.vision_start,
        "vision_end_token_id": control.vision_end,
        "tie_word_embeddings": True,
    }
    return Qwen3VL.build(config)


def create_tiny(tokenizer: Any, **sizes: Any) -> Qwen3VL:
    """new_model with its picture settings, ready to write."""
    model = new_model(tokenizer, **sizes).eval()
    patch = model.config.vision_config.patch_size
    settings = Qwen3VL.picture_settings | {"patch_size": patch, "min_pixels": (2 * patch) ** 2, "max_pixels": 1024**2}
    return Qwen3VL(model, tokenizer, QwenImages(picture_processing()[0].from_dict(settings)))
