from __future__ import annotations

import json
import os
import signal

import pytest
import torch
from torch import nn

from duogen_core.training import loop
from duogen_core.training.board import scalars
from duogen_core.training.loop import Run, TrainingError, plot_losses, rng_for, warmup_cosine
from tests.core.runs import losses, stopped_in


def train(folder, *, steps=12, stop_at=None, ema=0.9, **kwargs):
    """A small run; stop_at: the process gets a SIGTERM in the middle of that step. Returns (run, losses)."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.2), nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    run = Run(folder, {"width": 8}, seed=3, steps=steps, warmup=4, log_every=1, **kwargs)
    run.attach({"model": model}, {"model": optimizer}, ema_decay=ema)
    losses = {}
    for step in run:
        rng = run.rng(step)
        x = torch.tensor([[rng.gauss(0, 1) for _ in range(3)] for _ in range(4)])
        loss = (model(x) - x.sum(1, keepdim=True)).pow(2).mean()  # dropout: the torch RNG state matters too
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        run.report(loss=loss.detach())
        losses[step] = loss.item()
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
    return run, losses, model


def test_the_board_gets_every_figure():
    values = {"loss": 0.5, "eval": {"draw": {"token": 0.25}}, "note": "text", "flag": True}
    assert dict(scalars(values)) == {"loss": 0.5, "eval/draw/token": 0.25}


def test_resume_has_exactly_the_losses_and_weights_of_an_unbroken_run(tmp_path):
    whole, losses, model = train(tmp_path / "whole")
    first, before, _ = train(tmp_path / "broken", stop_at=4)
    assert first.interrupted and not first.finished and max(before) == 4
    second, after, resumed = train(tmp_path / "broken")
    assert second.finished and min(after) == 5
    assert before | after == losses
    for key, value in model.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key])
        assert torch.equal(whole.emas["model"].shadow[key], second.emas["model"].shadow[key])
    one, two = ((tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "broken"))
    drop = ("seconds",)
    assert [{k: v for k, v in json.loads(line).items() if k not in drop} for line in one] == [
        {k: v for k, v in json.loads(line).items() if k not in drop} for line in two
    ]


def test_metrics_after_the_checkpoint_are_dropped_on_resume(tmp_path):
    train(tmp_path, stop_at=4)
    with open(tmp_path / "metrics.jsonl", "a") as file:  # as if the process had died later, without a checkpoint
        file.write('{"step": 6, "loss": 9.0}\n{"step": 7, "lo')
    train(tmp_path)
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 13))


def test_a_kill_between_the_two_renames_of_a_save_loses_nothing(tmp_path):
    train(tmp_path, stop_at=4)
    os.replace(tmp_path / "checkpoint", tmp_path / "checkpoint.old")
    run, losses, _ = train(tmp_path)
    assert min(losses) == 5 and run.finished


def test_changed_settings_are_written_down(tmp_path):
    train(tmp_path, steps=12, stop_at=4)
    train(tmp_path, steps=8)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["changed"] for line in lines if "changed" in line] == [{"steps": [12, 8]}]


def test_no_pickle_in_the_run_folder(tmp_path):
    train(tmp_path, steps=2)
    suffixes = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".jsonl", ".safetensors", ".png", ""}
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["config"] == {"width": 8} and config["seed"] == 3 and "torch" in config["versions"]


def test_another_model_cannot_continue_a_checkpoint(tmp_path):
    train(tmp_path, steps=2)
    other = nn.Linear(7, 7)
    with pytest.raises(TrainingError, match="does not fit this run"):
        Run(tmp_path, {}, steps=4).attach({"model": other}, {"model": torch.optim.AdamW(other.parameters())})


def test_time_limit_ends_the_run_annealed(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now.__setitem__(0, now[0] + 1.0) or now[0])
    run, losses, _ = train(tmp_path, steps=None, minutes=1)
    assert run.finished and 5 < len(losses) <= 60
    assert run.lr_factor == pytest.approx(0.02)


def test_schedule():
    assert warmup_cosine(0, 10, 0.0) == pytest.approx(0.1)
    assert warmup_cosine(50, 10, 0.5) == pytest.approx(0.5)
    assert warmup_cosine(100, 10, 1.0, floor=0.02) == pytest.approx(0.02)


def test_rng_is_a_function_of_seed_and_key():
    assert rng_for(1, "data", 2).random() == rng_for(1, "data", 2).random()
    assert len({rng_for(s, "data", k).random() for s in range(3) for k in range(3)}) == 9


def test_no_end_and_no_number(tmp_path):
    with pytest.raises(TrainingError, match="--minutes"):
        Run(tmp_path, {})
    run = Run(tmp_path, {}, steps=1)
    with pytest.raises(TrainingError, match="nan"):
        run.report(loss=float("nan"))


def test_loss_curve(tmp_path):
    assert plot_losses(tmp_path) is None
    lines = [{"step": 1, "loss": 2.0}, {"step": 2, "eval": {}}, {"step": 2, "loss": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert plot_losses(tmp_path).read_bytes().startswith(b"\x89PNG")


def test_means_that_a_stop_cut_in_two_are_whole(tmp_path):
    """A line of metrics.jsonl is a mean over steps; a stop between them must not lose those before it."""

    def run(folder):
        session = Run(folder, {}, steps=4, log_every=4)
        session.attach({"model": torch.nn.Linear(1, 1)}, {})
        for step in session:
            session.report(loss=float(step))

    with stopped_in(1):
        run(tmp_path / "broken")
    assert not (tmp_path / "broken" / "metrics.jsonl").exists()
    for name in ("broken", "whole"):
        run(tmp_path / name)
        assert losses(tmp_path / name) == [1.5]
