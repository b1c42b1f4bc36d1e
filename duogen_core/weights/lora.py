"""LoRA files: of which kind, whose naming, for which model, and whether they fit the one at hand; from headers alone.

Kinds: LoRA (two matrices), LoHa (two products of two, multiplied number by number), LoKr (a Kronecker product), each
with the lengths of the rows beside it where it is DoRA. Names are LyCORIS' and PEFT's.
Namings: "diffusers/PEFT" (`transformer.…lora_A.weight`, or without a prefix), "PEFT" (`base_model.model.…`), "ComfyUI"
(`diffusion_model.…`), "kohya" (`lora_unet_…lora_down.weight`, dots as underscores). adapter.py reads the numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from duogen_core.weights.cosmos_keys import to_diffusers
from duogen_core.weights.headers import Entry, WeightError

ENDINGS = re.compile(
    r"\.(lora_A|lora_B|lora_down|lora_up|lora\.down|lora\.up)(?:\.default)?\.weight$|\.(alpha|dora_scale|diff|diff_b)$"
    r"|(?:\.token_adapter)?\.(trainable_tokens_delta)$"
    r"|\.(lora_magnitude_vector)(?:\.default)?(?:\.weight)?$"
    r"|\.(hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2)(?:\.default)?$"
)
DORA = ("lora_magnitude_vector", "dora_scale")  # PEFT's and LyCORIS' name
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

    kinds: {layer: "LoRA", "LoHa" or "LoKr"}. The rank of a LoKr whose matrices are both whole is 0.
    tensors: {(layer, part): name in the file}; a part is "down", "up", "alpha", "trainable_tokens_delta", …
    """

    naming: str
    target: str
    layers: dict[str, tuple[int, int, int]]
    tensors: dict[tuple[str, str], str]
    kinds: dict[str, str]

    @property
    def names(self) -> list[str]:
        """What its layers are: LoRA, LoHa, LoKr, and DoRA where the lengths of rows are among the tensors."""
        dora = ["DoRA"] if any(part in DORA for _, part in self.tensors) else []
        return sorted(set(self.kinds.values())) + dora

    @property
    def ranks(self) -> list[int]:
        return sorted({rank for rank, _, _ in self.layers.values()})


def is_lora(names: Mapping[str, Entry]) -> bool:
    return sum(ENDINGS.search(name) is not None for name in names) > len(names) / 2


def read_lora(entries: Mapping[str, Entry], where: str) -> LoraFile:
    namings, tensors = set(), {}
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}  # {layer: {part: shape}}
    for name, entry in entries.items():
        match = ENDINGS.search(name)
        if match is None:
            raise WeightError(f"{where} is not a whole LoRA: {name} is not part of one.")
        layer, naming = _without_prefix(name[: match.start()])
        namings.add(naming)
        part = next(found for found in match.groups() if found)
        part = "down" if part in DOWN else "up" if part in UP else part
        if (layer, part) in tensors:
            raise WeightError(f"{where} holds {layer} twice, as {tensors[layer, part]} and as {name}; give one LoRA.")
        tensors[layer, part] = name
        shapes.setdefault(layer, {})[part] = entry.shape
        if part in ("down", "up") and len(entry.shape) < 2:
            raise WeightError(f"{where}: {name} has the shape {list(entry.shape)}; expected a matrix.")
    layers, kinds = {}, {}
    for layer, parts in shapes.items():
        for kind, size in (("LoRA", _lora_size), ("LoHa", _loha_size), ("LoKr", _lokr_size)):
            found = size(parts, layer, where)
            if found is None:
                continue
            if layer in kinds:
                raise WeightError(f"{where} holds both a {kinds[layer]} and a {kind} of {layer}; give one of them.")
            kinds[layer], layers[layer] = kind, found
    return LoraFile("/".join(sorted(namings)), _target(layers), layers, tensors, kinds)


Size = tuple[int, int, int]
Shapes = Mapping[str, tuple[int, ...]]


def _lora_size(parts: Shapes, layer: str, where: str) -> Size | None:
    if "down" not in parts and "up" not in parts:
        return None
    if "down" not in parts or "up" not in parts:
        raise WeightError(f"{where} is not a whole LoRA: {layer} has one of its two matrices.")
    down, up = parts["down"], parts["up"]
    if down[0] != up[1]:
        raise WeightError(f"{where}: the matrices of {layer} have the ranks {down[0]} and {up[1]}.")
    if not down[0]:
        raise WeightError(f"{where}: the matrices of {layer} have the rank 0; expected at least 1.")
    return down[0], down[1], up[0]


def _loha_size(parts: Shapes, layer: str, where: str) -> Size | None:
    """(w1_a @ w1_b) * (w2_a @ w2_b), number by number."""
    names = [f"hada_w{n}_{half}" for n in (1, 2) for half in "ab"]
    if not any(name.startswith("hada_") for name in parts):
        return None
    first, *others = (_product([parts.get(a), parts.get(b)]) for a, b in (names[:2], names[2:]))
    if first is None or others != [first] or any(name.startswith("hada_t") for name in parts):
        raise WeightError(f"{where}: {layer} is not a LoHa of a matrix; expected {', '.join(names)} of one size.")
    return first


def _lokr_size(parts: Shapes, layer: str, where: str) -> Size | None:
    """The Kronecker product of w1 and w2, each whole or a product of two."""
    if not any(name.startswith("lokr_") for name in parts):
        return None
    sizes = [
        _product([parts.get(f"lokr_w{n}")] if f"lokr_w{n}" in parts else [parts.get(f"lokr_w{n}_{h}") for h in "ab"])
        for n in (1, 2)
    ]
    double = any(f"lokr_w{n}" in parts and f"lokr_w{n}_a" in parts for n in (1, 2))
    if None in sizes or double or "lokr_t2" in parts:
        raise WeightError(
            f"{where}: {layer} is not a LoKr of a matrix; expected lokr_w1 and lokr_w2, or _a and _b of each."
        )
    (first, inputs, outputs), (second, more_inputs, more_outputs) = sizes
    return second or first, inputs * more_inputs, outputs * more_outputs


def _product(shapes: list[tuple[int, ...] | None]) -> Size | None:
    """(rank, inputs, outputs) of a matrix (its rank counts as 0) or of a product of two; None for anything else."""
    if any(shape is None or len(shape) != 2 or 0 in shape for shape in shapes):
        return None
    if len(shapes) == 1:
        return 0, shapes[0][1], shapes[0][0]
    (outputs, rank), (other, inputs) = shapes
    return (rank, inputs, outputs) if rank == other else None


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
    taken: dict[str, str] = {}
    strange, other = [], []
    for layer, (_, inputs, outputs) in lora.layers.items():
        ours = _find(flat, layer, rename)
        if ours is None:
            strange.append(layer)
            continue
        if ours in taken:
            raise WeightError(f"{where} holds {ours} twice, as {taken[ours]} and as {layer}; give one LoRA.")
        names[layer], taken[ours] = ours, layer
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
