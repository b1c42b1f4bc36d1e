"""Models without memory for their weights (torch's meta device), and what a pass over them keeps until its backward.

A configuration comes from the folder that a recipe names or, where that is not there, from the published ones in
shapes/. What a pass keeps is found by running the real layers on the meta device and looking at what autograd saves.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from duogen_core.errors import DuoGenError, unknown
from duogen_core.training.configuration import RECIPES, load_config
from duogen_core.training.flops import SequenceShape

SHAPES = Path(__file__).parent / "shapes"

# -- the modules, without memory


def shape_of(place: Path) -> dict[str, Any]:
    """The configuration of a model that a recipe names: that of its folder, or the published one of that name."""
    for file in (place / "config.json", place / "dit" / "config.json", place / "transformer" / "config.json"):
        if file.is_file():
            return as_published(json.loads(file.read_text("utf-8")))
    # What an earlier run writes is of the model that run begins with: runs/qwen2.5-vl-7b/export.
    for recipe in sorted((RECIPES / "stage1").glob("*.yaml")):
        from duogen_core.training.stage1 import Stage1Config

        earlier = load_config(Stage1Config, recipe)
        if place.parent == earlier.out:
            return shape_of(earlier.init)
    known = {}
    for file in sorted(SHAPES.glob("*.json")):
        shape = json.loads(file.read_text("utf-8"))
        known |= dict.fromkeys([file.stem, *shape["names"]], shape)
    if place.name not in known:
        names = dict.fromkeys(name for shape in known.values() for name in shape["names"])
        what = f"There is no config.json in {place}, and as the name of a published model"
        raise DuoGenError(
            unknown(what, place.name, names) + " Or give a folder that is there: init=, in stage 2 mllm=."
        )
    return {key: value for key, value in known[place.name].items() if key not in ("names", "source")}


def as_published(shape: dict[str, Any]) -> dict[str, Any]:
    """With a `text_config` and a `vision_config` of an MLLM, as transformers writes it."""
    if "model_type" not in shape:
        return shape
    from transformers import AutoConfig

    config = AutoConfig.for_model(**shape)
    parts = {name: getattr(config, name).to_dict() for name in ("text_config", "vision_config")}
    return {**shape, **parts}


def build_mllm(shape: Mapping[str, Any], layers: int | None = None) -> nn.Module:
    """layers: so many of the language model alone, and next to no vision tower, for what needs no more."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    values = {key: value for key, value in shape.items() if key not in ("model_type", "architectures")}
    if layers is not None:
        values["text_config"] = {**values["text_config"], "num_hidden_layers": layers}
        values["text_config"].pop("layer_types", None)  # one for each layer
        values["vision_config"] = {**values["vision_config"], "depth": 1, "num_hidden_layers": 1}
    config = AutoConfig.for_model(shape["model_type"], **values)
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config, trust_remote_code=False)


def build_dit(shape: Mapping[str, Any], **changes: Any) -> nn.Module:
    from duogen_core.dit.loading import _family

    family = _family(dict(shape), "the recipe's DiT")
    values = {key: value for key, value in shape.items() if not key.startswith("_")}
    with torch.device("meta"):
        return family.from_config({**values, **changes})


