"""The next token: the filtered distribution is that of transformers' chain, and draws are what a full sort gives."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from duogen_core.errors import DuoGenError
from duogen_core.mllm import token_sampling
from duogen_core.mllm.loading import read_generation
from duogen_core.mllm.token_sampling import TokenSampling, choose

NOTHING = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


def logits(size: int, spread: float, ties: bool = False, seed: int = 0) -> torch.Tensor:
    out = torch.randn(1, size, generator=torch.Generator().manual_seed(seed)) * spread
    out = (4 * out).round() / 4 if ties else out  # a bfloat16 model gives many equal logits
    out[0, : size // 10] = float("-inf")  # control tokens
    return out


def sampled(values: torch.Tensor, seed: int = 0, position: int = 0, seen=None, **how) -> int:
    sampling = TokenSampling(**{**NOTHING, **how})
    (token,) = choose(values.clone(), sampling, [seed], [position], [seen])
    return token


def of_transformers(values: torch.Tensor, seen: torch.Tensor, how: dict) -> torch.Tensor:
    chain = LogitsProcessorList(
        [RepetitionPenaltyLogitsProcessor(how["repetition_penalty"]), TemperatureLogitsWarper(how["temperature"])]
        + ([TopKLogitsWarper(how["top_k"])] if how["top_k"] else [])
        + [TopPLogitsWarper(how["top_p"]), MinPLogitsWarper(how["min_p"])]
    )
    return chain(seen[None], values.double()).softmax(-1)[0]


@pytest.mark.parametrize("first", (512, 8))
@pytest.mark.parametrize(
    "how",
    (
        {},
        {"top_k": 5},
        {"top_k": 400},
        {"top_p": 0.3},
        {"top_p": 0.95},
        {"min_p": 0.2},
        {"top_k": 20, "top_p": 0.8, "min_p": 0.1},
        {"repetition_penalty": 1.3, "top_k": 10},
        {"repetition_penalty": 0.7, "top_p": 0.9, "temperature": 2.0},
    ),
)
@pytest.mark.parametrize("spread, ties", ((3.0, False), (0.3, False), (1.0, True)))
def test_the_distribution_is_that_of_transformers(monkeypatch, first, how, spread, ties) -> None:
    """Every token that transformers' chain leaves has its own share of the numbers that may be drawn."""
    monkeypatch.setattr(token_sampling, "FIRST", first)
    how = {"temperature": 0.8, **NOTHING, **how}
    values, seen = logits(300, spread, ties), torch.tensor([40, 41, 299, 41])
    odds = of_transformers(values, seen, how)
    ordered, ids = odds.sort(descending=True, stable=True)
    ends = ordered.cumsum(0)
    kept = int((ordered > 0).sum())
    for rank in range(0, kept, max(1, kept // 25)):
        middle = float(ends[rank] - ordered[rank] / 2)
        monkeypatch.setattr(token_sampling.random, "Random", lambda _, n=middle: SimpleNamespace(random=lambda: n))
        token, expected = sampled(values, seen=seen, **how), int(ids[rank])
        # Which of equal tokens top_p cuts off is left to transformers' unstable sort.
        assert token == expected or (ties and values[0, token] == values[0, expected])


@pytest.mark.parametrize("spread, ties", ((6.0, False), (0.2, False), (2.0, True)))
@pytest.mark.parametrize("top_p", (1.0, 0.9, 0.05))
@pytest.mark.parametrize("first", (512, 16))
def test_draws_are_those_of_a_full_sort(monkeypatch, first, spread, ties, top_p) -> None:
    """Texts that were sampled before the fast form stay the same texts."""
    monkeypatch.setattr(token_sampling, "FIRST", first)
    values = logits(3000, spread, ties)
    odds, order = (values[0].double() / 0.7).softmax(-1).sort(descending=True, stable=True)
    reached = odds.cumsum(0)
    reached = reached[: int((reached < top_p).sum()) + 1]
    for seed in range(150):
        draw = random.Random(f"{seed}:77").random() * float(reached[-1])
        expected = int(order[min(int((reached <= draw).sum()), len(reached) - 1)])
        assert sampled(values, seed, 77, temperature=0.7, top_p=top_p) == expected


def test_a_row_never_looks_at_another() -> None:
    rows = torch.cat([logits(700, 2.0, seed=seed) for seed in range(4)])
    sampling = TokenSampling(1.0, **{**NOTHING, "repetition_penalty": 1.5})
    seen = [torch.arange(100, 100 + 30 * row) for row in range(4)]
    together = choose(rows.clone(), sampling, range(4), range(4), seen)
    alone = [choose(rows[i : i + 1].clone(), sampling, [i], [i], [seen[i]])[0] for i in range(4)]
    assert together == alone and len(set(together)) > 1
    greedy = choose(rows.clone(), TokenSampling(0.0, **NOTHING), range(4), range(4), seen)
    assert greedy == rows.argmax(-1).tolist()


OWN = {"do_sample": True, "temperature": 0.6, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}


def test_what_is_taken_from_the_models_own_file() -> None:
    greedy = TokenSampling().resolved(OWN)
    assert greedy == TokenSampling(0.0, **NOTHING), "an answer that is not drawn stays the likeliest one"
    drawn = TokenSampling(0.9).resolved(OWN)
    assert drawn == TokenSampling(0.9, top_p=0.8, top_k=20, min_p=0.0, repetition_penalty=1.05)
    chosen = TokenSampling(0.9, top_k=0, top_p=1.0, repetition_penalty=1.0).resolved(OWN)
    assert chosen == TokenSampling(0.9, **NOTHING)
    assert TokenSampling(None).resolved(OWN).temperature == 0.6
    assert TokenSampling(None).resolved({**OWN, "do_sample": False}) == greedy
    assert TokenSampling(None).resolved({}) == greedy
    assert TokenSampling(repetition_penalty=1.2).resolved({}).repetition_penalty == 1.2


def test_the_file_is_read_and_checked(tmp_path) -> None:
    file = tmp_path / "generation_config.json"
    assert read_generation(tmp_path) == {}
    file.write_text(json.dumps({**OWN, "eos_token_id": 3, "transformers_version": "5", "min_p": None}))
    assert read_generation(tmp_path) == OWN
    for bad in ({"top_k": -1}, {"temperature": "hot"}, {"do_sample": "yes"}, []):
        file.write_text(json.dumps(bad))
        with pytest.raises(DuoGenError, match="generation_config.json"):
            read_generation(tmp_path)
