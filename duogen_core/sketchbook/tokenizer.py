"""The small model's own vocabulary: byte-level BPE on Sketchbook text, with Qwen's control tokens and <BOV>.

The text is that of `cases` random training conversations, user's and assistant's alike, so words come out whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from duogen_core.document import Text
from duogen_core.mllm.tokenizer import train_tokenizer
from duogen_core.sketchbook.tasks import training_case
from duogen_core.training.run import rng_for


def sketchbook_texts(seed: int, cases: int) -> Iterator[str]:
    for k in range(cases):
        for turn in training_case(rng_for(seed, "tokenizer", k)).document.turns:
            yield f"{turn.role}\n"
            yield from (part.text for part in turn.parts if isinstance(part, Text))


def sketchbook_tokenizer(seed: int = 0, cases: int = 4000, vocab_size: int = 1024) -> Any:
    return train_tokenizer(sketchbook_texts(seed, cases), vocab_size)
