"""Small GGUF files of random weights, written with the gguf package as llama.cpp's converter writes them.

`write_gguf` writes tensors and notes; `write_causal` a whole language model of transformers, with a tokenizer.
Quantised here: what gguf can quantise, through it; k-quants through blocks of random bytes with small scales.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

Types = gguf.GGMLQuantizationType
# Places of the 16-bit scales in a block of those types that the gguf package only reads.
SCALES = {
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,), "IQ4_XS": (0,),
    "IQ2_XXS": (0,), "IQ2_XS": (0,), "IQ2_S": (0,), "IQ3_XXS": (0,), "IQ3_S": (0,), "IQ1_S": (0,),
}  # fmt: skip
QUANTISED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4")


def blocks(kind: str, rows: int, columns: int, seed: int = 0, scale: float = 0.0005) -> np.ndarray:
    """Random blocks of a type, whose numbers are about as large as weights. scale: of those that gguf only reads."""
    generator = np.random.default_rng(seed)
    numbers, size = gguf.GGML_QUANT_SIZES[Types[kind]]
    if kind in QUANTISED:
        return gguf.quantize(generator.normal(0, 0.05, (rows, columns)).astype(np.float32), Types[kind])
    out = generator.integers(0, 256, (rows, columns // numbers, size), dtype=np.uint8)
    for at in SCALES[kind]:
        halves = generator.uniform(0.5, 1.5, (rows, columns // numbers)) * scale
        out[..., at : at + 2] = halves.astype(np.float16)[..., None].view(np.uint8)
    return out.reshape(rows, -1)


def write_gguf(
    path: Path,
    architecture: str,
    tensors: Mapping[str, np.ndarray | tuple[np.ndarray, str]],
    notes: Mapping[str, Any] | None = None,
    big: bool = False,
) -> Path:
    """tensors: arrays, or (blocks, type)."""
    order = gguf.GGUFEndian.BIG if big else gguf.GGUFEndian.LITTLE
    writer = gguf.GGUFWriter(path, architecture, endianess=order)
    for key, value in (notes or {}).items():
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            kind = {bool: "BOOL", int: "UINT32", float: "FLOAT32", str: "STRING"}[type(value)]
            writer.add_key_value(key, value, gguf.GGUFValueType[kind])
    for name, value in tensors.items():
        if isinstance(value, tuple):
            writer.add_tensor(name, value[0], raw_dtype=Types[value[1]])
        else:
            writer.add_tensor(name, np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tokenizer_notes(tokenizer: Any) -> dict[str, Any]:
    """The notes of a byte-level tokenizer (duogen_core.mllm.tokenizer.train_tokenizer)."""
    import json

    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = tokenizer.get_vocab()
    special = {token["content"] for token in backend["added_tokens"]}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in special else 1 for token in tokens],
        "tokenizer.ggml.scores": [-float(number) for number in range(len(tokens))],
        "tokenizer.ggml.merges": [m if isinstance(m, str) else " ".join(m) for m in backend["model"]["merges"]],
        "tokenizer.ggml.eos_token_id": vocabulary["<|im_end|>"],
        "tokenizer.ggml.padding_token_id": vocabulary["<|endoftext|>"],
        "tokenizer.chat_template": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    }


def paired(rows: np.ndarray, heads: int) -> np.ndarray:
    """As llama.cpp stores the rows of Llama's queries and keys."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def causal_tensors(model: Any, architecture: str, kind: str | None) -> dict[str, Any]:
    """The tensors of a transformers language model. kind: the type its matrices are quantised in, if any."""
    arch = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    config = model.config
    table = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    tensors: dict[str, Any] = {}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stem, _, last = name.rpartition(".")
        value = weight.float().numpy()
        theirs = f"{table.get_name(stem)}.{last}"
        if architecture == "llama" and (match := re.search(r"attn_([qk])\.", theirs)):
            value = paired(value, config.num_attention_heads if match[1] == "q" else config.num_key_value_heads)
        if architecture.startswith("gemma") and stem.endswith("norm"):
            value = value + 1
        if kind and value.ndim == 2:
            tensors[theirs] = (gguf.quantize(value, Types[kind]), kind)
        else:
            tensors[theirs] = value
    return tensors


def causal_notes(model: Any, architecture: str, tokenizer: Any) -> dict[str, Any]:
    config = model.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = getattr(config, "rope_theta", None)
    if rope is None:  # transformers 5
        rope = (config.rope_parameters or {}).get("rope_theta", 10000.0)
    notes = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "attention.key_length": head,
        "rope.dimension_count": head,
    }
    if isinstance(rope, (int, float)):
        notes["rope.freq_base"] = float(rope)
    return {f"{architecture}.{key}": value for key, value in notes.items()} | tokenizer_notes(tokenizer)


def write_causal(path: Path, model: Any, architecture: str, tokenizer: Any, kind: str | None = "Q8_0") -> Path:
    with torch.no_grad():
        tensors = causal_tensors(model, architecture, kind)
    return write_gguf(path, architecture, tensors, causal_notes(model, architecture, tokenizer))


