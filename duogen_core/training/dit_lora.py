"""LoRA of the DiT as files: PEFT's own layout, and the one that diffusers writes and ComfyUI's LoRA loaders read.

adapter_config.json, adapter_model.safetensors     PEFT; base_model.model.<layer>.lora_A.weight, scale in the config
pytorch_lora_weights.safetensors                   transformer.<layer>.lora_A.weight; the scale is in lora_B, since
                                                   readers differ in where they look for it
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from duogen_core.dit.cosmos import PackedCosmos
from duogen_core.training.lora import NAME, merged_state, save_adapter

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"


@torch.no_grad()
def save_dit_adapter(dit: PackedCosmos, folder: Path) -> None:
    from peft.tuners.lora import LoraLayer

    save_adapter(dit, folder)
    state = {}
    for name, layer in dit.named_modules():
        if isinstance(layer, LoraLayer):
            down, up = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight * layer.scaling[NAME]
            state[f"transformer.{name}.lora_A.weight"] = down.detach().cpu().contiguous()
            state[f"transformer.{name}.lora_B.weight"] = up.detach().cpu().contiguous()
    save_file(state, folder / DIFFUSERS_FILE, metadata={"format": "pt"})


def save_dit(dit: PackedCosmos, folder: Path) -> None:
    """A diffusers folder; what LoRA learnt is added in, and the DiT stays as it is."""
    if getattr(dit, "peft_config", None):
        with torch.device("meta"):
            plain = PackedCosmos.from_config(dit.config)
        plain.load_state_dict(merged_state(dit), assign=True)
        dit = plain
    dit.save_pretrained(folder)
