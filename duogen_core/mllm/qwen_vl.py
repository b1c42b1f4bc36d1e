"""What the Qwen-VL families share: the module layout `model.visual`, `model.language_model`, `lm_head`, and positions.

In: token ids, vision patches, mrope positions. Out: next-token logits and the states of all decoder layers.
Positions are always given explicitly (a picture in the middle of a cached context makes the model's own guess wrong):
text counts 1, 1, 1; a picture's tokens share one time and count rows and columns of its merged grid; the text after it
goes on at max(rows, columns). Same rule as transformers' get_rope_index, against which it is tested.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from duogen_core.errors import DuoGenError
from duogen_core.mllm.base import Mllm
from duogen_core.mllm.chat import model_inputs


class QwenVL(Mllm):
    @property
    def num_layers(self) -> int:
        return self.model.config.text_config.num_hidden_layers

    @property
    def hidden_size(self) -> int:
        return self.model.config.text_config.hidden_size

    @property
    def max_positions(self) -> int:
        return self.model.config.text_config.max_position_embeddings

    def positions(self, ids: Sequence[int], grids: Sequence[tuple[int, int, int]]) -> Tensor:
        return mrope_positions(ids, grids, self.control.image_pad, self.image_processor.merge_size)

    def new_cache(self) -> Any:
        from duogen_core.mllm.decoding import KeyValueCache

        return KeyValueCache()

    def crop_cache(self, cache: Any, remove: int) -> None:
        if remove:  # transformers: a negative number is how many tokens go, a positive one how many stay
            cache.crop(-remove)

    def batch(self, caches: Sequence[Any]) -> Any:
        from duogen_core.mllm.decoding import Batch

        # Other attention functions than these take masks of another kind, or none.
        attention = getattr(self.model.config.text_config, "_attn_implementation", None)
        sliding = getattr(self.model.model.language_model, "has_sliding_layers", False)
        return Batch(caches) if attention in ("sdpa", "eager") and not sliding else None

    def run_rows(
        self, embeds: Tensor, positions: Tensor, batch: Any, on_layer: Callable[[int, Tensor], None] | None
    ) -> Tensor:
        hidden = self._run_one(embeds, positions, batch.cache, on_layer, batch.mask())
        batch.new += 1
        return hidden

    def run_layers(
        self,
        embeds: Tensor,
        positions: Tensor,
        cache: Any,
        on_layer: Callable[[int, Tensor], None] | None,
        **extra: Any,
    ) -> Tensor:
        """extra: what a family's own language model takes besides."""
        language_model = self.model.model.language_model
        if embeds.shape[1] == 1 and not extra and not getattr(language_model, "has_sliding_layers", False):
            return self._run_one(embeds, positions, cache, on_layer)
        extra[_cache_argument(type(language_model))] = cache
        with layer_outputs(self.model, on_layer):
            out = language_model(inputs_embeds=embeds, position_ids=positions, use_cache=True, **extra)
        return out.last_hidden_state

    def _run_one(
        self,
        embeds: Tensor,
        positions: Tensor,
        cache: Any,
        on_layer: Callable[[int, Tensor], None] | None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """One token of each row, which sees all before it: no mask to make, no hooks to set, only layer after layer."""
        language_model = self.model.model.language_model
        kv = {_cache_argument(type(language_model)): cache}
        rotary = language_model.rotary_emb(embeds, positions)
        hidden, last = embeds, len(language_model.layers) - 1
        for index, layer in enumerate(language_model.layers):
            hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary, **kv)
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden  # Qwen2.5-VL of transformers 4
            if on_layer is not None and index < last:
                on_layer(index, hidden)
        hidden = language_model.norm(hidden)
        if on_layer is not None:
            on_layer(last, hidden)
        return hidden

    def decoding(self) -> AbstractContextManager[None]:
        from duogen_core.mllm.decoding import several_cores

        return several_cores(self.model)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.model.lm_head(hidden)

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
        # transformers 5 checks kinds of values itself, but no bounds; 4 takes all, and fails while the model looks or
        # writes. Every picture is filled up to whole windows: a window of a million pixels takes minutes and gigabytes.
        token = vision.patch_size * vision.spatial_merge_size
        whole_number = "a whole number of at least"
        for part, name, right, wanted in (
            (text, "max_position_embeddings", lambda n: _whole(n, 1), f"{whole_number} 1"),
            (text, "pad_token_id", lambda n: n is None or _whole(n, 0), f"none, or {whole_number} 0"),
            (text, "rms_norm_eps", lambda n: type(n) in (int, float) and 0 <= n < 1, "a number of 0 to 1"),
            (vision, "num_heads", lambda n: _whole(n, 1), f"{whole_number} 1"),
            (vision, "window_size", lambda n: _whole(n, token, 1024 * token), f"{token} to {1024 * token} pixels"),
            (vision, "fullatt_block_indexes", _indexes, "a list of whole numbers"),
            (vision, "deepstack_visual_indexes", _indexes, "a list of whole numbers"),
        ):
            if hasattr(part, name) and not right(getattr(part, name)):  # windows are Qwen2.5-VL's, deepstack Qwen3-VL's
                raise DuoGenError(f"{where} has {name} {getattr(part, name)!r}; expected {wanted}.")

    @classmethod
    def module_name(cls, name: str) -> str:
        """A tensor's name in a file -> in the module. The files of Qwen2.5-VL and of ComfyUI are flatter."""
        if name.startswith("visual."):
            return f"model.{name}"
        if name.startswith("model.") and not name.startswith(("model.visual.", "model.language_model.")):
            return f"model.language_model.{name.removeprefix('model.')}"
        return name


