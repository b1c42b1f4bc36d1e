"""LoRA for MLLM and DiT alike, by the `peft` library: small matrices are trained beside the frozen ones.

    add_lora(model, settings, within="model.language_model.layers", usual=MLLM_TARGETS, tokens={...})    in place
    TrainableOnly(model)            what a run attaches: its checkpoints hold the trainable weights alone
    save_adapter(model, folder)     adapter_config.json and adapter_model.safetensors, as PEFT reads them
    merged_state(model)             {name: tensor} of a model without LoRA that equals this one, which stays as it is

W + (alpha / rank) B A of Hu et al., 2021 (arXiv 2106.09685).

LoRA of the DiT is written in PEFT's layout, and in the one that diffusers writes and ComfyUI's LoRA loaders read:

adapter_config.json, adapter_model.safetensors     PEFT; base_model.model.<layer>.lora_A.weight, scale in the config
pytorch_lora_weights.safetensors                   transformer.<layer>.lora_A.weight; the scale is in lora_B, since
                                                   readers differ in where they look for it
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from duogen_core.dit.base import PackedDit
from duogen_core.errors import MissingPackage, unknown
from duogen_core.training.configuration import ConfigError
from duogen_core.training.quantise import with_originals

MLLM_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
DIT_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
NAME = "default"  # of the adapter inside the model; PEFT's own


@dataclass(kw_only=True)
class LoraSettings:
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ()  # how the names of the adapted layers end; empty: attention and MLP, or attention
    merge: bool = True  # write the whole model too, the adapter added in
    quantise: Literal["nf4"] | None = None  # keep the frozen layers of the MLLM in four bits (QLoRA)

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"'rank' of lora is {self.rank}; expected at least 1.")
        if not self.alpha > 0:
            raise ConfigError(f"'alpha' of lora is {self.alpha}; expected a number above 0, usually 1 or 2 times rank.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"'dropout' of lora is {self.dropout}; expected a share from 0 to below 1.")


def add_lora(
    model: nn.Module,
    settings: LoraSettings,
    *,
    within: str,
    usual: Sequence[str],
    tokens: Mapping[str, Sequence[int]] | None = None,
) -> None:
    """Adapt the Linear layers below module `within` whose names end like `settings.targets` (or `usual`), in place.

    All other weights are frozen, but for `tokens`: {"embed_tokens": [id, …]}, rows that are trained in full.
    """
    peft = _peft()
    targets = tuple(settings.targets) or tuple(usual)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    inside = [name for name in linear if name.startswith(f"{within}.")]
    for target in targets:
        if not any(name.endswith(f".{target}") for name in inside):
            ends = dict.fromkeys(re.sub(r"^.*?\.\d+\.(?:[a-z_]+\d?\.)?", "", name) for name in inside)
            raise ConfigError(unknown("'targets' of lora: the layer", target, ends))
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=rf"{re.escape(within)}\..*\.({'|'.join(map(re.escape, targets))})",
        trainable_token_indices={name: list(rows) for name, rows in tokens.items()} if tokens else None,
    )
    peft.inject_adapter_in_model(config, model, NAME)
    for parameter in trainable(model).values():  # in single precision, whatever the frozen weights are kept in
        parameter.data = parameter.data.float()


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


class TrainableOnly(nn.Module):
    """A model as its trainable parameters alone: its state is theirs, so that checkpoints stay small. Whoever reads one
    back writes into these tensors (checkpoints.py)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in trainable(self.model).items()}


@torch.no_grad()
def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model without LoRA that equals this one; tensors that are not adapted are shared.

    Made of `model.state_dict()` alone, whose tensors are whole where the model's own are split (FSDP).
    """
    from peft.tuners.lora import LoraLayer
    from peft.utils.other import TrainableTokensWrapper

    kinds = (LoraLayer, TrainableTokensWrapper)
    adapted = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
    names = {id(module): name for name, module in model.named_modules()}
    whole = with_originals(model, model.state_dict())
    state = {name: tensor for name, tensor in whole.items() if not any(name.startswith(f"{each}.") for each in adapted)}
    for name, module in adapted.items():
        if isinstance(module, LoraLayer):
            base = f"{name}.base_layer"
            a, b = (whole[f"{name}.lora_{half}.{NAME}.weight"].float() for half in "AB")
            weight = whole[f"{base}.weight"].float()
            weight = weight + module.scaling[NAME] * (b @ a).to(weight.device)
        else:
            tokens = module.token_adapter
            base, owner = f"{name}.token_adapter.base_layer", names[id(tokens.tied_adapter or tokens)]
            weight = whole[f"{base}.weight"].clone()
            weight[tokens.token_indices[NAME]] = whole[f"{owner}.trainable_tokens_delta.{NAME}"].to(weight.dtype)
        state[f"{name}.weight"] = weight.to(whole[f"{base}.weight"].dtype)
        if f"{base}.bias" in whole:
            state[f"{name}.bias"] = whole[f"{base}.bias"]
    return state


def save_adapter(model: nn.Module, folder: str | Path) -> None:
    """In PEFT's layout: `PeftModel.from_pretrained(base, folder)` reads it."""
    peft = _peft()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    found = peft.get_peft_model_state_dict(model, adapter_name=NAME, save_embedding_layers=False)
    state = {f"base_model.model.{name}": tensor.detach().cpu().contiguous() for name, tensor in found.items()}
    family = getattr(model.config, "model_type", None)  # of an MLLM: layers of two families may have one size
    # One entry: safetensors writes several in an order of chance, and the same run must give the same file.
    save_file(state, folder / "adapter_model.safetensors", {"model_type": family} if family else {"format": "pt"})
    model.peft_config[NAME].save_pretrained(folder)


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise MissingPackage("LoRA", "peft", "lora") from None
    return peft


# -- LoRA of the DiT as files

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"


@torch.no_grad()
def save_dit_adapter(dit: PackedDit, folder: Path) -> None:
    from peft.tuners.lora import LoraLayer

    save_adapter(dit, folder)
    state, whole = {}, dit.state_dict()  # the layers' own may be split (FSDP)
    for name, layer in dit.named_modules():
        if isinstance(layer, LoraLayer):
            down, up = (whole[f"{name}.lora_{half}.{NAME}.weight"] for half in "AB")
            up = up * layer.scaling[NAME]
            state[f"transformer.{name}.lora_A.weight"] = down.detach().cpu().contiguous()
            state[f"transformer.{name}.lora_B.weight"] = up.detach().cpu().contiguous()
    save_file(state, folder / DIFFUSERS_FILE, metadata={"format": "pt"})


def save_dit(dit: PackedDit, folder: Path) -> None:
    """A diffusers folder; what LoRA learnt is added in, and the DiT stays as it is."""
    if getattr(dit, "peft_config", None):
        with torch.device("meta"):
            plain = type(dit).from_config(dit.config)
        plain.load_state_dict(merged_state(dit), assign=True)
        dit = plain
    dit.save_pretrained(folder)
