"""What models need in memory to draw a picture, as a sum whose terms are shown. An estimate, not a promise.

In: what `identify` found, the size of the picture, how many earlier pictures it looks at, how long the conversation is.
Out: terms, each with its arithmetic. Weights are counted as they are stored; activations in 2 bytes a number.
The DiT's factors are those of its blocks as they are run, counted on tensors alive at once
(tests/core/commands/test_inspect.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from duogen_core.identify import Found
from duogen_core.weights.gguf_layers import CARD_CHUNK
from duogen_core.weights.writing import readable

GIB = 2**30
HALF = 2  # bytes of a number in bf16 or fp16
DIT_BLOCK = 7  # numbers a token, in widths: residual, a norm, queries, keys, values and what comes of them
DIT_MLP = 2  # in widths of the MLP: what goes into its activation and what comes out
TEXT_KEYS = 2 * 2**30  # bytes; of a longer text they are made anew in every block (dit/prepared.py)
CHUNK = 512  # tokens of a prefill run at once
MLLM_BLOCK = 14
VAE_FEATURES = 6  # feature maps at full size while decoding
PIXELS_A_TOKEN = 16  # pixels across one token of the DiT, where its shape says nothing else


@dataclass(frozen=True)
class Need:
    """What one answer asks for."""

    width: int = 1024
    height: int = 1024
    references: int = 2
    tokens: int = 4096


@dataclass(frozen=True)
class Term:
    part: str
    what: str
    bytes: int
    arithmetic: str
    weights: bool = False


def terms(found: Sequence[Found], need: Need) -> list[Term]:
    out = []
    for each in found:
        count = f"{each.parameters:,} parameters as stored"
        out.append(Term(each.kind, "weights", each.bytes, count, weights=True))
        if largest := min(each.shape.get("largest", 0), CARD_CHUNK):  # layers in GGUF's blocks
            sum_ = f"{largest:,} numbers x (4 + {HALF}) bytes"
            out.append(Term(each.kind, "one layer, made whole", largest * (4 + HALF), sum_))
        if each.kind == "DiT" and each.shape:
            out += _dit(each.shape, need)
        elif each.kind == "MLLM" and each.shape:
            out += _mllm(each.shape, need)
        elif each.kind == "VAE" and each.shape:
            base, side = each.shape["base"], each.shape.get("patch", 1)  # Wan 2.2's draws patches of 2 x 2 pixels
            width, height = -(-need.width // side), -(-need.height // side)
            size = width * height * base * VAE_FEATURES * HALF
            sum_ = f"{width} x {height} x {base} channels x {VAE_FEATURES} maps x {HALF} bytes"
            out.append(Term("VAE", "decoding one image", size, sum_))
    return out


def _dit(shape: dict[str, int], need: Need) -> list[Term]:
    pixels = shape.get("pixels", PIXELS_A_TOKEN)
    tokens = -(-need.width // pixels) * -(-need.height // pixels)
    numbers = f"({DIT_BLOCK} x {shape['width']} + {DIT_MLP} x {shape['mlp']}) x {HALF} bytes"
    each = (DIT_BLOCK * shape["width"] + DIT_MLP * shape["mlp"]) * HALF
    out = [Term("DiT", "one step", tokens * each, f"{tokens:,} tokens x {numbers}")]
    text = need.tokens * shape["layers"] * 2 * shape["width"] * HALF
    if text <= TEXT_KEYS:
        sum_ = f"{need.tokens:,} tokens x {shape['layers']} layers x 2 x {shape['width']} x {HALF} bytes"
        out.append(Term("DiT", "keys and values of the text", text, sum_))
    if need.references and shape.get("causal"):  # their keys and values are kept; nothing else of them is
        size = need.references * tokens * shape["layers"] * 2 * shape["width"] * HALF
        sum_ = f"{need.references} x {tokens:,} tokens x {shape['layers']} layers x 2 x {shape['width']} x {HALF} bytes"
        out.append(Term("DiT", "earlier images, cached", size, sum_))
    elif need.references:
        total = need.references * tokens
        sum_ = f"{need.references} x {tokens:,} tokens x {numbers}"
        out.append(Term("DiT", "earlier images", total * each, sum_))
    return out


def _mllm(shape: dict[str, int], need: Need) -> list[Term]:
    cache = shape["layers"] * 2 * shape["kv_heads"] * shape["head_dim"] * HALF * need.tokens
    step = CHUNK * shape["width"] * MLLM_BLOCK * HALF
    return [
        Term(
            "MLLM", "KV cache", cache,
            f"{shape['layers']} layers x 2 x {shape['kv_heads']} heads x {shape['head_dim']} x {HALF} bytes x "
            f"{need.tokens:,} tokens",
        ),
        Term("MLLM", "one step", step, f"{CHUNK} tokens x {shape['width']} x {MLLM_BLOCK} x {HALF} bytes"),
    ]  # fmt: skip


def verdict(found: Sequence[Term], memory: int) -> tuple[str, str]:
    """("whole" | "in turn" | "offloaded" | "no", the sentence)."""
    total = sum(term.bytes for term in found)
    parts = {term.part: 0 for term in found}
    for term in found:
        parts[term.part] += term.bytes
    working = {part: sum(t.bytes for t in found if t.part == part and not t.weights) for part in parts}
    largest, work = max(parts.values(), default=0), max(working.values(), default=0)
    have = readable(memory)
    if total <= memory:
        return "whole", f"It fits: {readable(total)} of {have}."
    if len(parts) > 1 and largest <= memory:
        return "in turn", (
            f"All parts together need {readable(total)} and do not fit {have}, but one at a time they do, which is "
            f"how ComfyUI and generate run them: the largest needs {readable(largest)}."
        )
    if work <= memory * 0.8:
        return "offloaded", (
            f"It does not fit {have} ({readable(largest)}), but runs slower with part of its weights in the "
            f"computer's memory, as ComfyUI and generate do by themselves: {readable(work)} must be on the card."
        )
    return "no", f"It does not fit {have}: {readable(work)} are needed beside the weights; draw smaller images."
