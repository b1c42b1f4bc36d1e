"""A copy of what FSDP would split computes the same, what LoRA learnt added in, and leaves the module alone."""

from __future__ import annotations

import pytest
import torch

from duogen_core.connector import Connector, ConnectorConfig
from duogen_core.training import stage2
from duogen_core.training.copies import on_device, whole_copy
from duogen_core.training.lora import LoraSettings, add_lora
from duogen_core.training.stage1 import adapt
from tests.core.dit.families import TINY, WIDTH, tiny
from tests.core.tiny import random_components


def learnt(model):
    """LoRA that is not its start, which adds nothing."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
@pytest.mark.parametrize("name", list(TINY))
def test_a_dit(name, lora):
    dit = tiny(name, attention="frame_causal")
    if lora:
        add_lora(dit, LoraSettings(rank=2), within=dit.lora_within, usual=stage2.DIT_TARGETS)
        learnt(dit).eval()
    copy = whole_copy(dit)
    assert type(copy) is type(dit) and copy.config.attention == "frame_causal" and not copy.training
    assert not any(parameter.is_meta or parameter.requires_grad for parameter in copy.parameters())
    assert lora == any("lora" in key for key in dit.state_dict()) and "lora" not in "".join(copy.state_dict())
    channels = dit.config.out_channels
    inputs = [torch.randn(1, channels, 4, 6)], torch.tensor([0.3]), torch.randn(1, 5, WIDTH)
    with torch.no_grad():
        wanted = dit.forward_packed(*inputs)
        torch.testing.assert_close(copy.forward_packed(*inputs), wanted, atol=1e-5, rtol=1e-5)


def test_a_connector():
    connector = Connector(ConnectorConfig(2, 8, 6, "last", "all_text"))
    copy = whole_copy(connector)
    assert copy.config == connector.config
    states = torch.randn(3, 2, 8)
    assert torch.equal(copy(states), connector(states))


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
def test_an_mllm(lora):
    mllm = random_components().mllm
    if lora:
        adapt(mllm, LoraSettings(rank=2))
        learnt(mllm.model).eval()
    model = mllm.model
    copy = whole_copy(model)
    assert not any(each.is_meta for each in (*copy.parameters(), *copy.buffers()))
    ids = torch.tensor([[5, 9, mllm.control.bov, 40, 41]])
    with torch.no_grad():
        torch.testing.assert_close(copy(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-5, rtol=1e-5)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert (copy.get_output_embeddings().weight is copy.get_input_embeddings().weight) == tied


def test_a_copy_on_a_cpu_keeps_its_precision():
    module = on_device(torch.nn.Linear(2, 2), torch.device("cpu"), bf16=True)
    assert module.weight.dtype == torch.float32
    assert on_device(torch.nn.Linear(2, 2), torch.device("meta"), bf16=True).weight.dtype == torch.bfloat16
