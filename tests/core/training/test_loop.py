from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback

import pytest
import torch
from torch import nn

from duogen_core.training import checkpoints, metrics, precision
from duogen_core.training import run as run_module
from duogen_core.training.configuration import TrainingError
from duogen_core.training.metrics import plot_losses, plot_scores
from duogen_core.training.run import Run, rng_for, warmup_cosine
from tests.core.runs import losses, stopped_in

KILLS = "test_kill_9_at_any_moment_costs_nothing_but_time"


def train(folder, *, steps=12, stop_at=None, ema=0.9, width=8, **kwargs):
    """A small run; stop_at: the process gets a SIGTERM in the middle of that step. Returns (run, losses)."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(3, width), nn.Dropout(0.2), nn.Linear(width, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    run = Run(folder, {"width": width}, seed=3, steps=steps, warmup=4, log_every=1, **kwargs)
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
    drop = ("seconds", "speed")
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


def test_what_a_killed_session_measured_after_its_last_checkpoint_stands_there_once(tmp_path):
    for session in range(3):  # each but the last dies before the run is complete
        run, *_ = train(tmp_path)
        run.record(psnr=30.0 + session)
        run.record(psnr=20.0, loss=1.0)
        run.record(changed={"lr": [session, session + 1]})
    lines = [line for line in metrics.read_lines(tmp_path / "metrics.jsonl") if line["step"] == run.step]
    assert [line["psnr"] for line in lines if "psnr" in line] == [32.0, 20.0]
    assert [line["changed"]["lr"][1] for line in lines if "changed" in line] == [1, 2, 3], "lines about a session stay"


def test_a_kill_between_the_two_renames_of_a_save_loses_nothing(tmp_path):
    train(tmp_path, stop_at=4)
    os.replace(tmp_path / "checkpoint", tmp_path / "checkpoint.old")
    run, losses, _ = train(tmp_path)
    assert min(losses) == 5 and run.finished


def test_changed_settings_are_said_and_written_down(tmp_path, capsys):
    train(tmp_path, steps=12, stop_at=4)
    train(tmp_path, steps=8)
    assert "Settings changed since the session before: steps: 12 -> 8." in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["changed"] for line in lines if "changed" in line] == [{"steps": [12, 8]}]


def test_no_pickle_in_the_run_folder(tmp_path):
    train(tmp_path, steps=2)
    suffixes = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".jsonl", ".safetensors", ".png", ""}
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["config"] == {"width": 8} and config["seed"] == 3 and {"duogen", "torch"} <= config["versions"].keys()


def test_another_model_cannot_continue_a_checkpoint(tmp_path):
    train(tmp_path, steps=2)
    other = nn.Linear(7, 7)
    with pytest.raises(TrainingError, match="does not fit this run.*size|key.*steps: 2 -> 4.*width: 8 -> None"):
        Run(tmp_path, {}, steps=4).attach({"model": other}, {"model": torch.optim.AdamW(other.parameters())})
    with pytest.raises(TrainingError, match=r"size mismatch for 0.weight.* Changed since: width: 8 -> 4\.$"):
        train(tmp_path, steps=2, width=4)


def test_time_limit_ends_the_run_annealed(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(run_module.time, "monotonic", lambda: now.__setitem__(0, now[0] + 1.0) or now[0])
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


def learn_until(folder, bad, steps=6):
    """Steps on one weight; bad(step, loss) may make the loss of a step another one."""
    weight = nn.Parameter(torch.ones(1))
    run = Run(folder, {}, steps=steps, checkpoint_minutes=0, log_every=1)
    run.attach({"model": nn.ParameterList([weight])}, {"model": torch.optim.AdamW([weight], lr=0.1)})
    for step in run:
        loss = bad(step, weight.square().sum())
        run.report(loss=loss, norm=run.update(loss, 1.0, samples=[f"b/{step}.json", *"cdefg"]))
    return weight.item()


@pytest.mark.parametrize("what", ["loss is nan", "norm of the gradients is inf"])
def test_what_is_not_finite_stops_before_it_spoils_anything(tmp_path, monkeypatch, what):
    monkeypatch.setattr(run_module, "plot_metrics", lambda _: None)
    spoilt = {"loss is nan": lambda loss: loss * float("nan"), "norm of the gradients is inf": torch.sqrt}

    def bad(step, loss):
        return spoilt[what](loss - loss.detach()) if step == 3 else loss

    with pytest.raises(TrainingError, match=rf"The {what} at step 3, which learns from b/3.json, c, d, e and 2 more."):
        learn_until(tmp_path, bad)
    failed = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["failed"]
    assert failed["samples"] == ["b/3.json", *"cdefg"]
    state = json.loads((tmp_path / "checkpoint" / "state.json").read_text())
    assert state["step"] == 3
    good = learn_until(tmp_path, lambda step, loss: loss)
    assert good == learn_until(tmp_path / "whole", lambda step, loss: loss)


@pytest.mark.skipif(sys.platform == "win32", reason="no limit of file sizes to make a disk seem full")
@pytest.mark.parametrize("width", [8, 400], ids=["the numbers", "the tensors"])
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch, width):
    """A file may have 4 kB: state.json does not fit; with a wide model its weights do not."""
    import resource

    monkeypatch.setattr(run_module, "plot_metrics", lambda _: None)
    _, losses, _ = train(tmp_path / "whole", width=width)
    train(tmp_path / "run", stop_at=4, width=width)
    before = {path.name: path.read_bytes() for path in (tmp_path / "run" / "checkpoint").iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(TrainingError, match="checkpoint of step 12 cannot be written.*File too large.*free some"):
            train(tmp_path / "run", width=width)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run" / "checkpoint").iterdir()} == before
    assert not (tmp_path / "run" / "checkpoint.new").exists()
    assert train(tmp_path / "run", width=width)[1] == {k: v for k, v in losses.items() if k > 4}


class Killed(BaseException):
    """Stands for a kill: nothing cleans up after it."""


def test_a_kill_at_any_moment_of_a_save_leaves_a_whole_checkpoint(tmp_path, monkeypatch):
    whole, losses, _ = train(tmp_path / "whole", steps=6)
    names = ("save_tensors", "write_text", "os.replace", "shutil.rmtree")
    calls = []
    monkeypatch.setattr(run_module, "plot_metrics", lambda _: None)

    def dies_at(name, last):
        module, _, function = f"checkpoints.{name}".rpartition(".")
        module = checkpoints if module == "checkpoints" else getattr(checkpoints, name.split(".")[0])
        original = getattr(module, function)

        def call(*args, **kwargs):
            calls.append(name)
            if len(calls) == last:
                raise Killed
            return original(*args, **kwargs)

        return module, function, call

    for last in range(1, 40):
        folder = tmp_path / str(last)
        train(folder, steps=6, stop_at=2)
        with monkeypatch.context() as patch:
            calls.clear()
            patch.setattr(run_module, "write_text", lambda *_: None)
            for name in names:
                patch.setattr(*dies_at(name, last))
            try:
                train(folder, steps=6, stop_at=4)
                break  # the save has fewer such moments
            except Killed:
                pass
        resumed, after, _ = train(folder, steps=6)
        assert resumed.finished and min(after) in (3, 5)
        assert after == {k: v for k, v in losses.items() if k in after}
        assert all(torch.equal(v, resumed.emas["model"].shadow[k]) for k, v in whole.emas["model"].shadow.items())
    assert last > 9


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_kill_9_at_any_moment_costs_nothing_but_time(tmp_path, monkeypatch):
    if os.environ.get("DUOGEN_FORKS") != "1":
        # A process of its own: torch refuses to train in a fork of one whose autograd has started threads.
        call = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{__file__}::{KILLS}"]
        ended = subprocess.run(call, env={**os.environ, "DUOGEN_FORKS": "1"}, capture_output=True, text=True)
        assert ended.returncode == 0 and "1 passed" in ended.stdout, ended.stdout[-4000:]
        return
    monkeypatch.setattr(run_module, "plot_metrics", lambda _: None)
    whole, _, _ = train(tmp_path / "whole", steps=60)
    start = time.perf_counter()
    train(tmp_path / "timed", steps=60, checkpoint_minutes=0)
    moments, killed, usual = random.Random(0), 0, time.perf_counter() - start
    for _ in range(24):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                train(tmp_path / "run", steps=60, checkpoint_minutes=0)  # a checkpoint after every step
                code = 0
            except BaseException:
                (tmp_path / "error.txt").write_text(traceback.format_exc())
            finally:
                os._exit(code)
        time.sleep(moments.uniform(0.0, usual / 3))
        os.kill(child, signal.SIGKILL)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert ended != 1, (tmp_path / "error.txt").read_text()
        if ended < 0:  # or by another signal: a fork of a process that has threads of other libraries may crash
            killed += 1
        else:  # it had ended; how often that happens is up to the machine, so another run begins
            assert losses(tmp_path / "run") == losses(tmp_path / "whole")
            shutil.rmtree(tmp_path / "run")
    resumed, _, _ = train(tmp_path / "run", steps=60)
    assert resumed.finished and killed > 8
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert all(torch.equal(v, resumed.emas["model"].shadow[k]) for k, v in whole.emas["model"].shadow.items())


def test_loss_curve(tmp_path):
    assert plot_losses(tmp_path) is None
    lines = [{"step": 1, "loss": 2.0}, {"step": 2, "eval": {}}, {"step": 2, "loss": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert plot_losses(tmp_path).read_bytes().startswith(b"\x89PNG")


def test_only_whole_lines_of_the_metrics_are_drawn(tmp_path):
    """A killed run may leave half a line; JSON may hold U+2028, U+0085 and the like as they are."""
    odd = json.dumps({"step": 2, "loss": 1.0, "changed": {"init": ["a\u2028b\x85c", "d"]}}, ensure_ascii=False)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n' + odd + '\n[1]\n{"step": 3, "lo', "utf-8")
    assert [line["step"] for line in metrics.read_lines(tmp_path / "metrics.jsonl")] == [1, 2]
    assert plot_losses(tmp_path).exists()


def test_the_last_curves_show_the_scores_after_the_last_step_also_after_a_kill(tmp_path, monkeypatch):
    drawn = []

    def plot(folder):
        lines = metrics.read_lines(folder / "metrics.jsonl")
        drawn.append(("eval" in lines[-1], lines[-1]["step"]))
        if len(drawn) == 1:
            raise KeyboardInterrupt  # stands for a kill right after the last checkpoint, whose curves are not drawn

    monkeypatch.setattr(run_module, "plot_metrics", plot)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path)
    run, losses, _ = train(tmp_path)
    assert losses == {} and run.finished and not run.complete()
    run.record(eval={"token": 0.5})
    run.mark_complete()
    assert drawn == [(False, 12), (True, 12)]


def test_curves_of_the_scores(tmp_path, monkeypatch):
    train(tmp_path, steps=2)
    assert (tmp_path / "loss.png").exists() and not (tmp_path / "scores.png").exists()  # it was not scored
    lines = [{"step": 1, "loss": 2.0}, {"step": 2, "changed": {"lr": [1, 2]}}]
    for step in (1, 2):
        lines += [
            {"step": step, "seconds": 1.0, "eval": {name: {"token": 0.5, "when": 0.1} for name in ("draw", "b/c")}}
        ]
        lines += [{"step": step, "seconds": 2.0, "psnr": 30.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    drawn = []
    monkeypatch.setattr(metrics, "_save", lambda figure, target: drawn.append(figure) or target)
    assert plot_scores(tmp_path) == tmp_path / "scores.png"
    panels = {axes.get_ylabel(): [line.get_label() for line in axes.lines] for axes in drawn[0].axes}
    assert panels["token"] == panels["when"] == ["draw", "b/c"] and len(panels["psnr"]) == 1
    assert drawn[0].axes[0].lines[0].get_xydata().tolist() == [[1, 0.5], [2, 0.5]]


def test_the_curve_of_the_loss_shows_what_is_held_out(tmp_path, monkeypatch):
    lines = [{"step": k, "loss": 2.0} for k in range(4)]
    lines.insert(2, {"step": 1, "eval": {"all": {"loss": 3.0}, "draw": {"loss": 1.0}}})
    lines += [{"step": 3, "eval": {"draw": {"loss": 4.0}, "edit": {"loss": 5.0}}}, {"step": 3, "eval": {"token": 1}}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    drawn = []
    monkeypatch.setattr(metrics, "_save", lambda figure, target: drawn.append(figure) or target)
    plot_losses(tmp_path)
    (axes,) = drawn[0].axes
    assert axes.lines[-1].get_label() == "held out"
    assert axes.lines[-1].get_xydata().tolist() == [[1, 3.0], [3, 4.5]]


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


def test_attention_is_plain_on_the_cpu_and_torchs_own_choice_on_a_card():
    flags = ("math", "flash", "mem_efficient", "cudnn")

    def allowed():
        return {name for name in flags if getattr(torch.backends.cuda, f"{name}_sdp_enabled")()}

    outside = allowed()
    assert "cudnn" in outside
    for kind, expected in (("cpu", {"math"}), ("cuda", outside), ("mps", outside)):
        forwards, backwards = precision.recomputing(torch.device(kind))()
        with precision.attention_backends(torch.device(kind)):
            assert allowed() == expected
        with forwards, backwards:  # what is computed again on the way back is computed in the same way
            assert allowed() == expected
    assert allowed() == outside