def write_pair(
    folder: Path,
    mllm: Any,
    name: str = "model-Q8_0.gguf",
    mmproj: str = "mmproj-F16.gguf",
    kind: str | None = "Q8_0",
    vision_kind: str | None = None,
    **changes: Any,
) -> Path:
    """A Qwen-VL of ours as llama.cpp keeps it: the language model, and the vision beside it. changes: notes."""
    family = mllm.model_type
    arch = {"qwen2_5_vl": "qwen2vl", "qwen3_vl": "qwen3vl"}[family]
    config, state = mllm.model.config, mllm.model.state_dict()
    text, vision = config.text_config, config.vision_config
    rope = getattr(text, "rope_parameters", None) or text.rope_scaling
    notes = {
        f"{arch}.block_count": text.num_hidden_layers,
        f"{arch}.context_length": text.max_position_embeddings,
        f"{arch}.embedding_length": text.hidden_size,
        f"{arch}.feed_forward_length": text.intermediate_size,
        f"{arch}.attention.head_count": text.num_attention_heads,
        f"{arch}.attention.head_count_kv": text.num_key_value_heads,
        f"{arch}.attention.layer_norm_rms_epsilon": float(text.rms_norm_eps),
        f"{arch}.rope.freq_base": float(rope.get("rope_theta") or getattr(text, "rope_theta", 10000.0)),
        f"{arch}.rope.dimension_sections": [*rope["mrope_section"], 0],
    } | tokenizer_notes(mllm.tokenizer)
    if arch == "qwen3vl":
        notes[f"{arch}.attention.key_length"] = text.head_dim
        notes[f"{arch}.n_deepstack_layers"] = len(vision.deepstack_visual_indexes)
    number = next(number for number, known in gguf.MODEL_ARCH_NAMES.items() if known == arch)
    table = gguf.get_tensor_name_map(number, text.num_hidden_layers)
    tensors: dict[str, Any] = {}
    seen: dict[str, Any] = {}
    for key, weight in state.items():
        value = weight.detach().float().numpy()
        stem, _, last = key.rpartition(".")
        if key.startswith("model.visual."):
            for theirs, part in _vision_tensors(key.removeprefix("model.visual."), value, family, vision):
                fits = part.ndim == 2 and part.shape[-1] % 32 == 0 and "position" not in theirs
                quantise = vision_kind if fits else None
                seen[theirs] = _stored(part, quantise, np.float16 if part.ndim > 1 else np.float32)
        elif key != "lm_head.weight" or not config.tie_word_embeddings:
            theirs = f"{table.get_name(stem.replace('model.language_model.', 'model.'))}.{last}"
            tensors[theirs] = _stored(value, kind if value.ndim == 2 else None, np.float32)
    theirs = {
        "general.type": "mmproj",
        "clip.has_vision_encoder": True,
        "clip.projector_type": {"qwen2vl": "qwen2.5vl_merger", "qwen3vl": "qwen3vl_merger"}[arch],
        "clip.vision.attention.head_count": vision.num_heads,
        "clip.vision.block_count": vision.depth,
        "clip.vision.patch_size": vision.patch_size,
        "clip.vision.image_mean": [float(n) for n in mllm.image_processor.image_mean],
        "clip.vision.image_std": [float(n) for n in mllm.image_processor.image_std],
    }
    theirs |= {f"clip.vision.image_{n}_pixels": int(_pixels(mllm.image_processor, n)) for n in ("min", "max")}
    if arch == "qwen2vl":
        theirs["clip.vision.window_size"] = vision.window_size
        theirs["clip.vision.n_wa_pattern"] = (vision.fullatt_block_indexes or [7])[0] + 1
    for key, value in changes.items():
        (theirs if key.startswith("clip") else notes)[key] = value
    write_gguf(folder / mmproj, "clip", seen, theirs)
    return write_gguf(folder / name, arch, tensors, notes)


def _pixels(processor: Any, which: str) -> int:
    own = getattr(processor, f"{which}_pixels", None)
    return own or processor.size["shortest_edge" if which == "min" else "longest_edge"]


def _stored(value: np.ndarray, kind: str | None, plain: Any) -> Any:
    return (gguf.quantize(value, Types[kind]), kind) if kind else value.astype(plain)


def _vision_tensors(name: str, value: np.ndarray, family: str, config: Any) -> list[tuple[str, np.ndarray]]:
    """As llama.cpp's converter splits and names a tensor of the tower."""
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, max(config.depth, 3))  # mm.2 counts as a block
    stem, _, last = name.rpartition(".")
    if name == "patch_embed.proj.weight":
        return [("v.patch_embd.weight", value[:, :, 0]), ("v.patch_embd.weight.1", value[:, :, 1])]
    if family == "qwen2_5_vl" and ".qkv" in name:
        stem = stem.replace("qkv", "{}")
        return [
            (f"{table.get_name('visual.' + stem.format(part))}.{last}", rows)
            for part, rows in zip("qkv", np.split(value, 3))
        ]
    if match := re.fullmatch(r"deepstack_merger_list\.(\d+)\.(\w+)", stem):
        number = config.deepstack_visual_indexes[int(match[1])]
        return [(f"v.deepstack.{number}.{match[2].removeprefix('linear_')}.{last}", value)]
    own = {"merger.norm": "v.post_ln", "merger.linear_fc1": "mm.0", "merger.linear_fc2": "mm.2"}
    return [(f"{own.get(stem) or table.get_name('visual.' + stem)}.{last}", value)]
