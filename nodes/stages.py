"""The stages of an answer, one function each: write, encode, connect, draw, decode, append.

Each takes and returns what travels between nodes (Document, CONDITIONING, LATENT, IMAGE) and keeps nothing, so that a
node is a schema around one of them. What makes the answer equal to the command line's is shared with it:
`duogen_core.pipeline`. Sampling is the very call that the stock KSampler makes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import comfy.model_management as mm
import comfy.sample
import torch

from duogen_core import pipeline
from duogen_core.document import Picture

from .dit_model import FRAME_ENDS
from .managed import Managed, load_models
from .sockets import pictures_from_image

if TYPE_CHECKING:
    from collections.abc import Callable

    from duogen_core.checkpoint import CheckpointConfig
    from duogen_core.document import Document
    from duogen_core.mllm import ContextStates, Continuation


def write(
    mllm: Managed,
    connector: Managed | None,
    context: Document,
    *,
    max_new_tokens: int,
    seed: int,
    temperature: float = 0.0,
    on_token: Callable[[str], None] | None = None,
) -> tuple[Document, Continuation]:
    """Lets the MLLM write until it wants a picture or ends. Returns the longer context, and how it stopped."""
    load_models(mllm, connector, memory_required=mllm_memory(mllm, context, max_new_tokens))
    written = mllm.core.continue_(
        context,
        connector=connector.core if connector else None,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        on_token=on_token,
        cancelled=mm.processing_interrupted,
    )
    mm.throw_exception_if_processing_interrupted()
    return pipeline.with_text(context, written.text), written


def encode(mllm: Managed, connector: Managed, context: Document) -> ContextStates:
    """What the next picture shall show: the connector's states of everything before it."""
    load_models(mllm, connector, memory_required=mllm_memory(mllm, context, 1))
    return mllm.core.encode(context, connector.core)


def reference_latent(vae: Any, picture: Picture, config: CheckpointConfig) -> torch.Tensor:
    """One earlier picture as the VAE's latent [1, 16, 1, h, w]. One at a time: a batch would be read as a video."""
    pixels = torch.from_numpy(pipeline.reference_pixels(picture, config).copy()).float() / 255
    return vae.encode(pixels[None])


def connect(states: ContextStates, references: list[torch.Tensor]) -> tuple[list, list]:
    """(positive, negative) CONDITIONING: the negative lacks the last text segment and keeps every picture."""
    values = {FRAME_ENDS: tuple(states.frame_ends)}
    if references:
        values["reference_latents"] = list(references)
    device = mm.intermediate_device()
    negative = pipeline.negative_states(states)
    positive = states.positive()
    return tuple(
        [[text[None].float().to(device), dict(values)]]
        for text in (positive, positive if negative is None else negative)
    )


def draw(
    model: Any,
    positive: list,
    negative: list,
    *,
    size: tuple[int, int],
    seed: int,
    steps: int,
    cfg: float,
    sampler_name: str,
    scheduler: str,
    on_step: Callable[[int, torch.Tensor, torch.Tensor, int], None] | None = None,
) -> dict[str, torch.Tensor]:
    """LATENT of the next picture, [1, 16, 1, h, w]; what KSampler does with an empty latent, denoise 1.

    on_step(step, denoised so far, noisy latent, steps) is ComfyUI's sampler callback.
    """
    width, height = size
    latent = torch.zeros((1, 16, 1, height // 8, width // 8), device=mm.intermediate_device())
    latent = comfy.sample.fix_empty_latent_channels(model, latent)
    noise = comfy.sample.prepare_noise(latent, seed)
    samples = comfy.sample.sample(
        model, noise, steps, cfg, sampler_name, scheduler, positive, negative, latent,
        callback=on_step, disable_pbar=True, seed=seed,
    )  # fmt: skip
    return {"samples": samples}


def decode(vae: Any, latent: dict[str, torch.Tensor]) -> torch.Tensor:
    """LATENT -> IMAGE [1, H, W, 3], as VAEDecode does it."""
    image = vae.decode(latent["samples"])
    return image.reshape(-1, *image.shape[-3:])


def append(context: Document, image: torch.Tensor, seed: int) -> Document:
    """The context with the drawn picture, which joins it as any viewer would see it: 8 bits a colour."""
    (picture,) = pictures_from_image(image)
    return pipeline.with_picture(context, picture.pixels, seed)


def mllm_memory(mllm: Managed, context: Document, max_new_tokens: int) -> float:
    """Bytes a run of the MLLM needs besides its weights: KV cache, and the activations of prefill and pictures."""
    text = mllm.core.model.config.get_text_config()
    pixels = sum(picture.size[0] * picture.size[1] for picture in context.pictures)
    characters = sum(len(part.text) for turn in context.turns for part in turn.parts if not isinstance(part, Picture))
    tokens = pixels // 28**2 + characters + max_new_tokens  # Qwen's 28 x 28 pixels a token; a character is at most one
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    size = next(mllm.core.model.parameters()).element_size()
    kv_cache = tokens * text.num_hidden_layers * text.num_key_value_heads * head * 2 * size
    activations = tokens * (8 * text.hidden_size + 2 * text.intermediate_size) * size + text.vocab_size * 4
    return kv_cache + activations + pixels / 14**2 * 6 * text.hidden_size * size
