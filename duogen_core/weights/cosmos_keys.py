"""Cosmos-Predict2.5's tensors: their names in each layout, and the model's configuration from their shapes.

Layouts: "official" (NVIDIA's `net.blocks.0.…`), "comfyui" (the same without the prefix, or with
`model.diffusion_model.`), "diffusers" (`transformer_blocks.0.…`; also what this project writes).
Sources: huggingface/diffusers scripts/convert_cosmos_to_diffusers.py (names, and the configurations of
Cosmos-2.5-Predict-Base-2B and -14B); ComfyUI comfy/ldm/cosmos/predict2.py and comfy/model_detection.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from duogen_core.weights.headers import Entry, WeightError

PREFIXES = {"net.": "official", "model.diffusion_model.": "comfyui", "diffusion_model.": "comfyui", "": "comfyui"}
MARK = "blocks.0.mlp.layer1.weight"  # ComfyUI knows the family by it
DIFFUSERS_MARK = "transformer_blocks.0.ff.net.0.proj.weight"

_TOP = {
    "x_embedder.proj.1": "patch_embed.proj",
    "t_embedder.1.linear_1": "time_embed.t_embedder.linear_1",
    "t_embedder.1.linear_2": "time_embed.t_embedder.linear_2",
    "t_embedding_norm": "time_embed.norm",
    "final_layer.adaln_modulation.1": "norm_out.linear_1",
    "final_layer.adaln_modulation.2": "norm_out.linear_2",
    "final_layer.linear": "proj_out",
    "crossattn_proj.0": "crossattn_proj.0",
}
_BLOCK = {
    f"adaln_modulation_{part}.{n}": f"norm{k}.linear_{n}"
    for k, part in enumerate(("self_attn", "cross_attn", "mlp"), 1)
    for n in (1, 2)
}
_BLOCK |= {
    f"{theirs}_attn.{name}": f"attn{k}.{ours}"
    for k, theirs in enumerate(("self", "cross"), 1)
    for name, ours in {
        "q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "output_proj": "to_out.0",
        "q_norm": "norm_q", "k_norm": "norm_k",
    }.items()
}  # fmt: skip
_BLOCK |= {"mlp.layer1": "ff.net.0.proj", "mlp.layer2": "ff.net.2"}
_TOP_BACK = {ours: theirs for theirs, ours in _TOP.items()}
_BLOCK_BACK = {ours: theirs for theirs, ours in _BLOCK.items()}

# Counters of NVIDIA's training, tables that are computed anew, and TransformerEngine's notes: not weights.
BOOKKEEPING = re.compile(
    r"(^|\.)(accum_(video_sample_counter|image_sample_counter|iteration|train_in_hours)"
    r"|pos_embedder\.(seq|dim_spatial_range|dim_temporal_range)|_extra_state)$"
)

# (width, blocks) -> name. The rotary scale is not to be seen in the weights; both published sizes have the same.
SIZES = {(2048, 28): "Cosmos-Predict2.5-2B", (5120, 36): "Cosmos-Predict2.5-14B"}
ROPE_SCALE = (1.0, 3.0, 3.0)
# crossattn_proj's input width -> (layers, hidden size) of the MLLM whose states it takes.
STATES = {100352: (28, 3584)}


def layout_of(names: Iterable[str]) -> tuple[str, str] | None:
    """(layout, prefix) when these are the tensors of a Cosmos-Predict2 or 2.5 transformer."""
    names = set(names)
    if DIFFUSERS_MARK in names:
        return "diffusers", ""
    for prefix, layout in PREFIXES.items():
        if prefix + MARK in names:
            return layout, prefix
    return None


def to_diffusers(name: str, prefix: str = "net.") -> str:
    """A tensor's name in diffusers, from the official or ComfyUI's; names that are none of the model's stay."""
    if not name.startswith(prefix):
        return name
    return _renamed(name.removeprefix(prefix), "blocks", "transformer_blocks", _TOP, _BLOCK)


def to_official(name: str) -> str:
    """A tensor's official name, `net.` included, from the one in diffusers."""
    return "net." + _renamed(name, "transformer_blocks", "blocks", _TOP_BACK, _BLOCK_BACK)


def _renamed(name: str, theirs: str, ours: str, top: Mapping[str, str], block: Mapping[str, str]) -> str:
    module, _, last = name.rpartition(".")
    match = re.fullmatch(rf"{theirs}\.(\d+)\.(.+)", module)
    if match and match[2] in block:
        return f"{ours}.{match[1]}.{block[match[2]]}.{last}"
    return f"{top[module]}.{last}" if module in top else name


