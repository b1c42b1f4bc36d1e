"""The Qwen2.5-VL family on transformers' Qwen2_5_VLForConditionalGeneration.

In: token ids, vision patches, mrope positions. Out: next-token logits and the states of all decoder layers.
Positions are always given explicitly (a picture in the middle of a cached context makes the model's own guess wrong):
text counts 1, 1, 1; a picture's tokens share one time and count rows and columns of its merged grid; the text after it
goes on at max(rows, columns). Same rule as transformers' get_rope_index, against which it is tested.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from duogen_core.errors import DuoGenError
from duogen_core.mllm.base import Mllm
from duogen_core.mllm.chat import control_ids, model_inputs
from duogen_core.mllm.image_processor import small_image_processor


class Qwen25VL(Mllm):
    model_type = "qwen2_5_vl"

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

    def embed(self, ids: Tensor, patches: Tensor | None, grids: Tensor | None) -> Tensor:
        embeds = self.model.get_input_embeddings()(ids)
        if patches is not None:
            features = self.model.model.visual(patches.to(embeds.dtype), grid_thw=grids)
            # transformers 5 returns an output object, 4 the tensor itself.
            features = getattr(features, "pooler_output", features)
            mask = (ids == self.control.image_pad).unsqueeze(-1)
            embeds = embeds.masked_scatter(mask, features.to(embeds.dtype))
        return embeds

    def new_cache(self) -> Any:
        from transformers import DynamicCache

        return DynamicCache()

    def crop_cache(self, cache: Any, remove: int) -> None:
        if remove:
            cache.crop(-remove)

    def run_layers(
        self, embeds: Tensor, positions: Tensor, cache: Any, on_layer: Callable[[int, Tensor], None] | None
    ) -> Tensor:
        with layer_outputs(self.model, on_layer):
            out = self.model.model.language_model(
                inputs_embeds=embeds, position_ids=positions, past_key_values=cache, use_cache=True
            )
        return out.last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        return self.model.lm_head(hidden)

    @classmethod
    def load_model(
        cls, folder: Path, dtype: torch.dtype | None = None, prepare: Callable[[nn.Module], None] | None = None
    ) -> nn.Module:
        from accelerate import init_empty_weights
        from safetensors.torch import load_file
        from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

        from duogen_core.weights import check_tensors, read_folder, shapes_of

        try:
            config = Qwen2_5_VLConfig.from_dict(
                _both_spellings(json.loads((folder / "config.json").read_text("utf-8")))
            )
            with init_empty_weights(include_buffers=False):  # the rotary tables are in no file: they are made here
                model = Qwen2_5_VLForConditionalGeneration(config)
        except Exception as error:  # a wrong value raises whatever the layer that meets it raises
            raise DuoGenError(f"{folder / 'config.json'} does not describe a Qwen2.5-VL model: {error}") from error
        found = {_module_name(name): entry for name, entry in read_folder(folder, what="MLLM").items()}
        tied = ("lm_head.weight",) if config.tie_word_embeddings else ()
        check_tensors(found, shapes_of(model), folder, "MLLM", optional=tied)
        if prepare is not None:
            prepare(model)
        index = folder / "model.safetensors.index.json"
        files = {"model.safetensors"}
        if index.is_file():
            files = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        for file in sorted(files):
            state = {_module_name(name): tensor for name, tensor in load_file(folder / file).items()}
            if dtype is not None:
                state = {name: tensor.to(dtype) for name, tensor in state.items()}
            model.load_state_dict(state, strict=False, assign=True)  # strict=False: one shard of several
        model.tie_weights()
        return model.requires_grad_(True).eval()


def _both_spellings(config: dict[str, Any]) -> dict[str, Any]:
    """transformers 5 writes rope_parameters, 4 reads rope_scaling and rope_theta: give either what it knows."""
    text = config.get("text_config")
    rope = text.get("rope_parameters") if isinstance(text, dict) else None
    if rope and "rope_scaling" not in text:
        scaling = {"type": "mrope", "rope_type": "default", "mrope_section": rope["mrope_section"]}
        config["text_config"] = text | {"rope_scaling": scaling, "rope_theta": rope["rope_theta"]}
    return config


def _module_name(name: str) -> str:
    """A tensor's name in the file -> in the module. Qwen's files (and what transformers saves) are flatter."""
    if name.startswith("visual."):
        return f"model.{name}"
    if name.startswith("model.") and not name.startswith(("model.visual.", "model.language_model.")):
        return f"model.language_model.{name.removeprefix('model.')}"
    return name


def mrope_positions(ids: Sequence[int], grids: Sequence[tuple[int, int, int]], image_pad: int, merge: int) -> Tensor:
    """int64 [3, N]: time, row and column position of every token. grids: (1, rows, columns) of patches per picture."""
    pieces, position, i, pictures = [], 0, 0, iter(grids)
    while i < len(ids):
        if ids[i] == image_pad:
            _, rows, columns = (int(n) for n in next(pictures))
            rows, columns = rows // merge, columns // merge
            row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
            pieces.append(torch.stack([torch.zeros_like(row), row, column]).flatten(1) + position)
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
    with layer_outputs(model, lambda _l, h: states.append(h)):
        model.model(**model_inputs(batch, labels=False), use_cache=False)
    return torch.stack(states, dim=1)


def new_model(
    tokenizer: Any,
    *,
    hidden_size: int = 192,
    layers: int = 5,
    heads: int = 6,
    kv_heads: int = 2,
    intermediate_size: int = 512,
    vision_hidden_size: int = 192,
    vision_layers: int = 4,
    vision_heads: int = 6,
    vision_intermediate_size: int = 512,
    patch_size: int = 16,
    max_positions: int = 4096,
    mrope_section: Sequence[int] = (4, 6, 6),
) -> nn.Module:
    """A randomly initialised Qwen2_5_VLForConditionalGeneration; the defaults are the bundled model's.

    The head width is hidden_size / heads and must be twice the sum of mrope_section.
    """
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    if hidden_size % heads or hidden_size // heads != 2 * sum(mrope_section):
        raise DuoGenError(
            f"hidden_size {hidden_size} over {heads} heads must be heads of {2 * sum(mrope_section)} channels, "
            f"twice the sum of mrope_section {tuple(mrope_section)}."
        )
    control = control_ids(tokenizer)
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": hidden_size,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "intermediate_size": intermediate_size,
            "max_position_embeddings": max_positions,
            "rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": list(mrope_section)},
            "rope_theta": 10000.0,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": control.im_end,
            "pad_token_id": control.end_of_text,
        },
        vision_config={
            "depth": vision_layers,
            "hidden_size": vision_hidden_size,
            "num_heads": vision_heads,
            "intermediate_size": vision_intermediate_size,
            "patch_size": patch_size,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 8 * patch_size,
            "fullatt_block_indexes": list(range(vision_layers)),  # small pictures: full attention throughout
            "out_hidden_size": hidden_size,
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
