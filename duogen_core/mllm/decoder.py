"""What the families on transformers share: a model with `model.language_model`, `lm_head`, and a vision tower beside.

In: token ids, pixel values, positions. Out: next-token logits and the states of all decoder layers. Positions are
always given explicitly: where a picture stands in the middle of a cached context, a model's own guess is wrong.
Three class methods do the work, so that training, which has the torch module alone, runs the very same code:

    look(model, patches, grids)         [tokens, width] of all pictures one after another
    embedded(model, ids, seen)          [B, N, width] of text, with what was seen in its places
    decode(model, embeds, positions)    [B, N, hidden_size] after the final norm; calls on_layer for every layer

width is hidden_size, or a multiple of it where a picture gives more than embeddings (Qwen3-VL).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from duogen_core.errors import DuoGenError
from duogen_core.mllm.base import Mllm
from duogen_core.mllm.chat import model_inputs


class DecoderMllm(Mllm):
    vision: ClassVar[tuple[str, ...]]  # how the names of all weights begin that see pictures

    @property
    def num_layers(self) -> int:
        return self.model.config.text_config.num_hidden_layers

    @property
    def hidden_size(self) -> int:
        return self.model.config.text_config.hidden_size

    @property
    def max_positions(self) -> int:
        return self.model.config.text_config.max_position_embeddings

    @property
    def numbers_of_a_patch(self) -> int:
        """How many numbers are held at once for each patch while pictures are looked at: an estimate."""
        return 6 * self.hidden_size

    def positions(self, ids: Sequence[int], grids: Sequence[Sequence[int]]) -> Tensor:
        return self.image_processor.positions(ids, grids, self.control.image_pad)

    def embed(self, ids: Tensor, patches: Tensor | None, grids: Tensor | None) -> Tensor:
        embeds = self.model.get_input_embeddings()(ids)
        if patches is None:
            return embeds
        seen = self.look(self.model, patches.to(embeds.dtype), grids)
        return _in_places(embeds, ids == self.control.image_pad, seen)

    @classmethod
    def sees(cls, name: str) -> bool:
        """Whether a weight of the module is one that looks at pictures: what `tower_lr` trains, or leaves frozen."""
        return name.startswith(cls.vision)

    # -- seeing and reading, for training too -------------------------------------------------------------------------

    @classmethod
    def look(cls, model: nn.Module, patches: Tensor, grids: Tensor) -> Tensor:
        raise NotImplementedError

    @classmethod
    def look_at(cls, model: nn.Module, pictures: Tensor, grid: Sequence[int]) -> Tensor:
        """Pictures as `ImageProcessor.prepared` gives them, uint8 [n, …, 3] of one grid -> [n, tokens, width]."""
        raise NotImplementedError

    @classmethod
    def embedded(cls, model: nn.Module, ids: Tensor, seen: Tensor | None) -> Tensor:
        embeds = model.get_input_embeddings()(ids)
        return embeds if seen is None else _in_places(embeds, ids == model.config.image_token_id, seen)

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
        """positions [P, B, N]; extra: what a family's own language model takes besides."""
        language_model = model.model.language_model
        if cache is not None:
            extra[_cache_argument(type(language_model))] = cache
        with layer_outputs(model, on_layer):
            out = language_model(
                inputs_embeds=embeds, position_ids=position_ids(positions), use_cache=cache is not None, **extra
            )
        return out.last_hidden_state

    # -- the KV cache, and one token after another --------------------------------------------------------------------

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
        return Batch(caches) if attention in ("sdpa", "eager") and not self._sliding else None

    @property
    def _sliding(self) -> bool:
        return getattr(self.model.model.language_model, "has_sliding_layers", False)

    def run_rows(
        self, embeds: Tensor, positions: Tensor, batch: Any, on_layer: Callable[[int, Tensor], None] | None
    ) -> Tensor:
        hidden = self._run_one(embeds, positions, batch.cache, on_layer, batch.mask())
        batch.new += 1
        return hidden

    def run_layers(
        self, embeds: Tensor, positions: Tensor, cache: Any, on_layer: Callable[[int, Tensor], None] | None
    ) -> Tensor:
        if embeds.shape[1:] == (1, self.hidden_size) and not self._sliding:
            return self._run_one(embeds, positions, cache, on_layer)
        return self.decode(self.model, embeds, positions, cache, on_layer)

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
        rotary = language_model.rotary_emb(embeds, position_ids(positions))
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


