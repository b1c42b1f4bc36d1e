"""The sampler gives what ComfyUI gives: schedule, noise, Euler steps, guidance; and stops when asked."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from duogen_core.errors import Cancelled
from duogen_core.sampling import (
    SamplingError,
    initial_noise,
    sample_picture,
    sigmas,
)


def comfy_sigmas(steps: int, shift: float) -> torch.Tensor:
    """ModelSamplingDiscreteFlow.set_parameters(shift, multiplier=1.0) and simple_scheduler, as in ComfyUI 0.33."""
    multiplier = 1.0
    timestep = (torch.arange(1, 1000 + 1, 1) / 1000) * multiplier
    t = timestep / multiplier
    table = t if shift == 1.0 else shift * t / (1 + (shift - 1) * t)
    ss = len(table) / steps
    sigs = [float(table[-(1 + int(x * ss))]) for x in range(steps)]
    return torch.FloatTensor([*sigs, 0.0])


@pytest.mark.parametrize("steps", [1, 2, 7, 12, 16, 20, 30, 36, 999, 1000])
@pytest.mark.parametrize("shift", [1.0, 1.5, 3.0, 5.0])
def test_schedule_is_comfyuis(steps, shift):
    ours = sigmas(steps, shift)
    assert torch.equal(ours, comfy_sigmas(steps, shift))
    assert ours[0] == 1 and ours[-1] == 0 and (ours.diff() < 0).all()


def test_noise_is_comfyuis_for_either_layout():
    latent = torch.zeros(1, 16, 1, 8, 6)
    theirs = torch.randn(latent.size(), dtype=torch.float32, generator=torch.manual_seed(42), device="cpu")
    assert torch.equal(initial_noise(42, (1, 16, 1, 8, 6)), theirs)
    assert torch.equal(initial_noise(42, (1, 16, 8, 6)), theirs[:, :, 0])
    assert not torch.equal(initial_noise(43, (1, 16, 8, 6)), theirs[:, :, 0])


def test_noise_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    initial_noise(1, (4,))
    assert torch.equal(torch.rand(3), expected)


def comfy_euler(positive, negative, noise, times, cfg):
    """KSampler(euler): CONST.calculate_denoised, cfg_function, to_d."""
    x = times[0] * noise + (1.0 - times[0]) * torch.zeros_like(noise)
    s_in = x.new_ones([x.shape[0]])
    for i in range(len(times) - 1):
        sigma = (times[i] * s_in).view(-1, 1, 1, 1)
        cond, uncond = (x - f(x, times[i] * s_in) * sigma for f in (positive, negative))
        denoised = uncond + (cond - uncond) * cfg
        d = (x - denoised) / sigma
        x = x + d * (times[i + 1] - times[i])
    return x


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_steps_are_comfyuis(guidance):
    torch.manual_seed(0)
    weight = torch.randn(2, 16, 16) * 0.2

    def velocity(index):
        return lambda x, t: torch.einsum("dc,bchw->bdhw", weight[index], x).tanh() + t.view(-1, 1, 1, 1)

    noise, times = initial_noise(7, (2, 16, 4, 6)), sigmas(13, 3.0)
    branches = [velocity(0), velocity(1)] if guidance != 1.0 else [velocity(0)]
    ours = sample_picture(lambda x, t: [v(x, t) for v in branches], noise, times, guidance=guidance)
    torch.testing.assert_close(
        ours, comfy_euler(velocity(0), velocity(1), noise, times, guidance), atol=1e-5, rtol=1e-5
    )
    # and in velocities, as the paper writes it
    x = noise
    for t, following in pairwise(times):
        at = t.expand(2)
        v = velocity(1)(x, at) + guidance * (velocity(0)(x, at) - velocity(1)(x, at))
        x = x + (following - t) * v
    torch.testing.assert_close(ours, x, atol=1e-4, rtol=1e-4)


def test_the_true_velocity_leads_to_the_picture():
    picture = torch.randn(1, 16, 4, 4)
    noise = initial_noise(0, picture.shape)
    out = sample_picture(lambda x, t: [noise - picture], noise, sigmas(5, 3.0))
    torch.testing.assert_close(out, picture, atol=1e-5, rtol=1e-5)


def test_progress_and_cancel():
    noise, seen = initial_noise(0, (1, 16, 2, 2)), []
    sample_picture(lambda x, t: [x], noise, sigmas(4), on_step=lambda *args: seen.append(args[:2]))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    seen.clear()
    with pytest.raises(Cancelled, match="after 2 of 4"):
        sample_picture(
            lambda x, t: [x],
            noise,
            sigmas(4),
            on_step=lambda *args: seen.append(args[:2]),
            cancelled=lambda: len(seen) == 2,
        )
    assert seen == [(1, 4), (2, 4)]


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda: sigmas(0), "steps is 0"),
        (lambda: sigmas(1001), "steps is 1001"),
        (lambda: sigmas(4, 0.0), "shift is 0"),
        (lambda: sigmas(4, float("nan")), "shift is nan"),
        (lambda: initial_noise(-1, (1,)), "seed is -1"),
    ],
)
def test_settings_without_meaning_are_named(call, message):
    with pytest.raises(SamplingError, match=message):
        call()
