"""The loss of the MLLM on any documents: equal to transformers' own, whole or in parts."""

from __future__ import annotations

import random

import pytest
import torch

from duogen_core.document import Document, Text, Turn
from duogen_core.errors import DuoGenError
from duogen_core.mllm.batched_tower import sees_whole_pictures, tower_features
from duogen_core.mllm.chat import build_inputs, model_inputs
from duogen_core.mllm.image_processor import normalised
from duogen_core.mllm.qwen2_5_vl import Qwen25VL
from duogen_core.sketchbook.source import example_of
from duogen_core.sketchbook.tasks import FAMILIES
from duogen_core.training.next_token import (
    Batcher,
    NextTokenLoss,
    StepTotals,
    encode_pictures,
    hidden_states,
)
from tests.core.documents import picture
from tests.core.mllm_families import CREATE, lively
from tests.core.tiny import random_components


@pytest.fixture(params=CREATE)
def mllm(request):
    return lively(request.param)


def album(*sizes) -> Document:
    """A picture of the user's, and drawn ones of unlike sizes."""
    answer = [part for k, size in enumerate(sizes) for part in (Text(f"Step {k}."), picture(k, size))]
    return Document((
        Turn("system", (Text("Be kind."),)),
        Turn("user", (Text("Draw."), picture(9, (50, 31)))),
        Turn("assistant", tuple(answer)),
        Turn("user", (Text("More?"),)),
        Turn("assistant", (Text("No."),)),
    ))  # fmt: skip


DOCUMENTS = [album((33, 47)), album((64, 32), (200, 9)), album()]


def own_loss(mllm, documents):
    batch = build_inputs(documents, mllm.tokenizer, mllm.image_processor)
    return mllm.model(**model_inputs(batch)).loss


def test_the_loss_on_pictures_of_any_size_is_transformers_own(mllm):
    batcher = Batcher(mllm.tokenizer, mllm.image_processor)
    batcher.tokens = 2 * sorted(batcher([each])[0][0].ids.shape[1] for each in DOCUMENTS)[1]
    batches, pixels = batcher(DOCUMENTS)
    assert len(batches) > 1 and any(len(batch.ids) > 1 for batch in batches) and len(pixels) == 4
    with torch.no_grad():
        found, _ = NextTokenLoss(mllm.model)(batches, pixels)
        torch.testing.assert_close(found, own_loss(mllm, DOCUMENTS), atol=1e-5, rtol=1e-5)


def test_a_batch_is_its_documents_one_by_one(mllm):
    """Padded beside others, every token has the states it has alone, in every layer."""
    batcher = Batcher(mllm.tokenizer, mllm.image_processor, tokens=10**6)
    with torch.no_grad():
        (together,), pixels = batcher(DOCUMENTS)
        states = hidden_states(mllm.model, together, encode_pictures(mllm.model, pixels), every=True)
        for document in DOCUMENTS:
            (alone,), seen = batcher([document])
            n = alone.ids.shape[1]
            row = next(k for k, ids in enumerate(together.ids) if torch.equal(ids[:n], alone.ids[0]))
            own = hidden_states(mllm.model, alone, encode_pictures(mllm.model, seen), every=True)
            for each, one in zip(states, own, strict=True):
                torch.testing.assert_close(each[row, :n], one[0], atol=1e-5, rtol=1e-5)


def test_pictures_of_one_shape_run_together_as_each_alone(mllm):
    """Ten pictures of two shapes: what the tower is given at once changes nothing, in values and in gradients."""
    batcher = Batcher(mllm.tokenizer, mllm.image_processor)
    sizes = [(96, 64), (64, 96)] * 5
    shown = Document((Turn("user", tuple(picture(k, size) for k, size in enumerate(sizes))),)).begin_turn(
        "assistant", [Text("Fine.")]
    )
    _, pixels = batcher([shown])
    together = encode_pictures(mllm.model, pixels)
    assert len(together) == 10 and all(each.requires_grad for each in together.values())
    for key, feature in together.items():
        (alone,) = encode_pictures(mllm.model, {key: pixels[key]}).values()
        torch.testing.assert_close(feature, alone, atol=2e-5, rtol=1e-4)


def test_a_tower_with_windows_runs_as_transformers_runs_it():
    mllm = random_components().mllm
    model, tower = mllm.model, mllm.model.model.visual
    pictures = torch.randint(0, 256, (3, 64, 96, 3), dtype=torch.uint8)
    colours = normalised(pictures, Qwen25VL.picture_settings)
    with torch.no_grad():
        own = super(Qwen25VL, Qwen25VL).look_at(model, pictures, (1, 4, 6))
        torch.testing.assert_close(own, tower_features(tower, colours), atol=1e-5, rtol=1e-4)
        assert torch.equal(Qwen25VL.look_at(model, pictures, (1, 4, 6)), tower_features(tower, colours))
        tower.config.fullatt_block_indexes = tower.fullatt_block_indexes = []
        tower.config.window_size = tower.window_size = 64
        assert not sees_whole_pictures(tower)
        wide = [Document((Turn("user", (Text("What?"), picture(1, (160, 128)))), Turn("assistant", (Text("Art."),))))]
        found, _ = NextTokenLoss(mllm.model)(*Batcher(mllm.tokenizer, mllm.image_processor)(wide))
        torch.testing.assert_close(found, own_loss(mllm, wide), atol=1e-5, rtol=1e-5)
        with pytest.raises(DuoGenError, match="full attention"):
            tower_features(tower, colours)


def test_a_step_in_parts_has_the_same_loss_and_gradients(mllm):
    examples = [*DOCUMENTS, *(example_of(FAMILIES[family](random.Random(1))) for family in ("draw", "describe"))]
    batcher, loss_of = Batcher(mllm.tokenizer, mllm.image_processor, tokens=500), NextTokenLoss(mllm.model)
    parameters = dict(mllm.model.model.named_parameters())

    def gradients(parts):
        mllm.model.zero_grad()
        prepared = [batcher(part) for part in parts]
        whole = StepTotals.of([batch for batches, _ in prepared for batch in batches])
        losses = []
        for batches, pixels in prepared:
            losses.append(loss_of(batches, pixels, whole)[0])
            losses[-1].backward()
        learnt = {k: p.grad.clone() for k, p in parameters.items() if p.grad is not None}
        return sum(loss.item() for loss in losses), learnt

    one, three = gradients([examples]), gradients([examples[k::3] for k in range(3)])
    assert one[0] == pytest.approx(three[0], abs=1e-5)
    for name, gradient in one[1].items():
        torch.testing.assert_close(three[1][name], gradient, atol=1e-6, rtol=1e-3, msg=name)
