"""Flow-matching sampling of one picture, number for number what ComfyUI's KSampler does with euler and simple.

x_t = t * noise + (1 - t) * x0, v = noise - x0, t from 1 to 0 on a shifted schedule (sigma is t here).
In:  a velocity function of (x [B, 16, h, w], t [B]) for the condition and one without the last text segment.
Out: the normalised latent x0 [B, 16, h, w].
Follows ComfyUI's ModelSamplingDiscreteFlow (shift, multiplier 1), simple_scheduler, sample_euler, prepare_noise.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from duogen_core.errors import Cancelled, DuoGenError

TABLE = 1000  # ComfyUI picks its steps from a table of this many times
SEEDS = 2**64

VelocityFn = Callable[[Tensor, Tensor], Tensor]  # (x, t [B]) -> v
OnStep = Callable[[int, int, Tensor], None]  # (steps done, steps in all, the present guess of x0)


class SamplingError(DuoGenError):
    """A setting of the sampler that has no meaning."""


def sigmas(steps: int, shift: float = 1.0) -> Tensor:
    """[steps + 1] float32 times from 1 down to 0, closer together near 1 for a shift above 1.

    Even in the table's unshifted time, rounded down to its entries, as ComfyUI's "simple" takes them: so both sample
    the same times even where steps does not divide 1000.
    """
    if not 1 <= steps <= TABLE:
        raise SamplingError(f"The number of steps is {steps}; expected 1 to {TABLE}.")
    if not shift > 0:
        raise SamplingError(f"The shift is {shift}; expected a number above 0 (1 is no shift).")
    t = torch.arange(1, TABLE + 1) / TABLE
    table = t if shift == 1.0 else shift * t / (1 + (shift - 1) * t)
    every = TABLE / steps
    return torch.stack([*(table[-(1 + int(step * every))] for step in range(steps)), torch.tensor(0.0)])


def initial_noise(seed: int, shape: tuple[int, ...]) -> Tensor:
    """float32 noise on the CPU, for a latent [B, 16, h, w] or [B, 16, 1, h, w] the same numbers as ComfyUI's."""
    if not 0 <= seed < SEEDS:
        raise SamplingError(f"The seed is {seed}; expected 0 to {SEEDS - 1}.")
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")


def guide(positive: Tensor, negative: Tensor, guidance: float) -> Tensor:
    """v = v_neg + g (v_pos - v_neg); g = 1 is no guidance."""
    return negative + (positive - negative) * guidance


def sample_picture(
    positive: VelocityFn,
    noise: Tensor,
    times: Tensor,
    *,
    negative: VelocityFn | None = None,
    guidance: float = 1.0,
    on_step: OnStep | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Tensor:
    """Euler steps from noise to a picture's latent; without guidance the negative branch is never run.

    `times` as from `sigmas`. Raises Cancelled between two steps. Guidance works on the guessed pictures rather than on
    velocities, as ComfyUI does: equal in exact arithmetic, and so equal to its rounding too.
    """
    use_negative = negative is not None and guidance != 1.0
    x = noise * times[0]
    for step in range(len(times) - 1):
        if cancelled is not None and cancelled():
            raise Cancelled(f"Sampling was stopped after {step} of {len(times) - 1} steps.")
        t, following = times[step], times[step + 1]
        batch_t = t.to(x).expand(x.shape[0])
        guess = x - positive(x, batch_t) * t
        if use_negative:
            guess = guide(guess, x - negative(x, batch_t) * t, guidance)
        x = x + (x - guess) / t * (following - t)
        if on_step is not None:
            on_step(step + 1, len(times) - 1, guess)
    return x
