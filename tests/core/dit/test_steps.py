"""A step waits for nothing on the device: no number is read back, nothing is copied; on a second device, counted."""

from __future__ import annotations

import pytest
import torch

from duogen_core.sampling import initial_noise, sample_picture, sigmas
from tests.core.dit.families import TINY, tiny
from tests.core.other_device import NAME, watched

CARD = f"{NAME}:0"


def drawn(model, device, solver, batch, after_step=None) -> torch.Tensor:
    frames = [torch.randn(1, 16, h, w, generator=torch.Generator().manual_seed(h)) for h, w in ((4, 6), (8, 4))]
    text = torch.randn(1, 9, 20, generator=torch.Generator().manual_seed(2)).expand(batch, -1, -1)
    frames, text = [frame.to(device) for frame in frames], text.to(device)
    prepared = model.prepare(frames, [(text, None), (text, (5, 8))], (6, 6), frame_ends=(2, 5))
    noise = initial_noise(3, (batch, 16, 6, 6)).to(device)
    return sample_picture(prepared.velocities, noise, sigmas(5, 3.0), guidance=2.0, solver=solver, on_step=after_step)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("attention", ["full", "frame_causal"])
@pytest.mark.parametrize("solver", ["euler", "unipc"])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_step_asks_nothing_of_the_device(name, attention, solver, batch):
    model = tiny(name, num_layers=3, attention=attention)
    with torch.no_grad():
        expected = drawn(model, "cpu", solver, batch)
        counts = []
        with watched() as seen:
            found = drawn(model.to(CARD), CARD, solver, batch, lambda *_: counts.append((seen.syncs, seen.kernels)))
    torch.testing.assert_close(found.cpu(), expected, atol=1e-4, rtol=1e-4)
    syncs, kernels = zip(*counts, strict=True)
    assert len(set(syncs)) == 1, "a step after the first waited for the device"
    assert kernels[-1] > kernels[0]
