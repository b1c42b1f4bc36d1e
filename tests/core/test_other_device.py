"""The stand-in for a card does what the tests that use it rely on."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from tests.core.other_device import limited, memory, watched


def test_numbers_are_the_cpus_and_the_device_is_not():
    x = torch.randn(2, 3, 8)
    layer = nn.Linear(8, 4)
    expected = layer(x)
    layer.to("card:1")
    out = layer(x.to("card:1"))
    assert out.device == torch.device("card", 1) and torch.equal(out.cpu(), expected)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_tensors_of_two_devices_do_not_meet(mode):
    layer = nn.Linear(4, 4).to("card")
    with mode():
        x = torch.ones(2, 4, device="card")
        for other in (torch.ones(2, 4), torch.ones(2, 4, device="card:1")):
            for meet in (layer, lambda t: t + x, lambda t: torch.cat([t, x]), lambda t: t.addcmul_(x, x)):
                with pytest.raises(RuntimeError, match="on the same device"):
                    meet(other)
        layer(x)[:, 1:] * torch.tensor(2.0)  # a number on the CPU may, as on a GPU


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(), lambda x: bool(x[0] > 0), lambda x: float(x[0]), lambda x: x.tolist(),
        lambda x: torch.equal(x, x), lambda x: x[x > 0], lambda x: x.nonzero(), lambda x: torch.where(x > 0),
        lambda x: x.cpu(), lambda x: x.to("card:1"), lambda x: torch.zeros(4).copy_(x),
        lambda x: x[torch.tensor([0, 1])], lambda x: torch.tensor([1.0], device="card"),
        lambda x: torch.zeros(4).to("card"), lambda x: x.masked_select(x > 0),
    ],
)  # fmt: skip
def test_what_would_wait_is_counted(read):
    x = torch.arange(4.0, device="card")
    for mode in (torch.inference_mode, torch.enable_grad):
        with watched() as seen, mode():
            read(x)
        assert seen.syncs == 1, seen


def test_what_stays_on_the_card_is_not_counted():
    x = torch.randn(1, 2, 4, 8).to("card")
    with watched() as seen, torch.inference_mode():
        y = nn.functional.scaled_dot_product_attention(x, x, x)
        y = torch.cat([y, torch.zeros_like(y), y.new_full((1, 2, 4, 8), 0.5)], dim=2)[:, :, 1:].to(torch.bfloat16)
        y.masked_fill_(y > 0, 1.0).index_select(1, torch.arange(1, device="card")).softmax(-1)
    assert seen.syncs == 0 and seen.kernels > 5, seen


def test_gradients_stay_there():
    layer = nn.Linear(4, 4).to("card")
    layer(torch.ones(2, 4, device="card")).square().sum().backward()
    assert layer.weight.grad.device.type == "card"


def test_memory_is_counted_and_runs_out():
    gc.collect()
    before = memory[0].used
    x = torch.zeros(1000, device="card")
    view = x[10:].view(-1, 2)
    assert memory[0].used - before == 4000
    del x
    assert memory[0].used - before == 4000  # the view holds it
    del view
    assert memory[0].used == before
    with limited(6000) as card, pytest.raises(torch.OutOfMemoryError):
        x = torch.zeros(1000, device="card")
        x + 1
    assert card.highest - before == 4000
