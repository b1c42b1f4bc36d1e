"""A <BOV> for models that have none: a spare id, and rows to start from instead of the noise that spare ids hold.

A published Qwen2.5-VL ends its vocabulary at 151664 and has rows for 152064 (7B) or 151936 (3B) ids. <BOV> takes one of
the spare ones; rows are neither added nor taken away. Ids up to 151668 are passed over: Qwen3 and tools that share its
tokenizer give them other meanings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from duogen_core.errors import DuoGenError
from duogen_core.mllm import family_of
from duogen_core.mllm.base import Mllm
from duogen_core.mllm.chat import BOV, IM_END, VISION_START
from duogen_core.mllm.tokenizer import load_tokenizer

FIRST_ID = 151669  # in a vocabulary as large as Qwen's
LIKE = (" picture", " image", " drawing")  # words that <BOV> is read like
UNTRAINED = 0.25  # of the median length of a row: rows shorter than that were never learnt


def add_bov(tokenizer: Any, rows: int) -> None:
    """Gives the tokenizer <BOV>, unless it has it. rows: how many ids the model's embedding has."""
    from tokenizers import AddedToken

    if BOV in tokenizer.get_vocab():
        return
    size = len(tokenizer)
    first = max(size, FIRST_ID) if size > FIRST_ID - 1000 else size
    if first >= rows:
        raise DuoGenError(
            f"The model has no spare row for {BOV}: its vocabulary has {size} entries and its embedding {rows} rows. "
            "Add a row to the model first."
        )
    names = [f"<|reserved_{k}|>" for k in range(size, first)] + [BOV]
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names], special_tokens=True)


@torch.no_grad()
def start_bov(model: nn.Module, tokenizer: Any) -> list[str]:
    """Sets the rows of <BOV> that were never learnt; returns which ones: "embedding", "lm_head".

    The output's becomes that of the end of a turn: a picture comes where a sentence is over, so that is where the
    states that foresee it lie. The embedding's becomes the mean of words that mean a picture; where both are one, the
    output counts. (Measured on the bundled model, its row taken away: loss on <BOV> 8.3 with a row of zeros, 8.7 with
    those words, 2.5 with the end of a turn; after ten steps 6.7, 4.9, 0.7.)
    """
    vocabulary = tokenizer.get_vocab()
    bov, end = vocabulary[BOV], vocabulary[IM_END]
    words = [ids[0] for ids in (tokenizer.encode(word, add_special_tokens=False) for word in LIKE) if len(ids) == 1]
    embedding, output = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    tied = output is embedding
    started = []
    if is_untrained(embedding, bov):
        rows = [end] if tied else words or [vocabulary[VISION_START]]
        embedding[bov] = embedding[rows].float().mean(0).to(embedding.dtype)
        started.append("embedding")
    if not tied and is_untrained(output, bov):
        output[bov] = output[end]
        started.append("lm_head")
    return started


def is_untrained(weight: Tensor, row: int) -> bool:
    """Far shorter than rows usually are."""
    lengths = weight.float().norm(dim=-1)
    return bool(lengths[row] < UNTRAINED * lengths.median())


def load_start(folder: Path) -> tuple[Mllm, list[str]]:
    """An MLLM to train, with a <BOV> of its own, and which of its rows were set anew."""
    mllm = family_of(folder).from_pretrained(folder)
    if BOV not in mllm.tokenizer.get_vocab():
        tokenizer = load_tokenizer(folder)
        add_bov(tokenizer, mllm.model.get_input_embeddings().num_embeddings)
        mllm = type(mllm)(mllm.model, tokenizer, mllm.image_processor)
    return mllm, start_bov(mllm.model, mllm.tokenizer)
