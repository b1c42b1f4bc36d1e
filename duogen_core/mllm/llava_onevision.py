"""The LLaVA-OneVision family on transformers' LlavaOnevisionForConditionalGeneration: 0.5B, 7B, 72B.

Qwen2 writes; a SigLIP tower looks at squares of a picture (any_resolution.py), and two layers (`multi_modal_projector`)
turn its patches into tokens. Positions count 0, 1, 2 …, in pictures too. Files name their tensors in three ways: as
transformers writes them since 4.52 (`model.language_model.layers`), as it wrote them before, which is how the models
were published (`language_model.model.layers`), and as the authors' own code does (`model.layers`,
`model.mm_projector`); the authors' tokenizer lacks <image>, so their files are read with that of the llava-hf models.
Source: LLaVA-OneVision (arXiv 2408.03326).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from duogen_core.errors import DuoGenError
from duogen_core.mllm.any_resolution import TiledImages, channels_first, tile_numbers, tile_processing
from duogen_core.mllm.chat import IMAGE, control_ids
from duogen_core.mllm.decoder import (
    UNPUBLISHED,
    DecoderMllm,
    Sizes,
    both_spellings,
    check_rules,
    count_layers,
    is_whole,
    text_rules,
)
from duogen_core.mllm.image_processor import normalised

HEAD_DIM = {896: 64}  # by the width of the language model; of the others 128
TIED_WIDTHS = (896,)  # 0.5B: its files hold no lm_head.weight
VISION_HEADS = 16
SQUARE = 384  # pixels
PINPOINTS = [[SQUARE * rows, SQUARE * columns] for rows in range(1, 7) for columns in range(1, 7)]
IMAGE_TOKEN, VIDEO_TOKEN = 151646, 151647  # the two that were added to Qwen2's vocabulary


class LlavaOneVision(DecoderMllm):
    model_type = "llava_onevision"
    published_as = ("LlavaOnevision", "llava-onevision")
    vision = ("model.vision_tower.", "model.multi_modal_projector.", "model.image_newline")
    image_token = IMAGE
    picture_settings = {
        "image_processor_type": "LlavaOnevisionImageProcessor",
        "size": {"height": SQUARE, "width": SQUARE},
        "image_grid_pinpoints": PINPOINTS,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }

    @property
    def numbers_of_a_patch(self) -> int:
        """transformers keeps the outputs of all layers of the tower, one of which is asked for."""
        vision = self.model.config.vision_config
        return 4 * self.hidden_size + (vision.num_hidden_layers + 4) * vision.hidden_size

    @classmethod
    def look(cls, model: nn.Module, patches: Tensor, grids: Tensor) -> Tensor:
        """patches [squares, 3, side, side] of all pictures, grids [pictures, 2]: their heights and widths."""
        seen = model.model.get_image_features(patches, image_sizes=grids)
        # A list, one tensor a picture: transformers 5 returns it in an output object, 4 by itself.
        return torch.cat(list(getattr(seen, "pooler_output", seen)))

    @classmethod
    def look_at(cls, model: nn.Module, pictures: Tensor, grid: Sequence[int]) -> Tensor:
        squares = channels_first(normalised(pictures, cls.picture_settings))
        grids = torch.tensor([list(grid)] * len(pictures), device=pictures.device)
        kept = next(model.model.vision_tower.parameters()).dtype
        return cls.look(model, squares.to(kept), grids).unflatten(0, (len(pictures), -1))

    @classmethod
    def build(cls, config: dict[str, Any]) -> nn.Module:
        from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

        text, vision = config.get("text_config"), config.get("vision_config")
        kinds = [part.get("model_type") if isinstance(part, dict) else None for part in (text, vision)]
        if kinds != ["qwen2", "siglip_vision_model"]:
            raise DuoGenError(
                f"a LLaVA-OneVision of {kinds[0]!r} and {kinds[1]!r} is not known; expected text_config to be of the "
                "model_type 'qwen2' and vision_config of 'siglip_vision_model', as the published models."
            )
        # The published 0.5B says it of its text alone.
        tied = bool(config.get("tie_word_embeddings") or text.get("tie_word_embeddings"))
        config = config | {"tie_word_embeddings": tied, "text_config": text | {"tie_word_embeddings": tied}}
        return LlavaOnevisionForConditionalGeneration(LlavaOnevisionConfig.from_dict(both_spellings(config)))

    @classmethod
    def check_parts(cls, module: nn.Module, image_processor: Any, path: Path) -> None:
        where = path / "config.json" if path.is_dir() else path
        config, text, vision = module.config, module.config.text_config, module.config.vision_config
        if not isinstance(image_processor, TiledImages):
            raise DuoGenError(f"The settings for images beside {path} are not those of a LLaVA-OneVision model.")
        check_rules(where, [
            *text_rules(text),
            (vision, "num_attention_heads", lambda n: is_whole(n, 1), "a whole number of at least 1"),
            (config, "vision_feature_select_strategy", lambda n: n == "full", "'full'"),
            (config, "vision_feature_layer", lambda n: is_whole(n, -vision.num_hidden_layers, vision.num_hidden_layers),
             f"the number of a layer, {-vision.num_hidden_layers} to {vision.num_hidden_layers}"),
            (config, "image_grid_pinpoints", lambda value: all(isinstance(pair, (list, tuple)) for pair in value),
             "a list of [height, width]"),
        ])  # fmt: skip
        theirs = {
            "size": vision.image_size, "patch_size": vision.patch_size,
            "vision_aspect_ratio": tile_numbers(config.to_dict(), where)[1],
            "image_grid_pinpoints": [tuple(pair) for pair in config.image_grid_pinpoints],
        }  # fmt: skip
        ours = {
            "size": image_processor.side, "patch_size": image_processor.patch_size,
            "vision_aspect_ratio": image_processor.most_tiles, "image_grid_pinpoints": image_processor.pinpoints,
        }  # fmt: skip
        for name, value in theirs.items():
            if value != ours[name]:
                raise DuoGenError(
                    f"{where} has {name} {str(value)[:60]}, but the settings for images beside it "
                    f"{str(ours[name])[:60]}; they belong to two models, or only one of the two was changed."
                )

    @classmethod
    def module_name(cls, name: str) -> str:
        if name.startswith("language_model.model."):
            return f"model.{name.replace('.model.', '.', 1)}"
        if name == "language_model.lm_head.weight":
            return "lm_head.weight"
        name = name.removeprefix("model.")
        if name.startswith(("layers.", "norm.", "embed_tokens.")):
            return f"model.language_model.{name}"
        name = name.replace("mm_projector.0.", "multi_modal_projector.linear_1.")
        name = name.replace("mm_projector.2.", "multi_modal_projector.linear_2.")
        if name.startswith("vision_tower."):
            name = name.replace("vision_tower.vision_tower.", "vision_tower.", 1)
            name = name.replace("vision_tower.vision_model.", "vision_tower.", 1)
            return "model." + name.replace("vision_tower.", _tower(), 1)
        return name if name == "lm_head.weight" else f"model.{name}"

    @classmethod
    def guess_config(cls, shapes: Mapping[str, Sequence[int]]) -> dict[str, Any] | None:
        text, vision = "model.language_model.", f"model.{_tower()}"
        if (
            "model.image_newline" not in shapes
            or f"{text}layers.0.self_attn.k_proj.bias" not in shapes
            or f"{vision}embeddings.patch_embedding.weight" not in shapes
        ):
            return None
        vocabulary, width = shapes[f"{text}embed_tokens.weight"]
        channels, _, patch, _ = shapes[f"{vision}embeddings.patch_embedding.weight"]
        cells = shapes[f"{vision}embeddings.position_embedding.weight"][0]
        head = HEAD_DIM.get(width, 128)
        queries, keys = (shapes[f"{text}layers.0.self_attn.{name}_proj.weight"][0] for name in "qk")
        if queries % head or keys % head or channels % VISION_HEADS or cells != (SQUARE // patch) ** 2 or patch != 14:
            raise DuoGenError(UNPUBLISHED.format(name="LLaVA-OneVision"))
        tied = width in TIED_WIDTHS and "lm_head.weight" not in shapes
        return {
            "model_type": cls.model_type,
            "tie_word_embeddings": tied,
            "image_token_index": IMAGE_TOKEN,
            "video_token_index": VIDEO_TOKEN,
            "image_grid_pinpoints": PINPOINTS,
            "text_config": {
                "model_type": "qwen2",
                "hidden_size": width,
                "vocab_size": vocabulary,
                "intermediate_size": shapes[f"{text}layers.0.mlp.gate_proj.weight"][0],
                "num_hidden_layers": count_layers(shapes, f"{text}layers."),
                "num_attention_heads": queries // head,
                "num_key_value_heads": keys // head,
                "max_position_embeddings": 32768,
                "rms_norm_eps": 1e-6,
                "rope_theta": 1000000.0,
                "tie_word_embeddings": tied,
            },
            "vision_config": {
                "model_type": "siglip_vision_model",
                "hidden_size": channels,
                "intermediate_size": shapes[f"{vision}encoder.layers.0.mlp.fc1.weight"][0],
                "num_hidden_layers": count_layers(shapes, f"{vision}encoder.layers."),
                "num_attention_heads": VISION_HEADS,
                "image_size": SQUARE,
                "patch_size": patch,
                "vision_use_head": False,
            },
        }


@lru_cache
def _tower() -> str:
    """How the tower's tensors begin in the installed transformers: 4 has one module more, vision_model."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    with torch.device("meta"):
        tower = SiglipVisionModel(SiglipVisionConfig(num_hidden_layers=1, vision_use_head=False))
    return "vision_tower.vision_model." if hasattr(tower, "vision_model") else "vision_tower."


