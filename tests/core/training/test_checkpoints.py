"""Checkpoints of other models and of older versions; averages that change places with the weights; tied weights."""

from __future__ import annotations

import errno
import json
import re
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from duogen_core.training import run as run_module
from duogen_core.training.average import Ema
from duogen_core.training.checkpoints import CheckpointWriter, hf_storage
from duogen_core.training.configuration import TrainingError
from duogen_core.training.run import Run
from tests.core.runs import stopped_in


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.layer = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.layer(self.embed(ids))))


@pytest.fixture(autouse=True)
def no_plots(monkeypatch):
    monkeypatch.setattr(run_module, "plot_metrics", lambda _: None)


def train(folder, steps, *, grouped=True, model="an MLLM of the family a, 2 layers of 8", parts=1, spoilt=None):
    """grouped: matrices before the rest, else all in the order of the module. spoilt: a part whose loss is nan."""
    torch.manual_seed(0)
    module = Tied()
    weights = list(module.parameters())
    groups = [[w for w in weights if w.ndim > 1], [w for w in weights if w.ndim < 2]] if grouped else [weights]
    optimizer = torch.optim.AdamW([{"params": group} for group in groups], lr=0.01)
    run = Run(folder, {}, steps=steps, warmup=1, log_every=1)
    run.attach({"model": module}, {"adamw": optimizer}, ema_decay=0.9, model=model)
    for step in run:
        ids = torch.arange(5) if step % 2 else torch.tensor([1, 1, 2, 3, 4])

        def losses(ids=ids):
            for part in range(parts):
                mine = ids[part::parts]
                loss = nn.functional.cross_entropy(module(mine), mine, reduction="sum") / len(ids)
                yield loss * float("nan") if part == spoilt else loss

        run.report(norm=run.update(losses(), 1.0, samples=["x.json"], parts=parts))
    return run, module


def test_a_checkpoint_of_another_pair_is_refused_and_both_are_named(tmp_path):
    train(tmp_path, 1)
    expected = re.escape("is of an MLLM of the family a, 2 layers of 8, and this run trains an MLLM of the family b")
    before = (tmp_path / "checkpoint" / "state.json").read_bytes()
    with pytest.raises(TrainingError, match=expected):
        train(tmp_path, 2, model="an MLLM of the family b, 3 layers of 8")
    assert (tmp_path / "checkpoint" / "state.json").read_bytes() == before


@pytest.mark.parametrize("grouped", [True, False])
def test_a_run_begun_by_an_older_version_goes_on(tmp_path, grouped):
    """Whose optimizers' tensors had numbers, those of other groups maybe, and whose tied weights stood there twice."""
    _, whole = train(tmp_path / "whole", 4)
    with stopped_in(1):
        _, module = train(tmp_path / "run", 4)
    folder = tmp_path / "run" / "checkpoint"
    state = json.loads((folder / "state.json").read_text("utf-8"))
    del state["model"]
    (folder / "state.json").write_text(json.dumps(state), "utf-8")
    for file in ("model", "model.ema"):
        tensors = load_file(folder / f"{file}.safetensors")
        assert "head.weight" not in tensors
        save_file(tensors | {"head.weight": tensors["embed.weight"].clone()}, folder / f"{file}.safetensors")
    names = [name for name, _ in module.named_parameters()]
    if grouped:
        weights = dict(module.named_parameters())
        names.sort(key=lambda name: weights[name].ndim < 2)
    moments = load_file(folder / "adamw.optimizer.safetensors")
    numbered = {}
    for key, tensor in moments.items():
        owner, field = key.removeprefix("model.").rsplit(".", 1)
        numbered[f"{names.index(owner)}.{field}"] = tensor
    assert len(numbered) == len(moments) == 3 * len(names)
    save_file(numbered, folder / "adamw.optimizer.safetensors")
    run, module = train(tmp_path / "run", 4)
    assert run.finished
    for name, tensor in whole.state_dict().items():
        assert torch.equal(module.state_dict()[name], tensor), name


def test_parts_of_a_step_add_up_and_one_that_is_not_finite_changes_nothing(tmp_path):
    _, whole = train(tmp_path / "whole", 3)
    _, module = train(tmp_path / "parts", 3, parts=5)
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], tensor, atol=1e-6, rtol=0)
    stepped = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", lambda *_: stepped.append(1))
        with pytest.raises(TrainingError, match=r"The loss is nan at step 0, which learns from x\.json"):
            train(tmp_path / "spoilt", 3, parts=5, spoilt=1)
    assert stepped == []


def test_average_and_weights_change_places_and_come_back():
    torch.manual_seed(0)
    module = Tied()
    average = Ema(module, 0.5)
    first = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    places = {name: tensor.data_ptr() for name, tensor in module.state_dict().items()}
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)
    average.update()  # the first average is short: 2 / 11 stay
    learnt = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with average.applied():
        for name, tensor in module.state_dict().items():
            torch.testing.assert_close(tensor, first[name] + 9 / 11)
            assert tensor.data_ptr() == places[name]
        assert module.head.weight is module.embed.weight
        assert all(torch.equal(tensor, learnt[name]) for name, tensor in average.shadow.items())
    assert all(torch.equal(tensor, learnt[name]) for name, tensor in module.state_dict().items())
    torch.testing.assert_close(average.shadow["layer.bias"], first["layer.bias"] + 9 / 11)
    assert "head.weight" not in average.shadow


@pytest.mark.skipif(hf_storage() is None, reason="torch before 2.8 has no sharded checkpoints in safetensors files")
@pytest.mark.filterwarnings("ignore:torch.distributed is")
def test_a_disk_that_fills_up_in_the_background_is_a_sentence_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    """torch tells it by a CheckpointException, which is no Exception."""
    processes = SimpleNamespace(main=True, count=2, background_group=None, wait=lambda: None)
    writer = CheckpointWriter(tmp_path, processes)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hf_storage().HuggingFaceStorageWriter, "write_data", full)
    writer.save({"step": 7}, {"model": nn.Linear(2, 2)}, {}, {})
    with pytest.raises(TrainingError, match="checkpoint of step 7 cannot be written .*: No space left on device"):
        writer.wait()
    assert not list(tmp_path.iterdir())
