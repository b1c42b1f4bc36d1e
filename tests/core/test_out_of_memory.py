"""Memory runs out in the middle of an answer: once more and leaner, the same answer; then one sentence."""

from __future__ import annotations

import pytest
import torch

from duogen_core.devices import size_of
from duogen_core.errors import DuoGenError
from duogen_core.out_of_memory import retry, without_repeats
from duogen_core.pipeline import Callbacks, generate
from duogen_core.settings import Settings
from duogen_core.text_to_picture import draw_prompt
from tests.core.other_device import limited
from tests.core.test_devices import CARD, SCRIPT, answered, assert_same_answer
from tests.core.tiny import random_components, request, scripted

CPU_ALLOCATOR = RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory")


@pytest.fixture(scope="module")
def expected():
    return answered(random_components())


def with_notices(parts, script=SCRIPT):
    scripted(parts, *script)
    said, documents = [], []
    watch = Callbacks(on_notice=said.append, on_document=documents.append)
    return (lambda: generate(parts, request(), None, watch)), said, documents


def test_a_card_that_is_full_goes_on_part_by_part_and_draws_the_same(expected):
    parts = random_components().to("card")
    run, said, _ = with_notices(parts)
    with limited(10_000) as card:  # beside the whole model
        assert_same_answer(run(), expected)
        assert card.highest <= card.limit
    assert len(said) == 1 and "one part of the model at a time on card:0" in said[0] and parts.offload == "model"


def test_a_part_that_is_too_large_for_the_card_goes_on_layer_by_layer(expected, monkeypatch):
    monkeypatch.setattr("duogen_core.devices.LEAST", 512)
    parts = random_components()
    parts.take_turns(CARD)
    run, said, _ = with_notices(parts)
    sizes = {name: size_of(module) for name, module in parts.modules.items()}
    room = sizes["vae"] + 400_000
    with limited(room) as card:
        # Another program's: the MLLM fits beside it, and its work does not.
        reserve = torch.zeros((room - sizes["mllm"]) // 4, device=CARD)
        go_leaner = parts.go_leaner

        def leaner():
            nonlocal reserve
            reserve = None
            return go_leaner()

        parts.go_leaner = leaner
        assert_same_answer(run(), expected)
        assert card.highest <= card.limit
    assert len(said) == 1 and "one layer of the model at a time on card:0" in said[0] and parts.offload == "layers"


def test_on_the_cpu_what_is_cached_is_freed(expected):
    parts = random_components()
    run, said, _ = with_notices(parts)
    prepare, failures = parts.dit.prepare, [CPU_ALLOCATOR]

    def failing(*args, **kwargs):
        if failures:
            raise failures.pop()
        return prepare(*args, **kwargs)

    parts.dit.prepare = failing
    assert_same_answer(run(), expected)
    assert said == ["Memory ran out; trying once more with nothing kept from before."]


def test_twice_is_one_sentence_and_what_was_finished_stays():
    parts = random_components()
    run, said, documents = with_notices(parts)
    decode, calls = parts.vae.decode_pixels, []

    def failing(latent):
        calls.append(latent)
        if len(calls) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB.")
        return decode(latent)

    parts.vae.decode_pixels = failing
    with pytest.raises(DuoGenError, match="Memory ran out twice while drawing image 2; draw smaller images"):
        run()
    assert len(said) == 1 and len(calls) == 3 and len(documents[-1].pictures) == 1
    calls.append(None)
    with pytest.raises(DuoGenError, match="twice while drawing an image"):
        draw_prompt(random_like(parts), "A star", Settings(size=(32, 32)), pad_to=16)


def random_like(parts):
    other = random_components(attention="full")
    other.vae.decode_pixels = parts.vae.decode_pixels
    return other


def test_text_that_was_streamed_is_not_streamed_again():
    parts = random_components()
    scripted(parts, ("One two three.", "end"))
    told, said = [], []
    write, failures = parts.mllm.continue_, [CPU_ALLOCATOR]

    def failing(document, *, on_token, **kwargs):
        if failures:
            on_token("One ")
            on_token("tw")
            raise failures.pop()
        return write(document, on_token=on_token, **kwargs)

    parts.mllm.continue_ = failing
    document = generate(parts, request(), None, Callbacks(on_token=told.append, on_notice=said.append))
    assert "".join(told) == document.last_turn.text == "One two three." and len(said) == 1
    assert without_repeats(None)() is None


def test_other_errors_come_through_at_once():
    def work():
        calls.append(1)
        raise RuntimeError("The size of tensor a (3) must match")

    calls = []
    with pytest.raises(RuntimeError, match="must match"):
        retry(work, lambda: pytest.fail("it went leaner"), what="drawing")
    assert len(calls) == 1


def test_where_nobody_listens_it_is_logged(caplog):
    failures = [MemoryError()]

    def work():
        if failures:
            raise failures.pop()
        return 7

    assert retry(work, lambda: "Once more.", what="drawing") == 7
    assert caplog.messages == ["Once more."]
