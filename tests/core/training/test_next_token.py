"""The loss of the MLLM on any documents: equal to transformers' own, whole or in parts."""

from __future__ import annotations

import random

import pytest
import torch

from duogen_core.document import Document, Text, Turn
from duogen_core.errors import DuoGenError
from duogen_core.mllm.chat import build_inputs, model_inputs
from duogen_core.mllm.image_processor import small_image_processor
from duogen_core.sketchbook.source import example_of
from duogen_core.sketchbook.tasks import FAMILIES
from duogen_core.training.next_token import (
    Batcher,
    NextTokenLoss,
    StepTotals,
    own_features,
    sees_whole_pictures,
    tower_features,
)
from tests.core.documents import picture
from tests.core.tiny import random_components


@pytest.fixture
def mllm():
    return random_components().mllm


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
    batches, pixels = Batcher(mllm.tokenizer, mllm.image_processor, tokens=100)(DOCUMENTS)
    assert len(batches) > 1 and {tuple(p.shape[:2]) for p in pixels.values()} >= {(32, 64), (32, 160)}
    with torch.no_grad():
        found, _ = NextTokenLoss(mllm.model)(batches, pixels)
        torch.testing.assert_close(found, own_loss(mllm, DOCUMENTS), atol=1e-5, rtol=1e-5)


def test_a_tower_with_windows_runs_as_transformers_runs_it():
    mllm = random_components().mllm
    tower = mllm.model.model.visual
    pictures = torch.randint(0, 256, (3, 64, 96, 3), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(own_features(tower, pictures), tower_features(tower, pictures), atol=1e-5, rtol=1e-4)
        tower.config.fullatt_block_indexes = tower.fullatt_block_indexes = []
        tower.config.window_size = tower.window_size = 64
        assert not sees_whole_pictures(tower)
        wide = [Document((Turn("user", (Text("What?"), picture(1, (160, 128)))), Turn("assistant", (Text("Art."),))))]
        found, _ = NextTokenLoss(mllm.model)(*Batcher(mllm.tokenizer, mllm.image_processor)(wide))
        torch.testing.assert_close(found, own_loss(mllm, wide), atol=1e-5, rtol=1e-5)
        with pytest.raises(DuoGenError, match="full attention"):
            tower_features(tower, pictures)


def test_a_step_in_parts_has_the_same_loss_and_gradients(mllm):
    examples = [*DOCUMENTS, *(example_of(FAMILIES[family](random.Random(1))) for family in ("draw", "describe"))]
    batcher, loss_of = Batcher(mllm.tokenizer, mllm.image_processor, tokens=300), NextTokenLoss(mllm.model)
    parameters = dict(mllm.model.model.named_parameters())

    def gradients(parts):
        mllm.model.zero_grad()
        prepared = [batcher(part) for part in parts]
        whole = StepTotals.of([batch for batches, _ in prepared for batch in batches])
        losses = []
        for batches, pixels in prepared:
            losses.append(loss_of(batches, pixels, whole)[0])
            losses[-1].backward()
        return sum(loss.item() for loss in losses), {k: p.grad.clone() for k, p in parameters.items()}

    one, three = gradients([examples]), gradients([examples[k::3] for k in range(3)])
    assert one[0] == pytest.approx(three[0], abs=1e-5)
    for name, gradient in one[1].items():
        torch.testing.assert_close(three[1][name], gradient, atol=1e-6, rtol=1e-3, msg=name)


def test_an_image_processor_with_other_colours_is_refused(mllm):
    processor = small_image_processor()
    processor.image_mean = [0.5, 0.5, 0.5]
    with pytest.raises(DuoGenError, match="another mean"):
        Batcher(mllm.tokenizer, processor)
