"""Wan's tensors (2.1 text-to-video, 2.2 TI2V-5B): their names in each layout, and the configuration from their shapes.

Layouts: "official" (Wan-AI's `blocks.0.self_attn.q…`, which ComfyUI's files have too), "comfyui" (the same with
`model.diffusion_model.` or `diffusion_model.` before it), "diffusers" (`blocks.0.attn1.to_q…`; also what this project
writes).
Sources: huggingface/diffusers scripts/convert_wan_to_diffusers.py (names and configurations); ComfyUI
comfy/ldm/wan/model.py and comfy/model_detection.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from duogen_core.weights.headers import Entry, WeightError

PREFIXES = {"": "official", "model.diffusion_model.": "comfyui", "diffusion_model.": "comfyui"}
MARKS = ("blocks.0.ffn.0.weight", "time_projection.1.weight")
DIFFUSERS_MARKS = ("blocks.0.ffn.net.0.proj.weight", "condition_embedder.time_proj.weight")

_TOP = {
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
}
_BLOCK = {
    f"{theirs}_attn.{name}": f"attn{k}.{ours}"
    for k, theirs in enumerate(("self", "cross"), 1)
    for name, ours in {
        "q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "norm_q": "norm_q", "norm_k": "norm_k",
    }.items()
}  # fmt: skip
# The norm before attention to the text is the third in Wan-AI's order and the second in diffusers'.
_BLOCK |= {"norm3": "norm2", "ffn.0": "ffn.net.0.proj", "ffn.2": "ffn.net.2"}
_TOP_BACK = {ours: theirs for theirs, ours in _TOP.items()}
_BLOCK_BACK = {ours: theirs for theirs, ours in _BLOCK.items()}
_TABLES = {"head.modulation": "scale_shift_table"}  # a tensor that is no layer's; so have blocks one

HEAD = 128  # numbers of a head in every published size; no tensor shows it
# (width, blocks, channels) -> name.
SIZES = {
    (1536, 30, 16): "Wan2.1-T2V-1.3B",
    (5120, 40, 16): "Wan2.1-T2V-14B",
    (3072, 30, 48): "Wan2.2-TI2V-5B",
}
# What only a relative has, in its name in the official layout -> what it is.
RELATIVES = (
    ("img_emb.", "an image-to-video Wan, which reads CLIP's image features"),
    ("vace_", "a VACE Wan, which is steered by videos"),
    ("control_adapter.", "a camera-controlled Wan"),
    ("casual_audio_encoder.", "a speech-to-video Wan"),
    ("audio_proj.", "a Wan that follows sound (HuMo, MultiTalk)"),
    ("face_adapter.", "Wan Animate"),
    ("ref_conv.", "a Wan with a reference image of its own"),
    ("patch_embedding_", "a Wan that reads a second video"),
)


def layout_of(names: Iterable[str]) -> tuple[str, str] | None:
    """(layout, prefix) when these are the tensors of a Wan transformer."""
    names = set(names)
    if all(mark in names for mark in DIFFUSERS_MARKS):
        return "diffusers", ""
    for prefix, layout in PREFIXES.items():
        if all(prefix + mark in names for mark in MARKS):
            return layout, prefix
    return None


def to_diffusers(name: str, prefix: str = "") -> str:
    """A tensor's name in diffusers, from the official or ComfyUI's; names that are none of the model's stay."""
    if not name.startswith(prefix):
        return name
    name = name.removeprefix(prefix)
    if name in _TABLES:
        return _TABLES[name]
    name = re.sub(r"^(blocks\.\d+\.)modulation$", r"\1scale_shift_table", name)
    return _renamed(name, _TOP, _BLOCK)


def to_official(name: str) -> str:
    """A tensor's official name from the one in diffusers."""
    if name == "scale_shift_table":
        return "head.modulation"
    name = re.sub(r"^(blocks\.\d+\.)scale_shift_table$", r"\1modulation", name)
    return _renamed(name, _TOP_BACK, _BLOCK_BACK)


def _renamed(name: str, top: Mapping[str, str], block: Mapping[str, str]) -> str:
    module, _, last = name.rpartition(".")
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", module)
    if match and match[2] in block:
        return f"blocks.{match[1]}.{block[match[2]]}.{last}"
    return f"{top[module]}.{last}" if module in top else name


def model_name(config: Mapping[str, Any]) -> str:
    width = config["num_attention_heads"] * config["attention_head_dim"]
    layers, channels = config["num_layers"], config["out_channels"]
    return SIZES.get((width, layers, channels), f"Wan of {layers} blocks, {width} wide")


def config_from_shapes(shapes: Mapping[str, tuple[int, ...]], where: str) -> dict[str, Any]:
    """The configuration for PackedWan, from {name in diffusers: shape}; what is not one is refused by its name."""

    def shape(name: str, dims: int) -> tuple[int, ...]:
        found = shapes.get(name)
        if found is None or len(found) != dims or not all(found):
            has = "is missing" if found is None else f"has the shape {list(found)}"
            raise WeightError(f"{where} is not a whole Wan transformer: {name} {has}.")
        return found

    other = relative(shapes)
    if other is not None:
        raise WeightError(f"{where} is {other}; DuoGen takes Wan 2.1 text-to-video and Wan 2.2 TI2V-5B.")
    width, channels, *patch = shape("patch_embedding.weight", 5)
    layers = {int(m[1]) for name in shapes if (m := re.match(r"blocks\.(\d+)\.", name))}
    if layers != set(range(len(layers))):
        gap = next(n for n in range(len(layers)) if n not in layers)
        raise WeightError(f"{where} is not a whole Wan transformer: its block {gap} is missing.")
    patched = shape("proj_out.weight", 2)[0]
    if patch != [1, 2, 2] or patched % 4 or width % HEAD:
        raise WeightError(
            f"{where} is not a Wan transformer: it reads patches of {'x'.join(map(str, patch))}, is {width} wide and "
            f"writes {patched} numbers a patch; expected patches of 1x2x2, heads of {HEAD}, 4 numbers a channel."
        )
    return {
        "patch_size": (1, 2, 2),
        "num_attention_heads": width // HEAD,
        "attention_head_dim": HEAD,
        "in_channels": channels,
        "out_channels": patched // 4,
        "text_dim": shape("condition_embedder.text_embedder.linear_1.weight", 2)[1],
        "freq_dim": shape("condition_embedder.time_embedder.linear_1.weight", 2)[1],
        "ffn_dim": shape("blocks.0.ffn.net.0.proj.weight", 2)[0],
        "num_layers": len(layers),
    }


def relative(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The name of a relative of text-to-video Wan, or None; `shapes` by diffusers' names, others as they are."""
    for begins, what in RELATIVES:
        if any(name.startswith(begins) for name in shapes):
            return what
    if any(".add_k_proj." in name or "image_embedder." in name for name in shapes):  # diffusers' names
        return RELATIVES[0][1]
    columns, patched = shapes.get("patch_embedding.weight") or (), shapes.get("proj_out.weight") or ()
    if len(columns) == 5 and len(patched) == 2 and columns[1] * 4 != patched[0]:
        return f"a Wan that reads {columns[1]} channels and writes {patched[0] // 4}: it takes a second latent beside"
    return None


def shapes_in_diffusers(entries: Mapping[str, Entry], prefix: str, layout: str) -> dict[str, tuple[int, ...]]:
    return {
        (name if layout == "diffusers" else to_diffusers(name, prefix)): entry.shape for name, entry in entries.items()
    }
