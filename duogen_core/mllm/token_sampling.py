"""How the next token is chosen: the likeliest one, or one drawn from a filtered distribution.

In: logits [rows, vocabulary] of any device. Out: a token id a row. At temperature 0 the largest logit; above, as
transformers' chain of processors filters: repetition penalty, temperature, top_k, top_p, min_p. Every filter keeps a
prefix of the tokens in descending order (of equals, the lower id first), so all that is needed is its length. The draw
is one number that follows from seed and position alone; odds are float64.
Sorting a vocabulary of 152,000 takes 10 ms, so the FIRST likeliest are found on the device and handed over in one
transfer; only where a draw falls beyond them (a flat distribution) does the whole row come.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from duogen_core.errors import DuoGenError

FIRST = 512


@dataclass(frozen=True)
class TokenSampling:
    """temperature 0: always the likeliest token. top_k 0, top_p 1, min_p 0 and penalties of 1 do nothing.

    repetition_penalty is for words of the prompt and of what was written, as published models mean it; reply_penalty
    for what was written alone: a small model that repeats itself is kept from that, and may still use the words of the
    request. None: what the model's generation_config.json says (`resolved`).
    """

    temperature: float | None = 0.0
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    reply_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name, right, wanted in (
            ("temperature", lambda x: 0 <= x < float("inf"), "a number of 0 or more"),
            ("top_p", lambda x: 0 < x <= 1, "a number above 0, at most 1"),
            ("top_k", lambda x: isinstance(x, int) and x >= 0, "a whole number of 0 or more"),
            ("min_p", lambda x: 0 <= x <= 1, "a number of 0 to 1"),
            ("repetition_penalty", lambda x: 0 < x < float("inf"), "a number above 0"),
            ("reply_penalty", lambda x: 0 < x < float("inf"), "a number above 0"),
        ):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is not None and not (number and right(value)):
                raise DuoGenError(f"{name} must be {wanted}, not {value}.")

    def resolved(self, own: Mapping[str, Any]) -> TokenSampling:
        """With the model's own values where none was chosen, and those that do nothing where it has none either.

        own: its generation_config.json. Taken from it are temperature (0 where do_sample is not true there) and, only
        where tokens are drawn, top_p, top_k, min_p and repetition_penalty: at temperature 0 the answer stays the
        likeliest one, unless the user asks for a penalty. Not taken: ends of text and control tokens, which follow from
        the tokenizer, lengths, and all other ways to search (beams, penalties of other kinds).
        """
        temperature = self.temperature
        if temperature is None:
            temperature = own.get("temperature", 1.0) if own.get("do_sample") else 0.0
        values = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
        for name, nothing in values.items():
            chosen = getattr(self, name)
            if chosen is None:
                chosen = own.get(name) if temperature > 0 else None
            values[name] = nothing if chosen is None else chosen
        return TokenSampling(temperature, **values, reply_penalty=self.reply_penalty)


def choose(
    logits: Tensor,
    sampling: TokenSampling,
    seeds: Sequence[int],
    positions: Sequence[int],
    seen: Sequence[Tensor],
    written: Sequence[Sequence[int]] = (),
) -> list[int]:
    """A token for each row of logits float32 [rows, vocabulary], which are changed. sampling: a resolved one.

    positions: how many tokens each row's context has. seen: ids [n] of each row that the repetition penalty is for;
    written: those that the penalty over the reply is for.
    """
    for penalty, rows in ((sampling.repetition_penalty, seen), (sampling.reply_penalty, written)):
        if penalty == 1:
            continue
        from transformers import RepetitionPenaltyLogitsProcessor

        penalise = RepetitionPenaltyLogitsProcessor(float(penalty))
        for row, ids in enumerate(rows):
            ids = torch.as_tensor(ids, dtype=torch.long, device=logits.device)
            logits[row] = penalise(ids[None], logits[row : row + 1])[0]
    if sampling.temperature == 0:
        return logits.argmax(-1).tolist()
    # MPS has no float64: there the sum over the vocabulary is a float32, as its logits are.
    wide = torch.float32 if logits.device.type == "mps" else torch.float64
    values, ids = logits.topk(min(FIRST, logits.shape[-1]))
    total = (logits.to(wide) / sampling.temperature).logsumexp(-1, keepdim=True)
    first = torch.cat([values.to(wide), ids.to(wide), total], dim=-1).cpu().double().numpy()
    numbers = [random.Random(f"{seed}:{position}").random() for seed, position in zip(seeds, positions)]
    return [_draw(row, logits[i], sampling, numbers[i]) for i, row in enumerate(first)]


def _draw(first: np.ndarray, logits: Tensor, sampling: TokenSampling, number: float) -> int:
    values, ids, total = first[: len(first) // 2], first[len(first) // 2 : -1], first[-1]
    order = np.lexsort((ids, -values))
    values, ids = values[order], ids[order]
    # Of tokens as likely as the last one here some may be missing: those before it are all that are likelier than it.
    whole = len(values) == len(logits)
    known = len(values) if whole else int((values > values[-1]).sum())
    place = _place(np.exp(values[:known] / sampling.temperature - total), sampling, number, whole)
    if place is not None:
        return int(ids[place])
    every = (logits.cpu().double() / sampling.temperature).softmax(-1).numpy()
    ordered = np.sort(every)[::-1]  # values alone: ten times as fast as with their places
    place = _place(ordered, sampling, number, True)
    equals = np.flatnonzero(every == ordered[place])
    return int(equals[place - int((ordered > ordered[place]).sum())])


def _place(odds: np.ndarray, sampling: TokenSampling, number: float, whole: bool) -> int | None:
    """Which of the tokens in descending order is drawn; None where the odds of the likeliest alone do not say it."""
    if not len(odds):
        return None
    reached = np.cumsum(odds)
    end = len(odds) if whole else None  # how many tokens are kept; None: more than these
    mass = 1.0
    if sampling.top_k and not (whole and sampling.top_k >= len(odds)):
        if sampling.top_k > len(odds):
            return None
        end = int((odds >= odds[sampling.top_k - 1]).sum())  # as transformers: the last one's equals stay too
        mass = reached[end - 1]
    if sampling.top_p < 1:
        held = int((reached[:end] < sampling.top_p * mass).sum())  # the smallest set that holds top_p has one more
        if held == len(odds) and end is None:
            return None
        end = min(held + 1, len(odds) if end is None else end)
    if sampling.min_p > 0:
        likely = int((odds[:end] >= sampling.min_p * odds[0]).sum())
        if likely == len(odds) and end is None:
            return None
        end = likely
    total = 1.0 if end is None else reached[end - 1]
    place = int((reached[:end] <= number * total).sum())
    if place < len(reached[:end]):
        return place
    return None if end is None else int((reached < total).sum())  # number * total was rounded up to it
