"""How a MODEL wants to be sampled, in ComfyUI's terms: noise levels and solver of the convention its weights have.

In: a MODEL of ours. Out: sigmas and a SAMPLER, for SamplerCustom and DuoGen Sampler. Cosmos-Predict2.5 was post-trained
for Karras' times and is published with UniPC for flow matching, which is not the `uni_pc` that ComfyUI has (that one
takes its steps in the noise of other models). Numbers and solver are the core's: `duogen_core.sampling`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import comfy.model_sampling
import comfy.samplers
import torch

from duogen_core import sampling

if TYPE_CHECKING:
    from duogen_core.sampling import Sampling

TABLE = 1000


class KarrasFlow(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
    """Flow matching whose table of times is spaced as those weights want their steps. The stock scheduler `simple`
    takes its times from that table: with the model's own number of steps they are within a hundredth of the published
    ones, which DuoGen Sigmas gives exactly."""

    def __init__(self, config: Any, steps: int) -> None:
        self.steps = steps
        super().__init__(config)

    def set_parameters(self, shift: float = 1.0, timesteps: int = TABLE, multiplier: float = 1.0) -> None:
        self.shift, self.multiplier = shift, multiplier
        # `simple` goes down the table in `steps` strides; the published times take steps - 1 from first to last.
        place = torch.arange(timesteps - 1, -1, -1, dtype=torch.float64) / timesteps
        place *= self.steps / max(1, self.steps - 1)
        self.register_buffer("sigmas", sampling.karras_time(place).float())

    def percent_to_sigma(self, percent: float) -> float:
        if percent <= 0.0:
            return 1.0
        if percent >= 1.0:
            return 0.0
        return float(self.sigmas[-1 - int(percent * len(self.sigmas))])


def own(model: Any) -> Sampling | None:
    """What the weights were made for; None of a MODEL that is not ours."""
    return getattr(model.model.model_config, "duogen_sampling", None)


def trained_sigmas(model: Any, steps: int, denoise: float = 1.0) -> torch.Tensor:
    """[steps + 1] noise levels from the first down to 0. A shift that the user set on the MODEL counts. denoise: as in
    KSampler, the last `steps` of a longer schedule."""
    whole = steps if denoise > 0.9999 else int(steps / denoise)
    times = model.get_model_object("model_sampling")
    if isinstance(times, KarrasFlow):
        sigmas = sampling.sigmas(whole, schedule="karras")
    else:
        sigmas = comfy.samplers.calculate_sigmas(times, "simple", whole).cpu()
    return sigmas[-(steps + 1) :]


def trained_solver(model: Any) -> comfy.samplers.KSAMPLER:
    wanted = own(model)
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
