"""Samples one image as ComfyUI's stock KSampler does, or as its weights were trained to be sampled.

In: MODEL, CONDITIONING, LATENT, and KSampler's settings, where sampler and scheduler may be None: as trained.
Out: LATENT. For SamplerCustom: sigmas and a SAMPLER.

Cosmos-Predict2.5 was post-trained for Karras' times and is published with UniPC for flow matching. That is not
ComfyUI's `uni_pc`, which takes its steps in the noise of other models. Numbers and solver are the core's
(`duogen_core.sampling`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import comfy.sample
import comfy.samplers

from duogen_core import sampling
from duogen_core.errors import DuoGenError

from .compatibility import check_latent, check_model, check_references
from .conditioning import PICTURE_ENDS
from .model_config import KarrasFlow
from .model_management import retry_out_of_memory, scaled_memory_estimate

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from duogen_core.sampling import Sampling

    OnStep = Callable[[int, torch.Tensor, torch.Tensor, int], None]

ADVICE = "draw smaller images, look at fewer earlier ones, or start ComfyUI with --lowvram"


def trained_for(model: Any) -> Sampling | None:
    """Returns what the weights were made for; None for a MODEL that is not ours."""
    return getattr(model.model.model_config, "duogen_sampling", None)


def trained_steps_and_cfg(model: Any, steps: int, cfg: float) -> tuple[int, float]:
    """Returns steps and cfg; where one is 0, what the weights were made for."""
    trained = trained_for(model)
    if trained is None and not (steps and cfg):
        raise DuoGenError("This MODEL holds no sampling settings (it is not a DuoGen one); set steps and cfg yourself.")
    return steps or trained.steps, cfg or trained.guidance


def trained_sigmas(model: Any, steps: int, denoise: float = 1.0) -> torch.Tensor:
    """Returns [steps + 1] noise levels from the first down to 0, with the shift that the user set on the MODEL.

    denoise: as in KSampler, the last `steps` of a longer schedule.
    """
    whole = steps if denoise > 0.9999 else int(steps / denoise)
    times = model.get_model_object("model_sampling")
    if isinstance(times, KarrasFlow):
        sigmas = sampling.sigmas(whole, schedule="karras")
    else:
        sigmas = comfy.samplers.calculate_sigmas(times, "simple", whole).cpu()
    return sigmas[-(steps + 1) :]


def trained_solver(model: Any) -> comfy.samplers.KSAMPLER:
    wanted = trained_for(model)
    if wanted is None or wanted.solver == "euler":
        return comfy.samplers.sampler_object("euler")
    return comfy.samplers.KSAMPLER(sample_flow_unipc)


def sample_flow_unipc(
    model: Any,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Any = None,
    disable: bool | None = None,
) -> torch.Tensor:
    """A sampler of the kind ComfyUI runs (k-diffusion's convention): x [B, C, T, h, w] from sigmas[0] to sigmas[-1]."""
    advance = sampling.step_of("unipc", sigmas.cpu())
    for step in range(len(sigmas) - 1):
        guess = model(x, sigmas[step].expand(x.shape[0]), **(extra_args or {}))
        if callback is not None:
            callback({"x": x, "i": step, "sigma": sigmas[step], "sigma_hat": sigmas[step], "denoised": guess})
        x = advance(x, guess, step)
    return x


def draw(
    model: Any,
    positive: list,
    negative: list,
    latent: dict[str, Any],
    *,
    seed: int,
    steps: int,
    cfg: float,
    sampler_name: str | None,
    scheduler: str | None,
    denoise: float = 1.0,
    on_step: OnStep | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Samples one image. sampler_name, scheduler: KSampler's; None: as the weights were trained.

    on_step: ComfyUI's sampler callback (step, x0, x, steps). say: shows a message on the node.
    """
    if positive and PICTURE_ENDS in positive[0][1]:
        check_model(model)
    check_latent(latent["samples"], model)
    check_references(model, positive, negative)
    samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"], latent.get("downscale_ratio_spacial"))
    noise = comfy.sample.prepare_noise(samples, seed, latent.get("batch_index"))
    common = {
        "noise_mask": latent.get("noise_mask"), "callback": on_step, "disable_pbar": True, "seed": seed,
    }  # fmt: skip

    def sample(factor: float) -> torch.Tensor:
        with scaled_memory_estimate(model, factor):
            if sampler_name and scheduler:  # the very call of the stock KSampler, so that its images are the same
                return comfy.sample.sample(
                    model, noise, steps, cfg, sampler_name, scheduler, positive, negative, samples, denoise=denoise,
                    **common,
                )  # fmt: skip
            return comfy.sample.sample_custom(
                model, noise, cfg, _solver(model, sampler_name), _sigmas(model, scheduler, steps, denoise),
                positive, negative, samples, **common,
            )  # fmt: skip

    drawn = retry_out_of_memory(
        sample, what=f"drawing an image of {_size(samples, model)} pixels", advice=ADVICE, say=say
    )
    return {key: value for key, value in latent.items() if key != "downscale_ratio_spacial"} | {"samples": drawn}


def _solver(model: Any, name: str | None) -> comfy.samplers.KSAMPLER:
    return trained_solver(model) if name is None else comfy.samplers.sampler_object(name)


def _sigmas(model: Any, scheduler: str | None, steps: int, denoise: float = 1.0) -> torch.Tensor:
    if scheduler is None:
        return trained_sigmas(model, steps, denoise)
    whole = steps if denoise > 0.9999 else int(steps / denoise)
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, whole)[-(steps + 1) :]


def _size(latent: torch.Tensor, model: Any) -> str:
    pixels = model.get_model_object("latent_format").spacial_downscale_ratio
    return f"{latent.shape[-1] * pixels} x {latent.shape[-2] * pixels}"
