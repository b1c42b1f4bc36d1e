"""What runs models besides `generate` runs them on a card too: trainings, their previews, painters, measurements."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from duogen_core.connector import Connector
from duogen_core.data.synthetic.painter import ConversationPainter, PromptPainter, Wanted
from duogen_core.document import Picture
from duogen_core.evaluation.answering import ModelAnswer
from duogen_core.settings import Settings
from duogen_core.sketchbook.ablation.measuring import drawn_in_context, spots, velocity_errors
from duogen_core.sketchbook.evaluation import cases, evaluate
from duogen_core.training import stage2
from duogen_core.training.prepared import Reader
from duogen_core.training.run import Run
from duogen_core.training.samples import answer, write_answers, write_round_trips, write_samples
from duogen_core.training.stage2_data import CachedBatches, Documents
from tests.core.other_device import memory
from tests.core.runs import losses
from tests.core.test_devices import on_card
from tests.core.tiny import random_components, scripted

SETTINGS = Settings(steps=2, size=(32, 32))


def near(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert np.abs(ours.astype(int) - theirs).max() <= 1


@pytest.fixture(scope="module")
def ideal():
    return next(case.document for _, case in cases(1, 0, ("edit",)))


@pytest.mark.parametrize("kind", [ConversationPainter, PromptPainter])
def test_painters_of_data_engines(kind):
    attention = "frame_causal" if kind is ConversationPainter else "full"
    parts = [random_components(attention=attention), on_card(attention)]
    earlier = (Picture(np.full((32, 32, 3), 90, np.uint8), {"prompt": "A square."}),)
    wanted = Wanted("Draw two shapes.", "Now a star.", 3, earlier)
    near(*(kind(each, SETTINGS, "tiny").paint(wanted) for each in parts))


def test_previews_of_trainings(ideal, tmp_path):
    parts, pixels = on_card(), np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    assert answer(parts.mllm, ideal, 6) == answer(random_components().mllm, ideal, 6)
    scripted(parts, ("A star. ", "picture"), ("Done.", "end"))
    written = write_samples(parts, tmp_path, 1, {"edit": ideal})
    written += write_round_trips(parts.vae, [pixels], tmp_path, 2)
    del parts.mllm.continue_
    written += write_answers(parts.mllm, {}, tmp_path, 3)
    assert len(written) == 2 and all("data:image/png" in page.read_text() for page in written)


def test_measurements_of_the_ablation():
    chosen = spots(("edit",), 1, 0)
    for measure in (
        velocity_errors,
        lambda parts, some: drawn_in_context(parts, SETTINGS.resolved(parts.config), some),
    ):
        expected, found = measure(random_components(), chosen), measure(on_card(), chosen)
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            assert found[name] == pytest.approx(values, rel=2e-3, abs=1e-4)


def test_evaluation():
    chosen, found = cases(2, 0, ("edit", "describe")), []
    for parts in (random_components(), on_card()):
        asked = ModelAnswer(Path("tiny"), Settings(max_images=1, max_new_tokens=6), parts)
        report = evaluate(asked, chosen)
        found.append([{**case, "seconds": 0} for case in report["cases"]])
    assert found[0] == found[1]


@pytest.mark.slow
def test_stage_2_reads_documents_and_learns_on_a_card(tmp_path, monkeypatch):
    monkeypatch.setattr(Connector, "save_pretrained", lambda *_: None)  # a stand-in's tensor has no bytes to write
    monkeypatch.setattr(stage2, "save_dit", lambda *_: None)
    config = stage2.Stage2Config(
        out=tmp_path, vae=tmp_path, mllm=tmp_path, layers=2, heads=2, cross_width=32, shards=1, tokens=800, steps=3,
        log_every=1, bf16=False,
    )  # fmt: skip
    read, found = [], []
    for number, (device, parts) in enumerate((("cpu", random_components()), ("card:0", on_card()))):
        mine = replace(config, out=tmp_path / str(number), device=device)
        run = Run.of(mine)
        names, documents = zip(*Documents(run, mine, parts.mllm, 4)(0), strict=True)
        prepared = Reader(parts.vae, parts.mllm)(documents, names)
        read.append(prepared)
        torch.manual_seed(1)
        dit, connector = stage2.new_models(mine, 2, 64)
        stage2.learn(run, mine, CachedBatches(prepared, mine.tokens), dit, connector)
        found.append(losses(mine.out))
    for ours, theirs in zip(*read, strict=True):
        torch.testing.assert_close(ours.states, theirs.states, rtol=0, atol=4e-3)  # kept in half precision
        for mine, others in zip(ours.latents, theirs.latents, strict=True):
            torch.testing.assert_close(mine, others, rtol=0, atol=4e-3)
    assert found[1] == pytest.approx(found[0], rel=1e-3) and memory[0].highest > 0
