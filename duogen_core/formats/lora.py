"""LoRA files: whose naming, for which model, and whether they fit the one at hand; from headers alone.

Namings: "diffusers/PEFT" (`transformer.…lora_A.weight`, or without a prefix), "PEFT" (`base_model.model.…`), "ComfyUI"
(`diffusion_model.…`), "kohya" (`lora_unet_…lora_down.weight`, dots as underscores). adapter.py reads the numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from duogen_core.formats.cosmos_keys import to_diffusers
from duogen_core.weights import Entry, WeightError

ENDINGS = re.compile(
    r"\.(lora_A|lora_B|lora_down|lora_up|lora\.down|lora\.up)(?:\.default)?\.weight$|\.(alpha|dora_scale|diff|diff_b)$"
    r"|(?:\.token_adapter)?\.(trainable_tokens_delta)$"
)
DOWN, UP = ("lora_A", "lora_down", "lora.down"), ("lora_B", "lora_up", "lora.up")
PREFIXES = {
    "base_model.model.": "PEFT",
    "transformer.": "diffusers/PEFT",
    "diffusion_model.": "ComfyUI",
    "lora_unet_": "kohya",
    "lora_transformer_": "kohya",
    "lycoris_": "kohya",
    "lora_te_": "kohya",
    "text_encoder.": "diffusers/PEFT",
}


@dataclass(frozen=True)
class LoraFile:
    """layers: {layer, without prefix: (rank, inputs, outputs)}. target: "DiT", "MLLM" or "unknown".

    tensors: {(layer, part): name in the file}; a part is "down", "up", "alpha", "trainable_tokens_delta", …
    """

    naming: str
    target: str
    layers: dict[str, tuple[int, int, int]]
    tensors: dict[tuple[str, str], str]

    @property
    def ranks(self) -> list[int]:
        return sorted({rank for rank, _, _ in self.layers.values()})


def is_lora(names: Mapping[str, Entry]) -> bool:
    return sum(ENDINGS.search(name) is not None for name in names) > len(names) / 2


def read_lora(entries: Mapping[str, Entry], where: str) -> LoraFile:
    namings, down, up, tensors = set(), {}, {}, {}
    for name, entry in entries.items():
        match = ENDINGS.search(name)
        if match is None:
            raise WeightError(f"{where} is not a whole LoRA: {name} is no part of one.")
        layer, naming = _without_prefix(name[: match.start()])
        namings.add(naming)
        part = next(found for found in match.groups() if found)
        tensors[layer, "down" if part in DOWN else "up" if part in UP else part] = name
        if match[1] in DOWN + UP:
            if len(entry.shape) < 2:
                raise WeightError(f"{where}: {name} has the shape {list(entry.shape)}; expected a matrix.")
            (down if match[1] in DOWN else up)[layer] = entry.shape
    alone = sorted(down.keys() ^ up.keys())
    if alone:
        raise WeightError(f"{where} is not a whole LoRA: {alone[0]} has one of its two matrices.")
    layers = {}
    for layer, shape in down.items():
        if shape[0] != up[layer][1]:
            raise WeightError(f"{where}: the matrices of {layer} have the ranks {shape[0]} and {up[layer][1]}.")
        layers[layer] = (shape[0], shape[1], up[layer][0])
    return LoraFile("/".join(sorted(namings)), _target(layers), layers, tensors)


def check_lora(
    lora: LoraFile,
    shapes: Mapping[str, tuple[int, ...]],
    where: str,
    model: str,
    rename: Callable[[str], str] = lambda name: to_diffusers(name, ""),
) -> dict[str, str]:
    """{layer: the model's own name of it}. Every layer must be a matrix of the model, of its size.

    shapes: of the model's weights. rename: a weight's name in other layouts -> the model's.
    """
    flat = {_flat(name.removesuffix(".weight")): name.removesuffix(".weight") for name in shapes}
    names: dict[str, str] = {}
    strange, other = [], []
    for layer, (_, inputs, outputs) in lora.layers.items():
        ours = _find(flat, layer, rename)
        if ours is None:
            strange.append(layer)
            continue
        names[layer] = ours
        found = shapes[f"{ours}.weight"]
        if tuple(found[:2]) != (outputs, inputs):
            other.append(f"{layer} is for {outputs}x{inputs}, the model's is {found[0]}x{found[1]}")
    if strange:
        raise WeightError(
            f"{where} is a LoRA for another model: {len(strange)} of its {len(lora.layers)} layers are not in {model}, "
            f"for example {strange[0]}."
        )
    if other:
        raise WeightError(f"{where} is a LoRA for another size of model: {other[0]}.")
    return names


def _find(flat: Mapping[str, str], layer: str, rename: Callable[[str], str]) -> str | None:
    """Among {flat name: name}: by the whole name, else by its end where that is the end of one name alone."""
    for wanted in (rename(f"{layer}.weight").removesuffix(".weight"), layer):
        if _flat(wanted) in flat:
            return flat[_flat(wanted)]
        ends = [name for name in flat if name.endswith(f"_{_flat(wanted)}")]
        if len(ends) == 1:
            return flat[ends[0]]
    return None


def _flat(name: str) -> str:
    return name.replace(".", "_")


def _without_prefix(layer: str) -> tuple[str, str]:
    naming = "diffusers/PEFT"
    for prefix, found in PREFIXES.items():
        if layer.startswith(prefix):
            layer, naming = layer.removeprefix(prefix), found
            if prefix != "base_model.model.":
                break
    return layer, naming


def _target(layers: Mapping[str, object]) -> str:
    """transformers' decoders say `layers.0.self_attn`; diffusion transformers say `blocks.0`."""
    names = [name.replace(".", "_") for name in layers]
    if any(re.search(r"(^|_)layers_\d+_(self_attn|mlp)", name) for name in names):
        return "MLLM"
    return "DiT" if any(re.search(r"(^|_)(\w*blocks|layers)_\d+_", name) for name in names) else "unknown"
