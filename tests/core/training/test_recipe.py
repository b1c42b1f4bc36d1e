"""The commands of models/duogen-tiny/README.md from nothing to a checkpoint that answers, at two steps each."""

from __future__ import annotations

import pytest

from duogen_core.cli import main
from duogen_core.document.reading import load_document
from duogen_core.sketchbook.source import DRAWN
from duogen_core.training import stage2_data


@pytest.mark.slow
def test_from_nothing_to_an_answer(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage2_data, "SHARD", 8)
    mllm = ["batch=2", "eval_cases=1", "steps=2"]
    small = "sizes={hidden_size: 64, layers: 2, heads: 2, kv_heads: 1, intermediate_size: 64, vision_layers: 1}"
    for command in (
        ["vae", "steps=2", "base_dim=4", "batch=2", "calibration_crops=32"],
        ["pretrain", *mllm, small, "tokenizer_cases=200", "vision.steps=2", "vision.batch=4"],
        ["stage1", *mllm],
        ["stage2", "steps=2", "shards=1", "tokens=800", "layers=2", "heads=2", "cross_width=32"],
        ["assemble", "--out", "models/mine", "--steps", "2"],
    ):
        assert main(["train", *command]) == 0, capsys.readouterr().err
    assert list((tmp_path / "runs/stage2/tensorboard").iterdir())
    assert {p.name for p in (tmp_path / "runs/stage2/samples/000002").iterdir()} == {f"{f}.html" for f in DRAWN}
    assert {path.name for path in (tmp_path / "models/mine/training").iterdir()} == {
        "vae", "pretrain", "stage1", "stage2"
    }  # fmt: skip
    assert main(["generate", "Draw a red star.", "--model", "models/mine", "--out", "answer", "--max-tokens", "8"]) == 0
    assert load_document("answer").last_turn.role == "assistant"
