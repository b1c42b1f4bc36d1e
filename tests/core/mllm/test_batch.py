"""Several documents as one batch: every row is written as it is alone, token for token and state for state."""

from __future__ import annotations

import pytest
import torch

from duogen_core.connector import Connector, ConnectorConfig
from duogen_core.document import Document, Text
from duogen_core.errors import DuoGenError
from duogen_core.mllm import decoding
from tests.core.mllm_families import CONTEXTS, CREATE, SIZES, another, lively, picture

DOCUMENTS = [*CONTEXTS.values()]
HOW = {"max_new_tokens": 14, "temperature": 0.8, "top_k": 40, "repetition_penalty": 1.1}


@pytest.fixture(scope="module", params=CREATE)
def mllm(request):
    return lively(request.param)


@pytest.fixture(scope="module")
def connector() -> Connector:
    torch.manual_seed(1)
    return Connector(ConnectorConfig(SIZES["layers"], SIZES["hidden_size"], 24)).eval()


def alone(mllm, documents, connector, seeds, **how):
    """Each by itself, nothing cached: what it writes, the tokens that ran, and the states after it."""
    out = []
    for document, seed in zip(documents, seeds):
        one = another(mllm)
        written = one.continue_(document, connector=connector, seed=seed, **how)
        out.append((written, list(one._cache.keys)))
    return out


@pytest.mark.parametrize("how", ({"max_new_tokens": 14}, HOW), ids=("greedy", "sampled"))
def test_rows_are_written_as_alone(mllm, connector, how) -> None:
    seeds = range(3, 3 + len(DOCUMENTS))
    expected = alone(mllm, DOCUMENTS, connector, seeds, **how)
    many = another(mllm)
    pieces: dict[int, str] = {}
    written = many.continue_many(
        DOCUMENTS, connector=connector, seeds=seeds, **how,
        on_token=lambda k, text: pieces.update({k: pieces.get(k, "") + text}),
    )  # fmt: skip
    assert written == [each for each, _ in expected]
    assert [pieces.get(k, "") for k in range(len(written))] == [each.text for each in written]
    assert [cache.keys for cache in many._caches] == [keys for _, keys in expected]
    # Each row's cache goes on from there, alone and together.
    for document, each in zip(DOCUMENTS, written):
        grown = (document if document.last_turn.role == "assistant" else document.begin_turn("assistant")).append(
            Text(each.text)
        )
        states = another(mllm).encode(grown, connector).states
        torch.testing.assert_close(many.encode(grown, connector).states, states, atol=1e-5, rtol=1e-5)


def test_a_batch_goes_on_after_pictures_on_its_own_caches(mllm, connector) -> None:
    """As an answer grows: text, picture, text; what ran before runs in no row again."""
    many, documents = another(mllm), DOCUMENTS[:4]
    ran, run = [], many.run_layers
    many.run_layers = lambda embeds, *rest: ran.append(embeds.shape[1]) or run(embeds, *rest)
    for round_ in range(2):
        written = many.continue_many(documents, connector=connector, max_new_tokens=5)
        assert written == [each for each, _ in alone(mllm, documents, connector, [0] * 4, max_new_tokens=5)]
        documents = [
            (document if document.last_turn.role == "assistant" else document.begin_turn("assistant"))
            .append(Text(each.text))
            .append(picture(32, 64, 20 + round_))
            for document, each in zip(documents, written)
        ]
        if not round_:
            ran.clear()
    whole = sum(len(cache.keys) for cache in many._caches)
    assert sum(n for n in ran if n > 1) < whole / 2, "more than the new pictures was read"


def test_limits_rows_that_stop_and_growing_buffers(mllm, connector, monkeypatch) -> None:
    monkeypatch.setattr(decoding, "STEP", 4)  # buffers and mask grow many times
    limits = [0, 9, 3, 25]
    expected = [
        another(mllm).continue_(document, connector=connector, max_new_tokens=limit)
        for document, limit in zip(DOCUMENTS, limits)
    ]
    many = another(mllm)
    assert many.continue_many(DOCUMENTS[:4], connector=connector, max_new_tokens=limits) == expected
    assert many.continue_many(DOCUMENTS[:4], connector=connector, max_new_tokens=limits) == expected
    with pytest.raises(DuoGenError, match="max_new_tokens"):
        many.continue_many(DOCUMENTS[:2], max_new_tokens=[4, -1])
    assert many.continue_many([]) == []


