"""states=online on another device: what VAE and MLLM make of documents stays there, a pass at a time."""

from __future__ import annotations

import pytest
import torch

from duogen_core.training import flow, stage2
from duogen_core.training.flow import FlowLoss, projected
from duogen_core.training.prepared import Reader
from duogen_core.training.run import Run
from duogen_core.training.stage2_data import Documents, OnlineBatches
from tests.core.tiny import random_components

other_device = pytest.importorskip("tests.core.other_device")

CARD = torch.device("card:0")


def loss_of_a_step(folder, device: torch.device, tokens: int):
    """The step's loss, its gradients, and what happened on the card while it was read and learnt."""
    config = stage2.Stage2Config(
        out=folder, layers=2, heads=2, cross_width=32, batch=4, states="online", tokens=tokens, steps=1, bf16=False,
        precision="float32", drop_text=0.0,
    )  # fmt: skip
    run, parts = Run.of(config), random_components()
    for model in (parts.vae.model, parts.mllm.model):
        model.to(device)
    batches = OnlineBatches(
        Documents(run, config, parts.mllm), Reader(parts.vae, parts.mllm, 160, torch.float32, keep=device)
    )
    share = batches.steps(run, config)(0)
    torch.manual_seed(1)
    dit, connector = stage2.new_models(config, 2, 64)
    flow_loss = FlowLoss(dit.to(device), connector.to(device))
    with other_device.watched() as seen:
        total = 0
        for some in share.passes:
            drawn = stage2.samples(run, 0, zip(some.numbers, batches.read(some.documents), strict=True), config)
            loss = flow_loss(drawn, share.targets)
            loss.backward()
            total = total + loss.detach()
    return float(total), connector.proj.weight.grad.cpu(), share, seen


def test_states_and_latents_never_leave_the_device(tmp_path):
    wanted, gradient, _, _ = loss_of_a_step(tmp_path / "cpu", torch.device("cpu"), 10_000)
    found, its, share, seen = loss_of_a_step(tmp_path / "card", CARD, 10_000)
    assert len(share.passes) == 1 and len(share.names) == 4
    # transformers reads grids of pictures and kinds of tokens back, some bytes a token; nothing that models computed.
    tokens = [batch["input_ids"].numel() for some in share.passes for _, batch in some.documents.chunks]
    back = [size for _, to, size in seen.copies if to == "cpu"]
    assert max(back, default=0) <= 8 * max(tokens)  # their states would be 2 * 64 * 4 bytes a token
    assert sum(size for _, to, size in seen.copies if to != "cpu") > 100_000  # pixels and tokens came
    assert found == pytest.approx(wanted, abs=1e-4)
    torch.testing.assert_close(its, gradient, atol=1e-4, rtol=1e-3)


def test_a_step_in_passes_holds_the_states_of_one(tmp_path):
    peaks, losses = [], []
    for tokens in (10_000, 150):
        other_device.memory[0].highest = other_device.memory[0].used
        before = other_device.memory[0].used
        loss, _, share, _ = loss_of_a_step(tmp_path / str(tokens), CARD, tokens)
        peaks.append(other_device.memory[0].highest - before)
        losses.append(loss)
        passes = len(share.passes)
    assert passes > 2 and losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert peaks[1] < 0.8 * peaks[0]


def test_many_states_are_projected_a_block_at_a_time(monkeypatch):
    torch.manual_seed(0)
    connector = random_components().connector
    states = [torch.randn(n, connector.config.num_layers * connector.config.hidden_size).half() for n in (7, 30, 1)]
    found = {}
    for most in (2**26, 500):
        monkeypatch.setattr(flow, "STATES", most)
        connector.zero_grad()
        texts = projected(connector, states)
        sum(text.square().sum() for text in texts).backward()
        found[most] = ([text.detach() for text in texts], connector.proj.weight.grad.clone())
    for one, other in zip(found[2**26][0], found[500][0], strict=True):
        torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[500][1], found[2**26][1], atol=1e-4, rtol=1e-4)
