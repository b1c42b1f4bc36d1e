"""What every MLLM family must do, tiny and random: cached = from scratch, streamed = second pass = transformers'."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch

from duogen_core.connector import Connector, ConnectorConfig
from duogen_core.document import Document, Text, Turn
from duogen_core.mllm.base import Mllm
from duogen_core.mllm.chat import build_inputs, model_inputs, picture_patches
from duogen_core.mllm.decoder import hidden_states_for
from tests.core.mllm_families import (
    CONTEXTS,
    CREATE,
    SIZES,
    TRANSFORMERS_4,
    AllStates,
    all_states,
    another,
    for_generate,
    generated,
    interleaved,
    lively,
    picture,
    reported,
    written,
)


@pytest.fixture(scope="module", params=CREATE)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def mllm(family) -> Mllm:
    return lively(family)


@pytest.fixture(scope="module")
def connector() -> Connector:
    torch.manual_seed(1)
    return Connector(ConnectorConfig(SIZES["layers"], SIZES["hidden_size"], 24)).eval()


@pytest.mark.parametrize("name", CONTEXTS)
def test_greedy_is_what_transformers_generates(mllm, name) -> None:
    ours = written(mllm, CONTEXTS[name], max_new_tokens=24)
    assert ours == generated(mllm, CONTEXTS[name], 24)
    assert len(ours) < 4 or len(set(ours)) > 3  # a model that says one thing only would prove nothing


@pytest.mark.parametrize("seed", range(20))
def test_a_conversation_that_grows_is_what_transformers_makes_of_the_whole(mllm, seed) -> None:
    """Pictures are appended to a live cache; transformers sees each context from scratch."""
    growing, keeps = another(mllm), AllStates(mllm)
    *before, last = interleaved(seed)
    for document in before:
        growing.continue_(document, connector=keeps, max_new_tokens=2)
    assert growing.cache_tokens() > 0
    torch.testing.assert_close(growing.encode(last, keeps).states, reported(mllm, last), atol=3e-5, rtol=1e-4)
    assert written(growing, last, max_new_tokens=16) == generated(mllm, last, 16)


def test_no_library_warns_while_it_answers(mllm) -> None:
    """transformers says in FutureWarnings what it is going to take away: every one is an answer that will break."""
    fresh = another(mllm)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        written(fresh, CONTEXTS["ends with a picture"], max_new_tokens=2)
        fresh.encode(CONTEXTS["ends with a picture"], AllStates(mllm))


def test_positions_are_those_of_transformers(mllm) -> None:
    seen = []
    text = mllm.model.model.language_model
    watch = text.rotary_emb.register_forward_pre_hook(lambda _, args, kwargs: seen.append(args[1]), with_kwargs=True)
    for context in CONTEXTS.values():
        batch = build_inputs([context], mllm.tokenizer, mllm.image_processor)
        mllm.model.model.rope_deltas = None
        with torch.no_grad():
            mllm.model.model(**for_generate(batch))
        ours = mllm.positions(batch["input_ids"][0].tolist(), mllm._grids(context))
        assert torch.equal(ours, seen.pop().reshape(len(ours), -1)), context
    watch.remove()


def second_pass(mllm: Mllm, connector: Connector, document: Document) -> torch.Tensor:
    batch = build_inputs([document], mllm.tokenizer, mllm.image_processor, open_turn=True)
    with torch.no_grad():
        return connector(hidden_states_for(mllm.model, batch)[0].transpose(0, 1))


@pytest.mark.parametrize("name", CONTEXTS)
def test_states_equal_a_second_pass(mllm, connector, name) -> None:
    states = mllm.encode(CONTEXTS[name], connector)
    torch.testing.assert_close(states.states, second_pass(mllm, connector, CONTEXTS[name]), atol=1e-5, rtol=1e-5)
    assert len(states.frame_ends) == len(CONTEXTS[name].pictures)


def test_all_states_are_those_transformers_reports(mllm) -> None:
    batch = build_inputs(list(CONTEXTS.values()), mllm.tokenizer, mllm.image_processor)
    with torch.no_grad():
        ours = hidden_states_for(mllm.model, batch)
    theirs = all_states(mllm, model_inputs(batch, labels=False))
    assert ours.shape == (len(CONTEXTS), 3, batch["input_ids"].shape[1], 64)
    torch.testing.assert_close(ours, torch.stack(theirs, dim=1))
    # A row of a padded batch has the states it has alone.
    alone = build_inputs([CONTEXTS["ends with a picture"]], mllm.tokenizer, mllm.image_processor)
    with torch.no_grad():
        one = hidden_states_for(mllm.model, alone)[0]
    torch.testing.assert_close(ours[3, :, : one.shape[1]], one, atol=1e-5, rtol=1e-5)


def test_training_reaches_every_weight(family) -> None:
    mllm = lively(family)
    batch = build_inputs(list(CONTEXTS.values()), mllm.tokenizer, mllm.image_processor)
    mllm.model.train()(**model_inputs(batch)).loss.backward()
    untouched = {name for name, p in mllm.model.named_parameters() if p.grad is None or p.grad.abs().sum() == 0}
    # LLaVA reads its tower before the norm at its end, which the published files hold all the same.
    assert {name.partition("post_layernorm.")[1] for name in untouched} <= {"post_layernorm."}, untouched
    assert len(untouched) == (2 if family == "llava_onevision" else 0)


def fresh(mllm: Mllm) -> Mllm:
    """The same weights, nothing cached; counts the tokens and patches that really run."""
    new = another(mllm)
    new.tokens = new.patches = 0
    run_layers, embed = new.run_layers, new.embed

    def counting_layers(embeds, *rest):
        new.tokens += embeds.shape[1]
        return run_layers(embeds, *rest)

    def counting_embed(ids, patches, grids):
        new.patches += 0 if patches is None else len(patches)
        return embed(ids, patches, grids)

    new.run_layers, new.embed = counting_layers, counting_embed
    return new


def test_cached_equals_from_scratch_through_a_whole_answer(mllm, connector) -> None:
    cached = fresh(mllm)
    document = Document((Turn("user", (picture(64, 32), Text("How do I draw it?"))),))
    answers = []
    for k, size in enumerate([(64, 64), (96, 32), (32, 64), (50, 40)]):
        options = {"max_new_tokens": 12, "temperature": 0.7 * (k % 2), "seed": k}
        out = cached.continue_(document, connector=connector, **options)
        scratch = fresh(mllm)
        assert scratch.continue_(document, **options) == out and scratch._cache.keys == cached._cache.keys
        answers.append(out.text)
        document = document.append(Text(out.text)) if k else document.begin_turn("assistant", [Text(out.text)])
        states, expected = cached.encode(document, connector), fresh(mllm).encode(document, connector)
        torch.testing.assert_close(states.states, expected.states, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(states.states, second_pass(mllm, connector, document), atol=1e-5, rtol=1e-5)
        assert (states.last_segment, states.frame_ends) == (expected.last_segment, expected.frame_ends)
        document = document.append(picture(*size, seed=k))
    assert len(set(answers)) > 2
    seen = document.pictures[:-1]  # each was looked at once; the last one was never asked about
    assert cached.patches == len(picture_patches(seen, mllm.image_processor)[0])


def test_the_same_requests_in_turn_give_the_same_bits_whatever_is_cached(mllm, connector) -> None:
    """A graph that runs a second time draws from the very same states, whether the cache is full of its first run or of
    a request that shares half of a text with it."""
    warm = fresh(mllm)
    runs = []
    for number in range(3):
        if number == 2:
            other = Document((Turn("user", (picture(64, 32), Text("How do I draw it, and where do I begin?"))),))
            warm.continue_(other, connector=connector, max_new_tokens=3)
        document, states = Document((Turn("user", (picture(64, 32), Text("How do I draw it?"))),)), []
        for k in range(3):
            out = warm.continue_(document, connector=connector, max_new_tokens=9)
            document = document.append(Text(out.text)) if k else document.begin_turn("assistant", [Text(out.text)])
            states.append(warm.encode(document, connector).states)
            document = document.append(picture(64, 64, seed=k))
        runs.append((document.text, states))
    for text, states in runs[1:]:
        assert text == runs[0][0]
        assert all(torch.equal(a, b) for a, b in zip(states, runs[0][1], strict=True))


def test_a_new_turn_and_a_rerolled_picture_keep_what_came_before(mllm, connector) -> None:
    cached = fresh(mllm)
    first = Document((Turn("user", (Text("How?"),)),)).begin_turn("assistant", [Text("One"), picture(64, 64, 1)])
    whole = first.append(Text(" two")).append(picture(96, 64, 2)).append(Text(" three"))
    cached.encode(whole, connector)
    before = cached._layout(first.append(Text(" two"))).ids

    rerolled = first.append(Text(" two")).append(picture(96, 64, 3)).append(Text(" three"))
    cached.tokens = cached.patches = 0
    states = cached.encode(rerolled, connector)
    torch.testing.assert_close(states.states, second_pass(mllm, connector, rerolled), atol=1e-5, rtol=1e-5)
    assert cached.patches == len(picture_patches([picture(96, 64, 3)], mllm.image_processor)[0])  # the new one alone
    assert cached.tokens <= len(states.states) - len(before)

    shorter = first  # going back crops
    cached.tokens = cached.patches = 0
    assert cached.continue_(shorter, max_new_tokens=6) == fresh(mllm).continue_(shorter, max_new_tokens=6)
    assert cached.patches == 0 and cached.tokens <= 1 + 6

    back = cached.encode(whole, connector)
    torch.testing.assert_close(back.states, second_pass(mllm, connector, whole), atol=1e-5, rtol=1e-5)

    smaller = Document((Turn("user", (Text("How?"),)),)).begin_turn("assistant", [Text("One"), picture(32, 32, 1)])
    states = cached.encode(smaller, connector)
    torch.testing.assert_close(states.states, second_pass(mllm, connector, smaller), atol=1e-5, rtol=1e-5)

    again = whole.begin_turn("user", [Text("And then?")])
    assert cached.continue_(again, max_new_tokens=6) == fresh(mllm).continue_(again, max_new_tokens=6)


def test_chunked_prefill_is_the_same(mllm, connector, monkeypatch) -> None:
    monkeypatch.setattr("duogen_core.mllm.base.CHUNK", 7)
    for context in CONTEXTS.values():
        states = fresh(mllm).encode(context, connector).states
        torch.testing.assert_close(states, second_pass(mllm, connector, context), atol=1e-5, rtol=1e-5)


def test_the_negative_drops_the_last_text_only(mllm, connector) -> None:
    context = CONTEXTS["drawn pictures, then text"]
    states = mllm.encode(context, connector)
    start, end = states.last_segment
    ids = mllm._layout(context).ids
    assert mllm.tokenizer.decode(ids[start:end]) == " now" and end == len(ids)
    assert states.negative() == (states.positive(), (start, end)) and len(states.positive()) == end


def test_without_text_of_its_own_the_negative_drops_the_request(mllm, connector) -> None:
    """Nothing written since the last picture: the user's last text; weights trained before that rule drop nothing."""
    context = CONTEXTS["two drawn pictures and no text"]
    states = mllm.encode(context, connector)
    ids = mllm._layout(context).ids
    asked = next(turn for turn in reversed(context.turns) if turn.role == "user").text
    assert mllm.tokenizer.decode(ids[slice(*states.negative()[1])]) == asked
    before = Connector(replace(connector.config, segment="none"))
    before.load_state_dict(connector.state_dict())
    assert mllm.encode(context, before).negative() is None


