"""The numbers of a LoRA for the MLLM, by the names of the modules they change; PEFT's adapters of a DiT as one file.

In:  an adapter in PEFT's layout (adapter_model.safetensors beside adapter_config.json, which holds its scale; the
     folder or the file), or one safetensors file in any naming of lora.py, whose scale is in the file (`alpha`).
Out: `Adapter`, whose matrices and rows fit the MLLM they were read for; or a sentence that says what they are instead.
     `single_file`: for a DiT, the pieces of a file that ComfyUI's LoRA loaders read (`convert`).
W + scale B A of Hu et al., 2021 (arXiv 2106.09685). LoHa (arXiv 2108.06098) and LoKr (arXiv 2309.14859) change W by
other products, rsLoRA (arXiv 2312.03732) has another scale, and DoRA (arXiv 2402.09353) gives every row of the sum a
length of its own. What PEFT calls trainable tokens are rows that replace the model's.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duogen_core.errors import DuoGenError
from duogen_core.files import read_json
from duogen_core.mllm import FAMILIES, family_class
from duogen_core.weights.gguf_layers import PackedLinear
from duogen_core.weights.headers import WeightError
from duogen_core.weights.lora import (
    DORA,
    LoraFile,
    check_lora,
    read_lora,
)
from duogen_core.weights.reading import WeightFiles
from duogen_core.weights.writing import Piece

if TYPE_CHECKING:
    from torch import Tensor

    from duogen_core.mllm.base import Mllm

FILE, CONFIG = "adapter_model.safetensors", "adapter_config.json"
TOKENS = "trainable_tokens_delta"
KINDS = {"LORA": "LoRA", "LOHA": "LoHa", "LOKR": "LoKr"}  # PEFT's name -> ours
# What PEFT adds to them that is no change of a matrix, or one of other mathematics.
REFUSED = (
    "modules_to_save", "layer_replication", "lora_bias", "fan_in_fan_out", "use_bdlora", "use_qalora",
    "target_parameters", "alora_invocation_tokens", "arrow_config", "kasa_config", "velora_config", "monteclora_config",
)  # fmt: skip
# Beginnings that take something out of the model's own weights, which would have to be done here as well.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class Change:
    """What an adapter does to one matrix, [outputs, inputs].

    parts: of a LoRA (up, down), a LoHa (w1_a, w1_b, w2_a, w2_b) or a LoKr (w1, w2). lengths: of a DoRA, [outputs, 1] or
    [1, inputs]: what the rows, or columns, of the changed matrix are scaled to.
    """

    kind: str
    parts: tuple[Tensor, ...]
    scale: float
    lengths: Tensor | None = None

    def delta(self) -> Tensor:
        """What is added to the matrix, float32."""
        import torch

        parts = [part.float() for part in self.parts]
        if self.kind == "LoRA":
            return self.scale * (parts[0] @ parts[1])
        if self.kind == "LoHa":
            return self.scale * ((parts[0] @ parts[1]) * (parts[2] @ parts[3]))
        return self.scale * torch.kron(*parts)

    def merged(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """The changed matrix, in float32 and where `weight` is."""
        weight = weight.float()
        delta = self.delta().to(weight.device)
        if self.lengths is None:
            return weight + strength * delta
        # DoRA: the sum gives the direction of each row (or column), `lengths` how long it is. Strength goes from the
        # model's own matrix to this one, since half a length and half a direction would be something else.
        changed = weight + delta
        lengths = self.lengths.float().to(weight.device)
        changed *= lengths / changed.norm(dim=1 if lengths.shape[1] == 1 else 0, keepdim=True)
        return weight + strength * (changed - weight)

    def to(self, device: Any) -> Change:
        lengths = None if self.lengths is None else self.lengths.to(device)
        return replace(self, parts=tuple(part.to(device) for part in self.parts), lengths=lengths)


@dataclass(frozen=True)
class Adapter:
    """layers: {module: its change}. rows: {module of an embedding: {token id: its new row}}."""

    path: Path
    layers: dict[str, Change]
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
        raise WeightError(
            f"{file} is a PEFT adapter without its {CONFIG}, which holds its scale; copy it into the same folder."
        )
    trained = _trained_on(weights.metadata, config)
    if trained not in (None, mllm.model_type):
        raise WeightError(
            f"{file} is a LoRA for {trained}, but this language model is {mllm.model_type}; load it on the model that "
            "it was trained on."
        )
    known = ("down", "up", "alpha", TOKENS, *DORA)
    other = next(
        (part for _, part in lora.tensors if part not in known and not part.startswith(("hada_", "lokr_"))), None
    )
    if other is not None:
        raise WeightError(f"{file} holds tensors of the kind {other!r}, which DuoGen cannot apply to an MLLM.")
    _check_said(file, lora, config)
    if any(isinstance(layer, PackedLinear) for layer in mllm.model.modules()):
        raise DuoGenError(
            f"{file} cannot be applied to a language model in GGUF, whose layers stay quantised; load the model from "
            f"safetensors."
        )
    # Of the parameters: the state of a quantised layer has the shapes of its packed numbers.
    shapes = {name: tuple(weight.shape) for name, weight in mllm.model.named_parameters(remove_duplicate=False)}
    names = check_lora(lora, shapes, str(file), f"this {mllm.model_type}", type(mllm).module_name)
    tensors = {name: tensor.clone() for name, tensor in weights.tensors()}  # not mapped: training writes it anew
    weights.check_unchanged()
    layers = {names[layer]: _change(file, layer, lora, tensors, config) for layer in lora.layers}
    return Adapter(Path(path), layers, _rows(file, lora, tensors, config, mllm))


def _trained_on(metadata: Mapping[str, str], config: Mapping[str, Any]) -> str | None:
    """The family that an adapter says it was trained on; its layers may have the names and sizes of another's.

    Ours say it in their metadata, PEFT's by the class or the published name of the model. None: nothing that is sure.
    """
    if isinstance(said := metadata.get("model_type"), str):
        return said
    known = {model_type: family_class(model_type).published_as for model_type in FAMILIES}
    class_ = (config.get("auto_mapping") or {}).get("base_model_class") or ""
    name = str(config.get("base_model_name_or_path") or "").replace("\\", "/").rstrip("/").rpartition("/")[2].lower()
    found = {
        model_type
        for model_type, (begins, published) in known.items()
        if str(class_).startswith(begins) or published in name
    }
    return found.pop() if len(found) == 1 else None


def _check_said(file: Path, lora: LoraFile, config: Mapping[str, Any]) -> None:
    """What the configuration says must be what the tensors are; neither alone may decide."""
    if not config:
        return
    said = KINDS[config["peft_type"]]
    other = next((layer for layer, kind in lora.kinds.items() if kind != said), None)
    if other is not None:
        raise WeightError(f"{file}: {other} is a {lora.kinds[other]}, but its {CONFIG} says {said}.")
    lengths = {layer for layer, part in lora.tensors if part in DORA}
    if bool(config.get("use_dora")) != bool(lengths) or (lengths and lengths != lora.layers.keys()):
        has = f"{len(lengths)} of {len(lora.layers)} layers have the lengths of one"
        raise WeightError(f"{file}: {has}, but its {CONFIG} says use_dora {bool(config.get('use_dora'))}.")


def _change(
    file: Path, layer: str, lora: LoraFile, tensors: Mapping[str, Tensor], config: Mapping[str, Any]
) -> Change:  # fmt: skip
    def part(name: str) -> Tensor | None:
        return tensors[lora.tensors[layer, name]] if (layer, name) in lora.tensors else None

    kind, (rank, inputs, outputs) = lora.kinds[layer], lora.layers[layer]
    if kind == "LoRA":
        parts = part("up"), part("down")
    elif kind == "LoHa":
        parts = tuple(part(f"hada_w{n}_{half}") for n in (1, 2) for half in "ab")
    else:
        whole = [part(f"lokr_w{n}") for n in (1, 2)]
        made = [
            None if (a := part(f"lokr_w{n}_a")) is None else a.float() @ part(f"lokr_w{n}_b").float() for n in (1, 2)
        ]
        parts = tuple(w if w is not None else m for w, m in zip(whole, made))
    lengths = next((found for name in DORA if (found := part(name)) is not None), None)
    if lengths is not None:
        if lengths.numel() == inputs and tuple(lengths.shape) == (1, inputs):
            lengths = lengths.reshape(1, inputs)
        elif lengths.numel() == outputs:
            lengths = lengths.reshape(outputs, 1)
        else:
            raise WeightError(
                f"{file}: the lengths of {layer} are {list(lengths.shape)}; expected {outputs} numbers, one a row."
            )
    return Change(kind, parts, _scale(file, layer, rank, lora, tensors, config), lengths)


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
        raise WeightError(
            f"{file} is not a LoRA for a DiT; one for an MLLM is read as it is, by DuoGen Load LoRA (Language Model)."
        )
    pieces = []
    for (layer, part), name in lora.tensors.items():
        if part not in ("down", "up") or config["peft_type"] != "LORA":
            raise WeightError(
                f"{file} holds tensors of the kind {part!r}, which a single file for ComfyUI cannot hold."
            )
        ours = f"diffusion_model.{layer.removeprefix('net.')}"
        pieces.append(weights.piece(name, f"{ours}.lora_{'A' if part == 'down' else 'B'}.weight"))
        if part == "down":
            rank = lora.layers[layer][0]
            alpha = torch.tensor(_scale(file, layer, rank, lora, {}, config) * rank)
            pieces.append(Piece(f"{ours}.alpha", "F32", (), 4, lambda alpha=alpha: [alpha.numpy().tobytes()]))
    return pieces


def _config(file: Path) -> dict[str, Any]:
    config = read_json(file, "configuration of an adapter")
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise WeightError(f"{file} does not describe a PEFT LoRA: it has no peft_type.")
    kind = config["peft_type"]
    used = [name for name in REFUSED if config.get(name)]
    begun = config.get("init_lora_weights")
    if isinstance(begun, str) and begun.lower().startswith(CHANGES_BASE):
        used.append(f"init_lora_weights {begun}")  # PEFT can convert it to a plain one when it saves it
    if kind not in KINDS or used or config.get("bias", "none") not in ("none", None):
        what = kind if kind not in KINDS else used[0] if used else "bias"
        raise WeightError(f"{file} describes an adapter with {what}; expected a plain LoRA, LoHa or LoKr.")
    alpha = "lora_alpha" if kind == "LORA" else "alpha"
    if type(config.get("r")) is not int or config["r"] < 1 or not _finite(config.get(alpha)):
        raise WeightError(f"{file} does not describe a PEFT LoRA: r and {alpha} must be numbers, r at least 1.")
    for name in ("alpha_pattern", "rank_pattern"):
        patterns = config.get(name) or {}
        if not isinstance(patterns, dict) or not all(map(_finite, patterns.values())):
            raise WeightError(f"{file}: {name} must be an object of numbers.")
    return config


def _finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9


def _scale(
    file: Path, layer: str, rank: int, lora: LoraFile, tensors: Mapping[str, Tensor], config: Mapping[str, Any]
) -> float:  # fmt: skip
    """What the product is multiplied with: alpha / rank, of the file or of PEFT's configuration."""
    if (layer, "alpha") in lora.tensors:
        alpha = tensors[lora.tensors[layer, "alpha"]]
        if alpha.numel() != 1 or not alpha.isfinite().all():
            raise WeightError(f"{file}: the alpha of {layer} has the shape {list(alpha.shape)}; expected one number.")
        # LyCORIS: where both matrices of a LoKr are whole there is no rank, and alpha says nothing.
        return float(alpha) / rank if rank else 1.0
    if not config:
        return 1.0
    usual = config["lora_alpha"] if config["peft_type"] == "LORA" else config["alpha"]
    alpha = _by_pattern(file, config.get("alpha_pattern"), layer, usual)
    if lora.kinds[layer] == "LoKr":  # its tensors do not show the rank that PEFT divides by
        rank = _by_pattern(file, config.get("rank_pattern"), layer, config["r"])
    if rank <= 0:
        raise WeightError(f"{file}: the rank of {layer} is {rank}; expected at least 1.")
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _by_pattern(file: Path, patterns: Mapping[str, float] | None, layer: str, usual: float) -> float:
    for pattern, value in (patterns or {}).items():
        try:
            if re.search(rf"(^|\.){pattern}$", layer):
                return value
        except re.error as error:
            raise WeightError(
                f"{file.with_name(CONFIG)}: {pattern[:80]!r} is not a regular expression ({error})."
            ) from None
    return usual


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
    from duogen_core.mllm.tokenizer import add_bov

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
    changed.generation = mllm.generation
    changed.device = mllm._device
    return changed
