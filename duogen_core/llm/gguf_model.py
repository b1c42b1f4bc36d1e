"""A GGUF file of a language model without vision -> a transformers model that writes, and its tokenizer.

    model, tokenizer = load_causal("qwen2.5-1.5b-instruct-q4_k_m.gguf")              weights stay quantised in memory
    model, tokenizer = load_causal("….gguf", dtype=torch.bfloat16)                    made whole once: faster, larger

The model is the class of transformers itself (AutoModelForCausalLM), so `generate`, batches padded on the left and
caches work as ever; only its large layers hold GGUF's blocks (weights/gguf_layers.py). `model.to(torch.float32)`
changes what it computes in: blocks stay as they are. Configuration and tokenizer are read by transformers' own
GGUF support from the file's metadata; the chat template too.
llama.cpp stores some weights otherwise than transformers: rows of Llama's queries and keys in pairs for its rotary
embedding (whole rows change places, quantised or not), Gemma's norms with 1 added. `TEXT_MODELS` says where.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from duogen_core.devices import move, packed_dtype
from duogen_core.errors import DuoGenError, first_line, is_out_of_memory
from duogen_core.mllm.gguf_tokenizer import gguf_tokenizer, stop_ids
from duogen_core.weights.gguf import TEXT_MODELS, LongArray
from duogen_core.weights.gguf_layers import tie_packed
from duogen_core.weights.headers import WeightError, check_sizes
from duogen_core.weights.module import build_empty, check_filled, check_module, fill_module, use_quantised_layers
from duogen_core.weights.reading import GgufFiles

WHAT = "weights of the language model"
FACTORS = "rope_freqs.weight"


def load_causal(
    path: str | Path,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    compute: torch.dtype | None = None,
) -> tuple[nn.Module, Any]:
    """Loads the model, in eval mode, and a fast tokenizer that pads on the left. Never touches the network.

    dtype: weights are made whole in it; None keeps them quantised. device: where the model goes; None is the CPU.
    compute: what quantised layers compute in; None: bf16 where the device multiplies in it, else float32.
    """
    path = Path(path)
    weights = GgufFiles(path, WHAT)
    config = read_config(weights, path)
    tokenizer = gguf_tokenizer(weights.notes, path)
    model = build_empty(lambda: _from_config(config), path, f"a {weights.architecture} model", real_buffers=True)
    names = module_names(model, weights, path)
    _undo_conversion(weights, config)
    skip = {name for name in weights.entries if name not in names}
    tied = "output.weight" not in weights.entries
    formats = check_module(
        model, weights, path, "language model", rename=names.__getitem__, skip=skip,
        optional=("lm_head.weight",) if tied else (),
    )  # fmt: skip
    fill_module(
        model,
        weights,
        formats,
        rename=names.__getitem__,
        skip=skip,
        dtype=dtype,
        prepare=None if dtype is not None else use_quantised_layers,
    )
    if tied and not tie_packed(model, "lm_head"):
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
    check_filled(model, formats, path)
    _scale_rotary(model, weights, path)
    ends = stop_ids(tokenizer, weights.notes)
    model.generation_config.eos_token_id = ends or None
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    device = torch.device("cpu" if device is None else device)
    if dtype is None:
        move(model, dtype=compute or packed_dtype(device))
    return model.to(device), tokenizer


def read_config(weights: GgufFiles, path: Path) -> Any:
    """Returns transformers' configuration of the model, from the notes, as transformers' own GGUF reading makes it.

    It is given a file of its own with the notes alone: without the vocabulary, whose length is all it needs of that.
    """
    from transformers import AutoConfig

    architecture = weights.architecture
    if architecture not in TEXT_MODELS:
        raise DuoGenError(
            f"{path} is a GGUF file of the architecture {architecture[:80]!r}; as a writer without vision this pack "
            f"reads {', '.join(TEXT_MODELS)}."
        )
    embedding = weights.entries.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise WeightError(f"{path} holds no whole language model: token_embd.weight is missing.")
    # Before transformers sees it: its configuration lists every layer.
    check_sizes({"num_hidden_layers": weights.header.number("block_count") or 0}, weights.entries, path)
    try:
        with tempfile.TemporaryDirectory() as folder:
            _write_notes(weights, Path(folder) / "notes.gguf")
            config = AutoConfig.from_pretrained(
                folder, gguf_file="notes.gguf", local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # a wrong value raises whatever its reader raises
        if is_out_of_memory(error):
            raise
        raise WeightError(f"{path} does not describe a {architecture} model: {first_line(error)}.") from error
    check_sizes(config.to_dict(), weights.entries, path)
    return config


def _write_notes(weights: GgufFiles, path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, weights.architecture)
    for key, value in weights.notes.items():
        if isinstance(value, (LongArray, list)) or key.startswith(("tokenizer.chat", "split.")):
            continue
        if key in ("general.architecture", f"{weights.architecture}.vocab_size"):
            continue
        kind = {bool: "BOOL", int: "INT64", float: "FLOAT64", str: "STRING"}[type(value)]
        writer.add_key_value(key, value, gguf.GGUFValueType[kind])
    rows = weights.entries["token_embd.weight"].shape[0]
    writer.add_key_value(f"{weights.architecture}.vocab_size", rows, gguf.GGUFValueType.INT64)
    if "output.weight" in weights.entries:  # by which it knows that embedding and output are two matrices
        import numpy as np

        writer.add_tensor("output.weight", np.zeros(1, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _from_config(config: Any) -> nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)


def module_names(model: nn.Module, weights: GgufFiles, path: Path) -> dict[str, str]:
    """{name in the file: name in the module}, by the gguf package's table; a tensor of no use here is an error."""
    import gguf

    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.get_tensor_name_map(kinds[weights.architecture], model.config.num_hidden_layers)
    names = {}
    for ours in model.state_dict():
        stem, _, last = ours.rpartition(".")
        theirs = table.get_name(stem)
        if theirs is not None:
            names[f"{theirs}.{last}"] = ours
    strange = [name for name in weights.entries if name not in names and name != FACTORS]
    if strange:
        raise WeightError(
            f"{path} holds {len(strange)} tensors that a {weights.architecture} model has no place for "
            f"({', '.join(strange[:4])})."
        )
    return names