def _whole(value: object, low: int, high: int = 2**31) -> bool:
    return type(value) is int and low <= value <= high


def _indexes(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(_whole(index, 0) for index in value)


# What guess_config says of other sizes: the width of a head and the blocks with full attention are in no shape.
UNPUBLISHED = (
    "has no configuration, and is of another size than the published {name} models, whose configurations follow from "
    "their shapes; give the model's folder, with its config.json."
)


@dataclass(frozen=True)
class Sizes:
    """The sizes of a new, untrained model; the defaults are the bundled model's."""

    hidden_size: int = 192
    layers: int = 5
    heads: int = 6
    kv_heads: int = 2
    intermediate_size: int = 512
    vision_hidden_size: int = 192
    vision_layers: int = 4
    vision_heads: int = 6
    vision_intermediate_size: int = 512
    patch_size: int = 16
    max_positions: int = 4096


@lru_cache
def _cache_argument(language_model: type[nn.Module]) -> str:
    """transformers renamed past_key_values to cache in 5.24 and drops the old name in 5.40."""
    return "cache" if "cache" in inspect.signature(language_model.forward).parameters else "past_key_values"


def both_spellings(config: dict[str, Any]) -> dict[str, Any]:
    """transformers 5 writes rope_parameters, 4 reads rope_scaling and rope_theta: give either what it knows."""
    text = config.get("text_config")
    rope = text.get("rope_parameters") if isinstance(text, dict) else None
    if rope and "rope_scaling" not in text:
        scaling = {"rope_type": "default", **{k: v for k, v in rope.items() if k.startswith("mrope")}}
        config = config | {"text_config": text | {"rope_scaling": scaling, "rope_theta": rope["rope_theta"]}}
    return config


def mrope_positions(ids: Sequence[int], grids: Sequence[tuple[int, int, int]], image_pad: int, merge: int) -> Tensor:
    """int64 [3, N]: time, row and column position of every token. grids: (1, rows, columns) of patches per picture."""
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


@contextmanager
def layer_outputs(model: nn.Module, on_layer: Callable[[int, Tensor], None] | None):
    """While open, on_layer(l, h) gets the output of decoder layer l (0-based), the last one after the final norm."""
    if on_layer is None:
        yield
        return
    language_model = model.model.language_model

    def hook(index: int):
        def call(_module, _args, out):
            on_layer(index, out[0] if isinstance(out, tuple) else out)

        return call

    modules = [*language_model.layers[:-1], language_model.norm]
    handles = [module.register_forward_hook(hook(i)) for i, module in enumerate(modules)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def hidden_states_for(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    """A batch of `build_inputs` -> [B, L, N, H]: outputs of layers 1..L, the last one after the final norm.

    Entries beyond a row's attention mask mean nothing. Gradients flow unless the caller turns them off.
    """
    states: list[Tensor] = []
    # A copy: transformers 4 adds Qwen3-VL's deepstack features to a layer's output in place, after it was handed out.
    with layer_outputs(model, lambda _l, h: states.append(h.clone())):
        model.model(**model_inputs(batch, labels=False), use_cache=False)
    return torch.stack(states, dim=1)


def count_layers(shapes: Mapping[str, Any], prefix: str) -> int:
    """How many layers a file has: one more than the highest number that follows `prefix`."""
    numbers = {name[len(prefix) :].split(".")[0] for name in shapes if name.startswith(prefix)}
    return 1 + max((int(number) for number in numbers if number.isdigit()), default=-1)
