"""The numbers of a LoRA for the MLLM, by the names of the modules they change; PEFT's adapters of a DiT as one file.

In:  an adapter in PEFT's layout (adapter_model.safetensors beside adapter_config.json, which holds its scale; the
     folder or the file), or one safetensors file in any naming of lora.py, whose scale is in the file (`alpha`).
Out: `Adapter`, whose matrices and rows fit the MLLM they were read for; or a sentence that says what they are instead.
     `single_file`: for a DiT, the pieces of a file that ComfyUI's LoRA loaders read (`convert`).
W + scale B A of Hu et al., 2021 (arXiv 2106.09685); what PEFT calls trainable tokens are rows that replace the model's.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duogen_core.errors import DuoGenError
from duogen_core.formats.lora import LoraFile, check_lora, read_lora
from duogen_core.formats.reading import WeightFiles
from duogen_core.formats.writing import Piece
from duogen_core.weights import WeightError

if TYPE_CHECKING:
    from torch import Tensor

    from duogen_core.mllm.base import Mllm

FILE, CONFIG = "adapter_model.safetensors", "adapter_config.json"
TOKENS = "trainable_tokens_delta"
# Kinds of adapters that one product of two matrices does not describe.
REFUSED = ("use_dora", "modules_to_save", "layer_replication", "lora_bias", "fan_in_fan_out", "use_bdlora")


@dataclass(frozen=True)
class Low:
    """A change of low rank: scale * up @ down. down [rank, inputs], up [outputs, rank]."""

    down: Tensor
    up: Tensor
    scale: float

    def whole(self) -> Tensor:
        return self.scale * (self.up.float() @ self.down.float())


@dataclass(frozen=True)
class Adapter:
    """layers: {module: its change}. rows: {module of an embedding: {token id: its new row}}."""

    path: Path
    layers: dict[str, Low]
    rows: dict[str, dict[int, Tensor]]

    @property
    def tokens(self) -> set[int]:
        return {token for rows in self.rows.values() for token in rows}


def adapter_files(path: str | Path) -> tuple[Path, Path | None]:
    """(weights, configuration or None) of a folder or a file."""
    path = Path(path)
    file = path / FILE if path.is_dir() else path
    config = file.with_name(CONFIG)
    return file, config if file.name == FILE and config.is_file() else None


def read_adapter(path: str | Path, mllm: Mllm) -> Adapter:
    """Looks at names and shapes first, and reads nothing of a LoRA that does not fit."""
    file, config_file = adapter_files(path)
    config = _config(config_file) if config_file else {}
    weights = WeightFiles([file], "LoRA")
    lora = read_lora(weights.entries, str(file))
    if not lora.layers:
        raise WeightError(f"{file} holds no LoRA: none of its {len(weights.entries)} tensors is a matrix of one.")
    if lora.target == "DiT":
        raise WeightError(f"{file} is a LoRA for a diffusion transformer, not for an MLLM; load it on a MODEL.")
    if lora.naming == "PEFT" and config_file is None:
        raise WeightError(f"{file} is an adapter of PEFT's without its {CONFIG}, which holds its scale; put it beside.")
    other = next((part for _, part in lora.tensors if part not in ("down", "up", "alpha", TOKENS)), None)
    if other is not None:
        raise WeightError(f"{file} holds tensors of the kind {other!r}, which DuoGen cannot apply to an MLLM.")
    # Of the parameters: the state of a quantised layer has the shapes of its packed numbers.
    shapes = {name: tuple(weight.shape) for name, weight in mllm.model.named_parameters(remove_duplicate=False)}
    names = check_lora(lora, shapes, str(file), f"this {mllm.model_type}", type(mllm).module_name)
    tensors = {name: tensor.clone() for name, tensor in weights.tensors()}  # not mapped: training writes it anew
    weights.check_unchanged()
    layers = {
        names[layer]: Low(
            tensors[lora.tensors[layer, "down"]], tensors[lora.tensors[layer, "up"]],
            _scale(layer, rank, lora, tensors, config),
        )
        for layer, (rank, _, _) in lora.layers.items()
    }  # fmt: skip
    return Adapter(Path(path), layers, _rows(file, lora, tensors, config, mllm))


def single_file(path: Path) -> list[Piece]:
    """PEFT's adapter of a DiT -> ComfyUI's naming (`diffusion_model.…`), its scale as `alpha` beside each layer."""
    import torch

    file, config_file = adapter_files(path)
    if config_file is None:
        raise WeightError(f"{file} has no {CONFIG} beside it; ComfyUI's loaders read other LoRA files as they are.")
    config = _config(config_file)
    weights = WeightFiles([file], "LoRA")
    lora = read_lora(weights.entries, str(file))
    if lora.target == "MLLM" or not lora.layers:
        raise WeightError(f"{file} is no LoRA for a DiT; one for an MLLM is read as it is, by DuoGen Load MLLM LoRA.")
    pieces = []
    for (layer, part), name in lora.tensors.items():
        if part not in ("down", "up"):
            raise WeightError(f"{file} holds tensors of the kind {part!r}, which one file cannot say for ComfyUI.")
        ours = f"diffusion_model.{layer.removeprefix('net.')}"
        pieces.append(weights.piece(name, f"{ours}.lora_{'A' if part == 'down' else 'B'}.weight"))
        if part == "down":
            rank = lora.layers[layer][0]
            alpha = torch.tensor(_scale(layer, rank, lora, {}, config) * rank)
            pieces.append(Piece(f"{ours}.alpha", "F32", (), 4, lambda alpha=alpha: [alpha.numpy().tobytes()]))
    return pieces


def _config(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        kind, known = config["peft_type"], {name: config.get(name) for name in REFUSED}
        if not isinstance(config["r"], int) or not isinstance(config["lora_alpha"], (int, float)):
            raise ValueError("r and lora_alpha must be numbers")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightError(f"{file} does not describe a LoRA of PEFT's ({error!r}).") from None
    used = [name for name, value in known.items() if value]
    if kind != "LORA" or used or config.get("bias", "none") != "none":
        what = kind if kind != "LORA" else used[0] if used else "bias"
        raise WeightError(f"{file} describes an adapter with {what}; expected a plain LoRA.")
    return config


def _scale(
    layer: str, rank: int, lora: LoraFile, tensors: Mapping[str, Tensor], config: Mapping[str, Any]
) -> float:  # fmt: skip
    """What the product is multiplied with: alpha / rank, of the file or of PEFT's configuration."""
    if (layer, "alpha") in lora.tensors:
        return float(tensors[lora.tensors[layer, "alpha"]]) / rank
    if not config:
        return 1.0
    patterns = config.get("alpha_pattern") or {}
    own = [value for pattern, value in patterns.items() if re.search(rf"(^|\.){pattern}$", layer)]
    alpha = own[0] if own else config["lora_alpha"]
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _rows(
    file: Path, lora: LoraFile, tensors: Mapping[str, Tensor], config: Mapping[str, Any], mllm: Mllm
) -> dict[str, dict[int, Tensor]]:
    listed = config.get("trainable_token_indices") or {}
    modules = dict(mllm.model.named_modules())
    rows: dict[str, dict[int, Tensor]] = {}
    for layer in (layer for layer, part in lora.tensors if part == TOKENS):
        name = type(mllm).module_name(f"{layer}.weight").removesuffix(".weight")
        new = tensors[lora.tensors[layer, TOKENS]]
        ids = listed if isinstance(listed, list) else listed.get(layer.rpartition(".")[2])
        weight = getattr(modules.get(name), "weight", None)
        if not isinstance(ids, list) or len(ids) != len(new):
            raise WeightError(f"{file} has new rows for {layer}, but its {CONFIG} does not say of which tokens.")
        if weight is None or new.shape[1:] != weight.shape[1:] or not all(0 <= token < len(weight) for token in ids):
            raise WeightError(f"{file} is a LoRA for another model: its new rows of {layer} do not fit.")
        rows[name] = dict(zip(ids, new))
    embedding, output = "model.language_model.embed_tokens", "lm_head"
    if mllm.model.config.tie_word_embeddings and rows:  # one matrix under two names
        both = next(iter(rows.values()))
        rows = {name: both for name in (embedding, output) if name in modules}
    return rows


def with_marker(mllm: Mllm, adapter: Adapter) -> Mllm:
    """The same model and its own caches, with <BOV> in its tokenizer where the adapter teaches it."""
    from duogen_core.mllm.chat import BOV, has_bov
    from duogen_core.training.bov import add_bov

    if not adapter.tokens:
        changed = copy.copy(mllm)
        changed.clear_cache()
        return changed
    tokenizer = mllm.tokenizer
    if not has_bov(tokenizer):
        tokenizer = copy.deepcopy(tokenizer)
        add_bov(tokenizer, mllm.model.get_input_embeddings().num_embeddings)
    bov = tokenizer.get_vocab()[BOV]
    if bov not in adapter.tokens:
        raise DuoGenError(
            f"{adapter.path} is a LoRA for another model: it teaches the token {min(adapter.tokens)}, but {BOV} is "
            f"token {bov} here."
        )
    changed = type(mllm)(mllm.model, tokenizer, mllm.image_processor)
    changed.device = mllm._device
    return changed