def position_ids(positions: Tensor) -> Tensor:
    """[P, B, N] -> as transformers' language models take them: [B, N] where a token has one position."""
    return positions[0] if len(positions) == 1 else positions


def _in_places(embeds: Tensor, places: Tensor, seen: Tensor) -> Tensor:
    """embeds [B, N, hidden] with seen [tokens, width] in `places`; width more than hidden: zeros beside text."""
    levels = seen.to(embeds).split(embeds.shape[-1], dim=-1)
    places = places.unsqueeze(-1)
    found = [embeds.masked_scatter(places, levels[0])]
    found += [torch.zeros_like(embeds).masked_scatter(places, level) for level in levels[1:]]
    return found[0] if len(found) == 1 else torch.cat(found, dim=-1)


@lru_cache
def _cache_argument(language_model: type[nn.Module]) -> str:
    """transformers renamed past_key_values to cache in 5.24 and drops the old name in 5.40."""
    return "cache" if "cache" in inspect.signature(language_model.forward).parameters else "past_key_values"


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


# ---------------------------------------------------------------- configurations


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


# What guess_config says of other sizes: the width of a head and the blocks with full attention are in no shape.
UNPUBLISHED = (
    "has no configuration, and is of another size than the published {name} models, whose configurations follow from "
    "their shapes; give the model's folder, with its config.json."
)


def both_spellings(config: dict[str, Any]) -> dict[str, Any]:
    """transformers 5 writes rope_parameters, 4 reads rope_scaling and rope_theta: give either what it knows."""
    text = config.get("text_config")
    rope = text.get("rope_parameters") if isinstance(text, dict) else None
    if rope and "rope_scaling" not in text:
        scaling = {"rope_type": "default", **{k: v for k, v in rope.items() if k.startswith("mrope")}}
        config = config | {"text_config": text | {"rope_scaling": scaling, "rope_theta": rope["rope_theta"]}}
    return config


def count_layers(shapes: Mapping[str, Any], prefix: str) -> int:
    """How many layers a file has: one more than the highest number that follows `prefix`."""
    numbers = {name[len(prefix) :].split(".")[0] for name in shapes if name.startswith(prefix)}
    return 1 + max((int(number) for number in numbers if number.isdigit()), default=-1)


Rule = tuple[Any, str, Callable[[Any], bool], str]  # part of the configuration, name, what is right, what is expected


def check_rules(where: object, rules: Sequence[Rule]) -> None:
    """transformers 5 checks kinds of values itself, but no bounds; 4 takes all, and fails while the model looks or
    writes. A name that a part does not have is another family's."""
    for part, name, right, wanted in rules:
        if hasattr(part, name) and not right(getattr(part, name)):
            raise DuoGenError(f"{where} has {name} {getattr(part, name)!r}; expected {wanted}.")


def text_rules(text: Any) -> list[Rule]:
    """What holds for the language model of every family."""
    least = "a whole number of at least"
    return [
        (text, "max_position_embeddings", lambda n: is_whole(n, 1), f"{least} 1"),
        (text, "pad_token_id", lambda n: n is None or is_whole(n, 0), f"none, or {least} 0"),
        (text, "rms_norm_eps", lambda n: type(n) in (int, float) and 0 <= n < 1, "a number of 0 to 1"),
    ]


def is_whole(value: object, low: int, high: int = 2**31) -> bool:
    return type(value) is int and low <= value <= high
