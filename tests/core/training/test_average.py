"""The average of the weights in the host's memory: few copies from the card, close to the exact one, a resume exact."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from torch import nn

from duogen_core.training import run as run_module
from duogen_core.training.average import OWED, Ema
from duogen_core.training.run import Run
from tests.core.runs import stopped_in

other_device = pytest.importorskip("tests.core.other_device")

CARD = torch.device("card:0")


def walk(module: nn.Module, step: int) -> None:
    """Weights that go somewhere, with noise as large as the way of ten steps."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_((0.01 + 0.1 * noise).to(parameter.device))


def averaged(module: nn.Module, decay: float, steps: int) -> tuple[Ema, other_device.Seen]:
    average = Ema(module, decay)
    average.updates = 10_000  # beyond the first steps, when it is short and takes in every one
    with other_device.watched() as seen:
        for step in range(steps):
            walk(module, step)
            seen.copies = [copy for copy in seen.copies if copy[1] == "cpu"]  # not those of the walk
            average.update()
    return average, seen


@pytest.mark.parametrize("decay", [0.9, 0.999])
def test_the_average_on_the_host_is_that_of_every_step_to_one_percent_with_few_copies(decay):
    steps = 3000
    torch.manual_seed(0)
    plain = nn.Linear(6, 5)
    card = nn.Linear(6, 5)
    card.load_state_dict(plain.state_dict())
    exact, _ = averaged(plain, decay, steps)
    found, seen = averaged(card.to(CARD), decay, steps)
    assert found.apart and not exact.apart and exact.pending == 1.0
    for name, weights in plain.state_dict().items():
        far = (weights - exact.shadow[name]).norm()  # what the average is behind the weights
        assert found.shadow[name].device.type == "cpu"
        assert (found.shadow[name] - exact.shadow[name]).norm() <= 0.01 * far
    back = len([copy for copy in seen.copies if copy[1] == "cpu"]) / 2  # two tensors
    assert back == steps / max(1, math.ceil(round(OWED / (1 - decay), 6)))


def test_the_first_steps_all_count():
    module = nn.Linear(2, 2).to(CARD)
    average = Ema(module, 0.9999)
    for step in range(5):
        walk(module, step)
        before = average.shadow["weight"].clone()
        average.update()
        assert not torch.equal(before, average.shadow["weight"]) and average.pending == 1.0


def test_where_memory_runs_out_in_the_change_of_places_nothing_has_changed(monkeypatch):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).to(CARD)
    average = Ema(module, 0.5)
    walk(module, 0)
    weights = {name: tensor.cpu() for name, tensor in module.state_dict().items()}
    shadow = {name: tensor.clone() for name, tensor in average.shadow.items()}
    names, state = list(shadow), average._state

    class Full(torch.Tensor):
        def to(self, *args, **kwargs):
            raise torch.OutOfMemoryError("out of memory")

    def broken():
        monkeypatch.setattr(average, "_state", state)  # once
        return state() | {names[2]: state()[names[2]].cpu().as_subclass(Full)}

    monkeypatch.setattr(average, "_state", broken)
    with pytest.raises(RuntimeError, match="out of memory"), average.applied():
        raise AssertionError("nothing to look at")
    assert all(torch.equal(tensor.cpu(), weights[name]) for name, tensor in module.state_dict().items())
    assert all(torch.equal(tensor, shadow[name]) for name, tensor in average.shadow.items())


def train(folder, steps: int) -> Run:
    torch.manual_seed(3)
    module = nn.Linear(4, 2).to(CARD)
    run = Run(folder, {}, steps=steps, warmup=1, log_every=1, checkpoint_minutes=60)
    run.attach({"model": module}, {"sgd": torch.optim.SGD(module.parameters(), lr=0.1)}, ema_decay=0.997)
    run.emas["model"].updates += 10_000 * (run.step == 0)
    for step in run:
        walk(module, step)
        run.report(loss=1.0)
    return run


def test_a_resume_between_two_updates_goes_on_exactly(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "plot_metrics", lambda _: None)
    unbroken = train(tmp_path / "one", 9).emas["model"]
    with stopped_in(4):
        train(tmp_path / "two", 9)
    stopped = json.loads((tmp_path / "two" / "checkpoint" / "state.json").read_text())
    assert 0.99 < stopped["ema_pending"]["model"] < 1, "in the middle between two updates"
    found = train(tmp_path / "two", 9).emas["model"]
    assert (found.updates, found.pending) == (unbroken.updates, unbroken.pending)
    assert all(torch.equal(tensor, unbroken.shadow[name]) for name, tensor in found.shadow.items())

    del stopped["ema_pending"]  # of a version that took in every step
    shutil.rmtree(tmp_path / "two")
    with stopped_in(4):
        train(tmp_path / "two", 9)
    (tmp_path / "two" / "checkpoint" / "state.json").write_text(json.dumps(stopped))
    assert train(tmp_path / "two", 9).emas["model"].updates == unbroken.updates
