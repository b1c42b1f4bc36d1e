"""Linear probes that make a small MLLM's states say what belongs together: "large", "red", "star", "top left".

Our own addition to the training of the small MLLM (stage 1). The diffusion transformer sees the text through the
states alone, without positions: which place belongs to which shape must stand in the state of one token. A large
pre-trained MLLM brings that along; next-token loss on Sketchbook hardly asks for it. So, from what the connector sees
of each token, a linear probe that is thrown away afterwards tells which kind, colour, size and cell were last named
up to there, as long as the word is at most `REACH` tokens back; and how many images came before, or a diffusion
transformer cannot tell the text of the image it draws from that of an earlier one, which asked for other shapes.

In: token ids int [B, N] and the states of all decoder layers, each [B, N, H]. Out: a mean cross-entropy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from duogen_core.connector import normalise
from duogen_core.mllm.chat import VISION_START
from duogen_core.sketchbook.scene import (
    CELLS,
    COLOURS,
    KINDS,
    SIZES,
)

REACH = 10  # tokens; about as long as the words of one shape
IMAGES = ("none", "one", "two", "three", "four", "five", "six", "seven or more")
ATTRIBUTES = {"kind": KINDS, "colour": COLOURS, "size": SIZES, "cell": CELLS, "images": IMAGES}


class Vocabulary:
    """Which token names what: {token id: (attribute, index)}; a row's and a column's word together name a cell."""

    def __init__(self, tokenizer: Any) -> None:
        def token(word: str) -> int | None:
            ids = tokenizer.encode(f" {word}", add_special_tokens=False)
            return ids[0] if len(ids) == 1 else None

        self.words = {
            token(word): (column, index)
            for column, words in enumerate(list(ATTRIBUTES.values())[:3])
            for index, word in enumerate(words)
        }
        self.rows = {token("top"): 0, token("bottom"): 2}
        self.columns = {token("left"): 0, token("right"): 2}
        self.centre = token("centre")
        self.image = tokenizer.convert_tokens_to_ids(VISION_START)
        # A word that the tokenizer cuts up has no token of its own and is not asked for.
        for table in (self.words, self.rows, self.columns):
            table.pop(None, None)

    def last_named(self, ids: Sequence[int]) -> list[list[int]]:
        """Per token, per attribute the index of the word last named, -1 where it is further back than REACH; and the
        number of images before it."""
        last, at, row, images = [-1] * 4, [-REACH - 1] * 4, None, 0
        found = []
        for place, token in enumerate(ids):
            if token == self.image:
                images = min(images + 1, len(IMAGES) - 1)
            elif token in self.words:
                column, last_index = self.words[token]
                last[column], at[column] = last_index, place
            elif token in self.rows:
                last[3], at[3] = 3 * self.rows[token] + 1, place
            elif token in self.columns:
                last[3], at[3] = 3 * (1 if row is None else row) + self.columns[token], place
            elif token == self.centre:
                last[3], at[3] = 4, place
            row = self.rows.get(token)  # of the token just before: "top" and then "left" is one cell
            named = [index if place - seen <= REACH else -1 for index, seen in zip(last, at, strict=True)]
            found.append([*named, images])
        return found


class WordProbes(nn.Module):
    SIZES = tuple(len(words) for words in ATTRIBUTES.values())

    def __init__(self, tokenizer: Any, layers: int, hidden: int) -> None:
        super().__init__()
        self.labels = Vocabulary(tokenizer).last_named
        self.read_out = nn.Linear(layers * hidden, sum(self.SIZES))

    def forward(self, states: Sequence[Tensor], targets: Tensor) -> Tensor:
        known = (targets >= 0).any(-1)
        if not known.any():
            return states[0].new_zeros(())
        seen = torch.cat([normalise(h[known]) for h in states], dim=-1)
        logits = self.read_out(seen).float().split(self.SIZES, -1)
        losses = [
            F.cross_entropy(guess, target, ignore_index=-1)
            for guess, target in zip(logits, targets[known].unbind(-1), strict=True)
            if (target >= 0).any()
        ]
        return torch.stack(losses).mean()
