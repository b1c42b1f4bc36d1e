"""The core's own models in the synthetic engine: painters, answers, and the commands that load a model."""

from __future__ import annotations

import json

import numpy as np
import pytest

from duogen_core.checkpoint import save_checkpoint
from duogen_core.cli import main
from duogen_core.data.runs.presets import load_preset
from duogen_core.data.sources import open_source
from duogen_core.data.synthetic.drawing import AnswerEngine
from duogen_core.data.synthetic.painter import ConversationPainter, PromptPainter, Wanted
from duogen_core.data.synthetic.requests import Request
from duogen_core.document import Picture
from duogen_core.settings import Settings
from duogen_core.training import stage1
from duogen_core.training.stage1 import Stage1Config
from tests.core.runs import losses
from tests.core.synthetic_plans import write_plans
from tests.core.synthetic_writer import new_request, write_taxonomy
from tests.core.tiny import random_components, scripted

NOISE = np.random.default_rng(0).integers(0, 256, (70, 70, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def components():
    return random_components()


def test_a_conversation_painter_looks_at_earlier_pictures(components):
    painter = ConversationPainter(components, Settings(size=(64, 32)), "tiny")
    earlier = Picture(NOISE[:32, :64], {"prompt": "a square"})
    one, again, other = (painter.paint(Wanted("Draw.", "a star", 5, pictures)) for pictures in ((), (), (earlier,)))
    assert one.shape == (32, 64, 3) and np.array_equal(one, again) and not np.array_equal(one, other)
    assert painter.identity() == {
        "painter": "duogen", "model": "tiny", "steps": 2, "guidance": 2.0, "shift": 1.0, "size": (64, 32)
    }  # fmt: skip


def test_a_prompt_painter_does_not(components):
    painter = PromptPainter(components, Settings(), "tiny")
    earlier = Picture(NOISE[:32, :32], {"prompt": "a square"})
    one, other = (painter.paint(Wanted("Draw.", "a star", 5, pictures)) for pictures in ((), (earlier,)))
    assert one.shape == (32, 32, 3) and np.array_equal(one, other)
    assert not np.array_equal(one, painter.paint(Wanted("Draw.", "a star", 6)))


def test_a_model_answers_by_itself(components):
    scripted(components, ("First a red square. ", "picture"), ("Then a blue one. ", "picture"), ("Done.", "end"))
    request = Request("Knots", "Loops", new_request(1), "tiny")
    preset = load_preset("synthetic", settings=["picture.min_side=16"])
    engine = AnswerEngine([request], preset, lambda: components, Settings(seed=3), "tiny")
    ((_, document),) = engine.do(0).documents
    assert len(document.pictures) == 2
    assert document.meta["seed"] == request.drawn_seed(3) == document.pictures[0].meta["seed"]
    assert document.generation["stop_reason"] == "end" and document.text.endswith("Done.")
    scripted(components, ("Only words, and nothing to see.", "end"))
    assert engine.do(0).entry["rule"] == "few_pictures"
    scripted(components, ("Words without an end", "max_tokens"))
    assert engine.do(0).entry["rule"] == "unfinished"


@pytest.mark.slow
def test_drawing_and_answering_with_a_model_of_a_folder_and_training_on_what_was_drawn(tmp_path, components, capsys):
    planned = write_plans(tmp_path / "run")
    model = save_checkpoint(components, tmp_path / "model")
    arguments = [str(planned), "--model", str(model), "--set", "picture.min_side=16", "--quiet"]
    assert main(["data", "synthetic", "draw", *arguments, "--steps", "1"]) == 0
    assert "5 documents with 15 pictures" in capsys.readouterr().out
    document = open_source(f"webdataset:{planned / 'draw' / 'shards'}").read(4).document
    assert document.meta["painter"]["model"] == "model" and str(tmp_path) not in json.dumps(document.meta)
    data = [f"webdataset:{planned / 'draw' / 'shards'}"]
    few = {"batch": 2, "steps": 2, "warmup": 1, "log_every": 1, "eval_cases": 0, "bf16": False}
    stage1.train(Stage1Config(out=tmp_path / "trained", init=model / "mllm", data=data, **few))
    assert len(losses(tmp_path / "trained")) == 2 and not (tmp_path / "trained" / "bad_samples.jsonl").exists()
    again = [*arguments, "--max-tokens", "3", "--limit", "2"]
    assert main(["data", "synthetic", "answer", *again]) == 0
    assert "0 documents with 0 pictures" in (said := capsys.readouterr().out) and "2 " in said
    assert main(["data", "stats", str(planned)]) == 0


def test_a_model_of_ones_own_may_write_the_requests(tmp_path, components, capsys):
    model = save_checkpoint(components, tmp_path / "model")
    taxonomy, out = write_taxonomy(tmp_path / "taxonomy"), tmp_path / "run"
    arguments = ["data", "synthetic", "expand", str(out), "--taxonomy", str(taxonomy), "--mllm", str(model)]
    few = ["--set", "expand.max_tokens=6", "--set", "expand.max_dry=1", "--answers", "1", "--quiet"]
    assert main([*arguments, *few]) == 0  # it writes nonsense, which is refused
    said = capsys.readouterr().out
    assert "3 requests; refused: 3 no_answer." in said and "3 of 3 subcategories have fewer than 100" in said