def test_cancelled_rows_keep_what_they_wrote(mllm, connector) -> None:
    many, chosen = another(mllm), []
    choose = many._choose
    many._choose = lambda *how: chosen.append(1) or choose(*how)
    written = many.continue_many(
        DOCUMENTS[:3], connector=connector, max_new_tokens=9, cancelled=lambda: len(chosen) == 4
    )  # fmt: skip
    assert [each.stop for each in written] == ["interrupted"] * 3 and {each.tokens for each in written} == {4}
    whole = [each for each, _ in alone(mllm, DOCUMENTS[:3], connector, [0] * 3, max_new_tokens=9)]
    assert many.continue_many(DOCUMENTS[:3], connector=connector, max_new_tokens=9) == whole
    nothing = another(mllm).continue_many(DOCUMENTS[:2], cancelled=lambda: True)
    assert [(each.text, each.stop) for each in nothing] == [("", "interrupted")] * 2


def test_an_error_in_the_middle_leaves_no_half_cache(mllm, connector) -> None:
    many, documents = another(mllm), DOCUMENTS[:3]
    expected = many.continue_many(documents, connector=connector, max_new_tokens=6)

    def fail(k: int, text: str) -> None:
        raise KeyboardInterrupt

    many.clear_cache()
    with pytest.raises(KeyboardInterrupt):
        many.continue_many(documents, connector=connector, max_new_tokens=6, on_token=fail)
    assert many.continue_many(documents, connector=connector, max_new_tokens=6) == expected
    norm, calls = many.model.model.language_model.norm, []

    def broken(*_):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of memory")

    many.clear_cache()
    many.continue_many(documents, connector=connector, max_new_tokens=0)
    handle = norm.register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError):
        many.continue_many(documents, connector=connector, max_new_tokens=6)
    handle.remove()
    assert many.continue_many(documents, connector=connector, max_new_tokens=6) == expected


def test_memory_that_runs_out_when_caches_get_their_tokens_leaves_no_half_cache(mllm, connector) -> None:
    many, documents = another(mllm), DOCUMENTS[:2]
    expected = many.continue_many(documents, connector=connector, max_new_tokens=12)
    many.clear_cache()
    update = decoding.KeyValueCache.update

    def broken(self, keys, values, layer):
        if layer == 1:
            raise RuntimeError("out of memory")
        return update(self, keys, values, layer)

    def giving_back(batch):
        for cache in batch.caches:
            cache.update = broken.__get__(cache)
        decoding.Batch.give_back(batch)

    original = many.batch

    def batch(caches):
        made = original(caches)
        if made is not None:
            made.give_back = giving_back.__get__(made)
        return made

    many.batch = batch
    with pytest.raises(RuntimeError, match="out of memory"):
        many.continue_many(documents, connector=connector, max_new_tokens=6)
    many.batch = original
    for cache in many._caches:
        cache.kv.__dict__.pop("update", None)
    assert many.continue_many(documents, connector=connector, max_new_tokens=12) == expected


def test_attention_of_another_kind_runs_row_by_row(mllm, connector, monkeypatch) -> None:
    expected = another(mllm).continue_many(DOCUMENTS[:3], connector=connector, max_new_tokens=6)
    monkeypatch.setattr(type(mllm), "batch", lambda self, caches: None)
    assert another(mllm).continue_many(DOCUMENTS[:3], connector=connector, max_new_tokens=6) == expected


def test_one_forward_serves_all_rows(mllm) -> None:
    rows = []
    handle = mllm.model.model.language_model.norm.register_forward_pre_hook(
        lambda _, args: rows.append(tuple(args[0].shape[:2]))
    )
    try:
        another(mllm).continue_many(
            [DOCUMENTS[0]] * 3 + [Document().begin_turn("user", [Text("How?")])], max_new_tokens=2
        )
    finally:
        handle.remove()
    assert [shape for shape in rows if shape[1] == 1] == [(4, 1)] * 2
