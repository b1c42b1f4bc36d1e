"""Stage 2 starts from a published Cosmos-Predict2.5: the same DiT, its projection as the connector."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from duogen_core.errors import DuoGenError
from duogen_core.training import stage2
from duogen_core.training.distributed import Processes
from duogen_core.training.lora import LoraSettings
from duogen_core.training.run import Run
from tests.core.dit.test_cosmos_files import tiny

CONFIG = stage2.Stage2Config(attention="full", steps=1)


@pytest.fixture
def base(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path / "base")
    return model, tmp_path / "base"


def test_the_projection_is_the_connector_and_the_rest_the_dit(base):
    model, folder = base
    dit, connector = stage2.new_models(replace(CONFIG, init=folder, drop="all_text"), 2, 32)
    assert dit.config.attention == "full" and connector.config.drop == "all_text" and dit.training
    assert torch.equal(connector.proj.weight, model.crossattn_proj[0].weight)
    assert torch.equal(connector.proj.bias, model.crossattn_proj[0].bias)
    wanted = {k: v for k, v in model.state_dict().items() if not k.startswith("crossattn_proj")}
    assert dit.state_dict().keys() == wanted.keys()
    assert all(torch.equal(v, dit.state_dict()[k]) for k, v in wanted.items())
    assert all(p.requires_grad and p.dtype == torch.float32 for p in dit.parameters())


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2)])
def test_weights_that_learn_are_in_float32(base, tmp_path, monkeypatch, lora):
    """A file in bfloat16 is read as it is; each process converts what it has of it. What LoRA freezes stays."""
    model, _ = base
    model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    config = replace(CONFIG, init=tmp_path / "half", lora=lora, out=tmp_path / "run", warmup=0)
    dit, connector = stage2.new_models(config, 2, 32)
    prepare, seen = Processes.prepare, {}

    class Seen(Exception):
        pass

    def prepared(self, loss, *given):
        for parameter in prepare(self, loss, *given).dit.parameters():
            seen.setdefault(parameter.requires_grad, set()).add(parameter.dtype)
        raise Seen

    monkeypatch.setattr(Processes, "prepare", prepared)
    with pytest.raises(Seen):
        stage2.learn(Run.of(config), config, None, dit, connector)
    assert seen[True] == {torch.float32} and seen.get(False) == (lora and {torch.bfloat16})


def test_precision_and_what_does_not_fit(base, tmp_path):
    model, _ = base
    model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    half = replace(CONFIG, init=tmp_path / "half")
    assert next(stage2.new_models(half, 2, 32)[0].parameters()).dtype == torch.bfloat16  # as the file has it
    with pytest.raises(DuoGenError, match="made for another MLLM"):
        stage2.new_models(half, 4, 32)
    with pytest.raises(DuoGenError):
        stage2.new_models(replace(CONFIG, init=Path("nowhere")), 2, 32)