def _undo_conversion(weights: GgufFiles, config: Any) -> None:
    """Has tensors changed back, as they are read, from how llama.cpp stores them."""
    how = TEXT_MODELS[weights.architecture]
    for name in weights.entries:
        if how == "norms" and name.endswith("norm.weight"):
            weights.edits[name] = lambda tensor: tensor - 1
        if how == "pairs" and (match := re.search(r"\.attn_([qk])\.(weight|bias)$", name)):
            heads = config.num_attention_heads if match[1] == "q" else config.num_key_value_heads
            weights.edits[name] = lambda tensor, heads=heads: _unpaired(tensor, heads)


def _scale_rotary(model: nn.Module, weights: GgufFiles, path: Path) -> None:
    """Llama 3.1 and later turn slow frequencies slower still, by factors that the file lists and no note describes.

    transformers' own reading leaves them out.
    """
    if FACTORS not in weights.entries:
        return
    rotary, factors = model.model.rotary_emb, weights.tensor(FACTORS).float().flatten()
    if factors.shape != rotary.inv_freq.shape or not bool((factors > 0).all()):
        raise WeightError(f"{path}: {FACTORS} has the shape {list(factors.shape)}; expected one factor a frequency.")
    rotary.inv_freq = rotary.inv_freq / factors.to(rotary.inv_freq)
    rotary.original_inv_freq = rotary.inv_freq


def _unpaired(rows: Tensor, heads: int) -> Tensor:
    """Rows of each head from 0, d/2, 1, d/2 + 1, … to 0, 1, …: numbers or blocks, which never reach over a row."""
    paired = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return paired.transpose(1, 2).reshape(rows.shape)
