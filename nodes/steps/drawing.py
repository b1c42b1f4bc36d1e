"""Sampling one picture: the very call that the stock KSampler makes, or SamplerCustom's where the weights want a
schedule or a solver of their own; and once more, leaner, when memory runs out.

In: MODEL, CONDITIONING, LATENT, and KSampler's settings, in which "as trained" may stand for sampler and scheduler.
Out: LATENT.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import comfy.sample
import comfy.samplers

from ..definitions.inputs import AS_TRAINED
from ..host import out_of_memory as leaner
from ..host import part_check as fit
from ..host.diffusion_model import PICTURE_ENDS
from . import schedule

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    OnStep = Callable[[int, torch.Tensor, torch.Tensor, int], None]

ADVICE = "draw smaller pictures, look at fewer earlier ones, or start ComfyUI with --lowvram"


def draw(
    model: Any,
    positive: list,
    negative: list,
    latent: dict[str, Any],
    *,
    seed: int,
    steps: int,
    cfg: float,
    sampler_name: str,
    scheduler: str,
    denoise: float = 1.0,
    on_step: OnStep | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """LATENT of the next picture. on_step is ComfyUI's sampler callback (step, x0, x, steps)."""
    if positive and PICTURE_ENDS in positive[0][1]:
        fit.check_model(model)
    fit.check_latent(latent["samples"], model)
    samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"], latent.get("downscale_ratio_spacial"))
    noise = comfy.sample.prepare_noise(samples, seed, latent.get("batch_index"))
    common = {
        "noise_mask": latent.get("noise_mask"), "callback": on_step, "disable_pbar": True, "seed": seed,
    }  # fmt: skip

    def sample(factor: float) -> torch.Tensor:
        with leaner.estimate_times(model, factor):
            if AS_TRAINED not in (sampler_name, scheduler):
                return comfy.sample.sample(
                    model, noise, steps, cfg, sampler_name, scheduler, positive, negative, samples, denoise=denoise,
                    **common,
                )  # fmt: skip
            return comfy.sample.sample_custom(
                model, noise, cfg, solver(model, sampler_name), times(model, scheduler, steps, denoise), positive,
                negative, samples, **common,
            )  # fmt: skip

    drawn = leaner.twice(sample, what=f"drawing a picture of {_size(samples)} pixels", advice=ADVICE, say=say)
    return {key: value for key, value in latent.items() if key != "downscale_ratio_spacial"} | {"samples": drawn}


def solver(model: Any, name: str) -> comfy.samplers.KSAMPLER:
    return schedule.trained_solver(model) if name == AS_TRAINED else comfy.samplers.sampler_object(name)


def times(model: Any, scheduler: str, steps: int, denoise: float = 1.0) -> torch.Tensor:
    if scheduler == AS_TRAINED:
        return schedule.trained_sigmas(model, steps, denoise)
    whole = steps if denoise > 0.9999 else int(steps / denoise)
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, whole)[-(steps + 1) :]


def _size(latent: torch.Tensor) -> str:
    return f"{latent.shape[-1] * 8} x {latent.shape[-2] * 8}"