def seen_by(model: nn.Module, side: int) -> tuple[int, int]:
    """(tokens, patches that the vision tower sees) of an image of side x side pixels."""
    vision = model.config.vision_config
    if model.config.model_type == "llava_onevision":
        from duogen_core.mllm.any_resolution import TiledImages, tile_numbers, tile_processing

        square = {"height": vision.image_size, "width": vision.image_size}
        pinpoints = model.config.image_grid_pinpoints
        settings = tile_processing().from_dict({"size": square, "image_grid_pinpoints": pinpoints})
        tiles = TiledImages(settings, *tile_numbers(model.config.to_dict(), "config.json"))
        return tiles.tokens((side, side)), tiles.seen((side, side))
    merge = vision.spatial_merge_size
    cells = max(1, side // (vision.patch_size * merge))
    return cells**2, (cells * merge) ** 2


def numel(module: nn.Module, learn: bool | None = None) -> int:
    weights = module.parameters()
    return sum(weight.numel() for weight in weights if learn is None or weight.requires_grad == learn)


# -- what a pass keeps until its backward


class Fused(torch.autograd.Function):
    """What fused attention saves: its inputs, its output and a number for each row. The meta device has none."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(each) for each in ctx.saved_tensors[:3])


@contextmanager
def fused_attention(enabled: bool) -> Iterator[None]:
    before = F.scaled_dot_product_attention
    if enabled:
        F.scaled_dot_product_attention = lambda q, k, v, *_, **__: Fused.apply(q, k, v)
    try:
        yield
    finally:
        F.scaled_dot_product_attention = before


def saved_by(compute: Callable[[], object], weights: Sequence[Tensor], fused: bool = True) -> int:
    """Bytes that autograd keeps of `compute`, each storage once, the weights left out."""
    seen: dict[int, int] = {}
    own = {weight.untyped_storage()._cdata for weight in weights}
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own and storage._cdata not in seen:
            seen[storage._cdata] = storage.nbytes()
            alive.append(storage)  # or the next one might get its number
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), fused_attention(fused):
        alive.append(compute())
    return sum(seen.values())


@dataclass(frozen=True)
class Kept:
    """Bytes a pass keeps: what goes into a block, what a block saves inside, and what is saved before and after."""

    entry: float
    inside: float
    ends: float

    def peak(self, blocks: int, checkpointed: bool) -> float:
        """With gradient checkpointing the blocks' inputs, and more than these either at the end or in one block."""
        if checkpointed:
            return blocks * self.entry + max(self.inside, self.ends)
        return blocks * self.inside + self.ends


def difference(measure: Callable[[int], int], entry: float) -> Kept:
    one, two = measure(1), measure(2)
    return Kept(entry, two - one, max(0, 2 * one - two))


def kept_by_mllm(shape: Mapping[str, Any], rows: int, length: int, learnt: int, dtype: torch.dtype) -> Kept:
    """A micro-batch of rows x length tokens, of which `learnt` have a loss."""

    def measure(layers: int) -> int:
        model = build_mllm(shape, layers).to(dtype)
        text = model.model.language_model
        embeds = torch.empty(rows, length, model.config.text_config.hidden_size, dtype=dtype, device="meta")
        plain = model.config.model_type == "llava_onevision"  # its positions are one number, Qwen-VL's three
        positions = torch.zeros(*(() if plain else (3,)), rows, length, dtype=torch.long, device="meta")
        targets = torch.zeros(learnt, dtype=torch.long, device="meta")
        rotary = tuple(each.to(dtype) for each in text.rotary_emb(embeds, positions))

        def compute() -> list[Tensor]:
            hidden = embeds.clone().requires_grad_()
            for layer in text.layers:
                hidden = layer(hidden, attention_mask=None, position_embeddings=rotary)
                hidden = hidden[0] if isinstance(hidden, tuple) else hidden
            logits = model.get_output_embeddings()(text.norm(hidden).flatten(0, 1)[:learnt])
            return [logits, F.cross_entropy(logits.float(), targets, reduction="none")]

        # The bfloat16 logits go, but the loss and its gradient are as large again in float32.
        more = learnt * model.config.text_config.vocab_size * (torch.float32.itemsize + dtype.itemsize)
        return saved_by(compute, list(model.parameters()), fused=dtype != torch.float32) + more

    hidden = shape["text_config"]["hidden_size"]
    return difference(measure, rows * length * hidden * dtype.itemsize)


def kept_by_dit(
    shape: Mapping[str, Any],
    sequences: Sequence[SequenceShape],
    sides: tuple[int, int],
    dtype: torch.dtype,
    **settings: Any,
) -> Kept:
    """sides: of a latent; all frames are of one size."""
    from duogen_core.dit.packing import TrainingSequence

    def measure(layers: int) -> int:
        dit = nn.Module.to(build_dit(shape, num_layers=layers, **settings), dtype).train()
        channels, width = dit.config.out_channels, dit.config.text_embed_dim

        def latents(count: int) -> tuple[Tensor, ...]:
            return tuple(torch.empty(channels, *sides, dtype=dtype, device="meta") for _ in range(count))

        pack = [
            TrainingSequence(
                latents(len(each.clean)), latents(len(each.noisy)), each.places,
                torch.empty(len(each.noisy), device="meta"), torch.empty(each.text, width, dtype=dtype, device="meta"),
                torch.ones(len(each.places), each.text, dtype=torch.bool),
            )
            for each in sequences
        ]  # fmt: skip
        return saved_by(lambda: dit.forward_train(pack), list(dit.parameters()), fused=dtype != torch.float32)

    tokens = sum(each.tokens for each in sequences)
    probe = build_dit(shape, num_layers=1, **settings)
    width = probe.config.num_attention_heads * probe.config.attention_head_dim
    return difference(measure, tokens * width * dtype.itemsize)