def new_model(tokenizer: Any, *, squares: int = 3, most_tiles: int = 4, **sizes: int) -> nn.Module:
    """A randomly initialised LlavaOnevisionForConditionalGeneration; sizes: those of `decoder.Sizes`.

    A square has 4 x 4 patches; a picture takes at most squares x squares of them, scaled down to most_tiles.
    """
    size = Sizes(**sizes)
    if size.hidden_size % size.heads or size.hidden_size // size.heads % 2:
        raise DuoGenError(f"hidden_size {size.hidden_size} must be heads of an even width, but there are {size.heads}.")
    control = control_ids(tokenizer, need_bov=False)
    side = 4 * size.patch_size
    config = {
        "text_config": {
            "model_type": "qwen2",
            "vocab_size": len(tokenizer),
            "hidden_size": size.hidden_size,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.kv_heads,
            "intermediate_size": size.intermediate_size,
            "max_position_embeddings": size.max_positions,
            "rope_theta": 10000.0,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": control.im_end,
            "pad_token_id": control.end_of_text,
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": size.vision_hidden_size,
            "num_hidden_layers": size.vision_layers,
            "num_attention_heads": size.vision_heads,
            "intermediate_size": size.vision_intermediate_size,
            "patch_size": size.patch_size,
            "image_size": side,
            "vision_use_head": False,
        },
        "image_token_index": control.image_pad,
        "video_token_index": len(tokenizer),  # no video in this vocabulary: an id that never occurs
        "image_grid_pinpoints": [
            [side * rows, side * columns] for rows in range(1, squares + 1) for columns in range(1, squares + 1)
        ],
        "vision_aspect_ratio": f"anyres_max_{most_tiles}",
        "tie_word_embeddings": True,
    }
    return LlavaOneVision.build(config)


def create_tiny(tokenizer: Any, **sizes: Any) -> LlavaOneVision:
    """new_model with its picture settings, ready to write."""
    model = new_model(tokenizer, **sizes).eval()
    config, side = model.config, model.config.vision_config.image_size
    settings = LlavaOneVision.picture_settings | {
        "size": {"height": side, "width": side},
        "image_grid_pinpoints": [list(pair) for pair in config.image_grid_pinpoints],
    }
    patch, most = config.vision_config.patch_size, tile_numbers(config.to_dict(), "the configuration")[1]
    return LlavaOneVision(model, tokenizer, TiledImages(tile_processing().from_dict(settings), patch, most))
