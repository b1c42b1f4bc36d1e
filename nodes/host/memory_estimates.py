"""Bytes that a run needs beside the weights, so that ComfyUI keeps that much of the card free.

In: the model and what it will run on. Out: an estimate, a little above what is measured. Attention is taken to be one
that does not store its matrix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from duogen_core.document import Picture

if TYPE_CHECKING:
    from duogen_core.document import Document

    from .model_management import Managed


def of_context(mllm: Managed, context: Document, max_new_tokens: int) -> float:
    """Writing on from a context: Qwen has 28 x 28 pixels a token, and a character is at most one."""
    pixels = sum(picture.size[0] * picture.size[1] for picture in context.pictures)
    characters = sum(len(part.text) for turn in context.turns for part in turn.parts if not isinstance(part, Picture))
    return of_tokens(mllm, pixels // 28**2 + characters + max_new_tokens, pixels)


def of_tokens(mllm: Managed, tokens: int, pixels: int = 0) -> float:
    """KV cache of all tokens, the activations of one chunk of a prefill, and those of the pictures."""
    from duogen_core.mllm.base import CHUNK

    text = mllm.core.model.config.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    size = next(mllm.core.model.parameters()).element_size()
    kv_cache = tokens * text.num_hidden_layers * text.num_key_value_heads * head * 2 * size
    embedded = tokens * text.hidden_size * size
    chunk = min(tokens, CHUNK) * (8 * text.hidden_size + 2 * text.intermediate_size) * size + text.vocab_size * 4
    return kv_cache + embedded + chunk + pixels / 14**2 * 6 * text.hidden_size * size


def of_frame_cache(dit: Any, cells: int, size: int) -> float:
    """Keys and values of earlier pictures of so many latent cells, which a frame-causal DiT keeps while it samples."""
    config = dit.config
    if getattr(config, "attention", "full") != "frame_causal":
        return 0.0
    width = config.num_attention_heads * config.attention_head_dim
    patch = config.patch_size[-1] * config.patch_size[-2]
    return cells / patch * config.num_layers * 2 * width * size