def test_other_layer_classes_and_a_named_device(family, connector) -> None:
    """As ComfyUI does it: the weights lie elsewhere and are fetched when a layer runs."""
    if TRANSFORMERS_4 and family == "qwen3_vl":
        pytest.skip("transformers 4 makes positions of Qwen3-VL's tower on the device where its weights lie")
    mllm = lively(family)
    context = CONTEXTS["drawn pictures, then text"]
    expected, states = written(mllm, context, max_new_tokens=8), mllm.encode(context, connector).states

    class Linear(torch.nn.Linear):
        def forward(self, x):
            return torch.nn.functional.linear(x, self.away[0], self.away[1])

    class Embedding(torch.nn.Embedding):
        def forward(self, ids):
            return torch.nn.functional.embedding(ids, self.away[0])

    for module in mllm.model.modules():
        swap = {torch.nn.Linear: Linear, torch.nn.Embedding: Embedding}.get(type(module))
        if swap:
            module.away = (module.weight.data, None if getattr(module, "bias", None) is None else module.bias.data)
            module.__class__ = swap
    for module in mllm.model.modules():
        if hasattr(module, "away"):
            module.to("meta")
    other = another(mllm)
    other.device = "cpu"
    assert written(other, context, max_new_tokens=8) == expected
    assert torch.equal(other.encode(context, connector).states, states)
