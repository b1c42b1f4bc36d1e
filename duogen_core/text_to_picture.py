"""A prompt -> a picture, exactly as Cosmos-Predict2.5 was published: no conversation, no earlier pictures.

In: the parts of a model, a prompt, a seed. Out: uint8 [H, W, 3].
What the DiT reads of a prompt is told in mllm/prompt_states.py.
Source: diffusers' Cosmos2_5_PredictBasePipeline, with whose numbers this agrees (tests/core/test_text_to_picture.py),
but for one thing: the noise is multiplied by the first time (0.995), as flow matching has it, there it is not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from duogen_core.mllm.prompt_states import PADDED, default_negative_prompt, prompt_states
from duogen_core.out_of_memory import retry
from duogen_core.picture_sampling import working_device, working_dtype
from duogen_core.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from duogen_core.checkpoint import Components


def draw_prompt(
    components: Components,
    prompt: str,
    settings: Settings,
    *,
    negative_prompt: str | None = None,
    pad_to: int | None = PADDED,
    cancelled: Callable[[], bool] | None = None,
) -> np.ndarray:
    """uint8 [H, W, 3]. negative_prompt: None for the one that diffusers' pipeline has."""
    width, height = settings.size or (components.config.picture.width, components.config.picture.height)

    def draw() -> np.ndarray:
        latent = prompt_latent(
            components, prompt, settings, (width, height), negative_prompt=negative_prompt, pad_to=pad_to,
            cancelled=cancelled,
        )  # fmt: skip
        components.use("vae")
        return components.vae.decode_pixels(latent)

    return retry(draw, components.go_leaner, what="drawing an image")


def prompt_latent(
    components: Components,
    prompt: str,
    settings: Settings,
    size: tuple[int, int],
    *,
    negative_prompt: str | None = None,
    pad_to: int | None = PADDED,
    cancelled: Callable[[], bool] | None = None,
) -> Tensor:
    """The picture's normalised latent, [1, channels, h, w], on the DiT's device."""
    import torch

    from duogen_core.sampling import initial_noise, sample_picture, sigmas
    from duogen_core.vae import fit_size

    if negative_prompt is None:
        negative_prompt = default_negative_prompt()
    settings, own = settings.resolved(components.config), components.config.sampling
    width, height = fit_size(*size, components.vae.size_step)
    prompts = [prompt] if settings.guidance == 1.0 else [prompt, negative_prompt]

    with torch.inference_mode():
        components.use("mllm")
        states = [prompt_states(components.mllm, components.connector, p, pad_to, cancelled=cancelled) for p in prompts]
        components.use("dit")
        dit, device, dtype = components.dit, working_device(components.dit), working_dtype(components.dit)

        texts = [(each[None].to(device, dtype), None) for each in states]
        shape = components.vae.latent_shape(width, height)
        prepared = dit.prepare([], texts, shape)
        return sample_picture(
            prepared.velocities,
            initial_noise(settings.seed, shape).to(device),
            sigmas(settings.steps, settings.shift, own.schedule),
            guidance=settings.guidance,
            solver=own.solver,
            cancelled=cancelled,
        )