def model_name(config: Mapping) -> str:
    width = config["num_attention_heads"] * config["attention_head_dim"]
    return SIZES.get((width, config["num_layers"]), f"Cosmos-Predict2.5 of {config['num_layers']} blocks, {width} wide")


def config_from_shapes(shapes: Mapping[str, tuple[int, ...]], where: str) -> dict:
    """The configuration for PackedCosmos, from {name in diffusers: shape}; what is not 2.5 is refused by its name."""

    def shape(name: str, dims: int) -> tuple[int, ...]:
        found = shapes.get(name)
        if found is None or len(found) != dims or not all(found):
            has = "is missing" if found is None else f"has the shape {list(found)}"
            raise WeightError(f"{where} is not a whole Cosmos-Predict2.5 transformer: {name} {has}.")
        return found

    refuse_relatives(shapes, where)
    block = "transformer_blocks.0"
    width, columns = shape("patch_embed.proj.weight", 2)
    head = shape(f"{block}.attn1.norm_q.weight", 1)[0]
    enc, states = shape("crossattn_proj.0.weight", 2)
    layers = {int(m[1]) for name in shapes if (m := re.match(r"transformer_blocks\.(\d+)\.", name))}
    if layers != set(range(len(layers))):
        gap = next(n for n in range(len(layers)) if n not in layers)
        raise WeightError(f"{where} is not a whole Cosmos-Predict2.5 transformer: its block {gap} is missing.")
    patched = shape("proj_out.weight", 2)[0]
    if columns % 4 or patched % 4 or columns != patched + 8 or width % head:
        raise WeightError(
            f"{where} is not a Cosmos-Predict2.5 transformer: it reads {columns} numbers a patch and writes {patched}; "
            f"expected 8 more than it writes, in patches of 2 by 2."
        )
    return {
        "in_channels": columns // 4 - 1,
        "out_channels": patched // 4,
        "num_attention_heads": width // head,
        "attention_head_dim": head,
        "num_layers": len(layers),
        "mlp_ratio": shape(f"{block}.ff.net.0.proj.weight", 2)[0] / width,
        "text_embed_dim": shape(f"{block}.attn2.to_k.weight", 2)[1],
        "adaln_lora_dim": shape(f"{block}.norm1.linear_1.weight", 2)[0],
        "rope_scale": ROPE_SCALE,
        "use_crossattn_projection": True,
        "crossattn_proj_in_channels": states,
        "encoder_hidden_states_channels": enc,
    }


def refuse_relatives(shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Models with the same blocks that are not Cosmos-Predict2.5."""
    other = relative(shapes)
    if other is not None:
        raise WeightError(
            f"{where} is {other}; DuoGen takes Cosmos-Predict2.5 2B or 14B (its crossattn_proj included)."
        )


def relative(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The name of a relative of Cosmos-Predict2.5, or None; `shapes` by diffusers' names, others as they are."""
    if any("llm_adapter." in name for name in shapes):
        return "Anima, which has a language adapter instead of Cosmos-Predict2.5's crossattn_proj"
    if any(re.search(r"(^|\.)(control_|img_context_proj|before_proj|after_proj)", name) for name in shapes):
        return "a Cosmos-Transfer2.5 model, which is steered by control videos"
    if any("learnable_pos_embed" in name or "extra_pos_embedder" in name for name in shapes):
        return "a Cosmos model of the first generation"
    columns = (shapes.get("patch_embed.proj.weight") or (0,))[-1]
    if columns == 68:
        return "Cosmos-Predict2 Text2Image, which reads T5 text and takes no earlier images"
    if columns == 72 and "crossattn_proj.0.weight" not in shapes:
        width = shapes["patch_embed.proj.weight"][0]
        blocks = sum(name.endswith(".attn2.to_k.weight") for name in shapes)
        if (width, blocks) not in SIZES:
            return f"a Cosmos transformer of {blocks} blocks, {width} wide, without crossattn_proj, as in DuoGen models"
        return "Cosmos-Predict2 Video2World, which reads T5 text, or a Cosmos-Predict2.5 without its crossattn_proj"
    return None


def shapes_in_diffusers(entries: Mapping[str, Entry], prefix: str, layout: str) -> dict[str, tuple[int, ...]]:
    return {
        (name if layout == "diffusers" else to_diffusers(name, prefix)): entry.shape for name, entry in entries.items()
    }
