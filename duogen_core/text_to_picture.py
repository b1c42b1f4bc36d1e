"""A prompt -> a picture, exactly as Cosmos-Predict2.5 was published: no conversation, no earlier pictures.

In: the parts of a model, a prompt, a seed. Out: uint8 [H, W, 3].
The prompt stands in a fixed chat; the MLLM's states of all layers, normalised, go through the connector. Cosmos was
trained on 512 tokens, always: shorter prompts are filled up with pad tokens whose states are part of the condition
(`pad_to`; None leaves them out, as DuoGen's own conversations do). The negative branch is a prompt of its own.
Source: diffusers' Cosmos2_5_PredictBasePipeline, with whose numbers this agrees (tests/core/test_text_to_picture.py),
but for one thing: the noise is multiplied by the first time (0.995), as flow matching has it, there it is not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from duogen_core.document import Document, Text
from duogen_core.errors import DuoGenError
from duogen_core.pipeline import Settings, picture_prompt, working_dtype

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from duogen_core.checkpoint import Components
    from duogen_core.connector import Connector
    from duogen_core.mllm.base import ContextStates, Mllm

SYSTEM = "You are a helpful assistant who will provide prompts to an image generator."
PADDED = 512


def prompt_states(mllm: Mllm, connector: Connector, prompt: str, pad_to: int | None = PADDED) -> Tensor:
    """The DiT's text condition, float32 [tokens, cross_width]; a prompt longer than pad_to is cut."""
    import torch

    from duogen_core.mllm.chat import layout

    chat = Document().begin_turn("system", [Text(SYSTEM)]).begin_turn("user", [Text(prompt)])
    ids = layout(chat, mllm.tokenizer, [], marker=lambda picture: "").ids
    if pad_to is not None:
        pad = mllm.tokenizer.pad_token_id
        if pad is None:
            raise DuoGenError("The tokenizer of this MLLM has no pad token; draw with pad_to=None.")
        ids = [*ids, *[pad] * (pad_to - len(ids))][:pad_to]
    total: list[Tensor] = []

    def add(layer: int, h: torch.Tensor) -> None:
        part = connector.project_layer(layer, h[0])
        total[:] = [part if not total else total[0] + part]

    with torch.inference_mode():
        embeds = mllm.embed(torch.tensor([ids], device=mllm.device), None, None)
        mllm.run_layers(embeds, mllm.positions(ids, [])[:, None].to(mllm.device), mllm.new_cache(), add)
        return connector.finish(total[0])


def picture_states(mllm: Mllm, connector: Connector, document: Document) -> ContextStates:
    """The DiT's text condition for the picture that is due in the document's open answer.

    A model that was taught <BOV> gives the states of the whole conversation. One that is only prompted for its markers
    was never trained with a DiT: conversations mean nothing to that. So what it wants drawn (`picture_prompt`) goes in
    as published weights read it, a prompt by itself, with the published negative prompt for guidance's other branch.
    """
    from duogen_core.mllm.base import ContextStates

    if mllm.prompted is None:
        return mllm.encode(document, connector)
    prompts = picture_prompt(document), default_negative_prompt()
    pad_to = None if mllm.tokenizer.pad_token_id is None else PADDED
    positive, negative = (prompt_states(mllm, connector, prompt, pad_to) for prompt in prompts)
    no_text = (0,) * len(document.pictures)  # the prompt tells of the new picture alone, not of the earlier ones
    return ContextStates(positive, (0, len(positive)), no_text, negative_prompt=negative)


def default_negative_prompt() -> str:
    """The one that Cosmos-Predict2.5's own pipeline has."""
    from diffusers.pipelines.cosmos.pipeline_cosmos2_5_predict import DEFAULT_NEGATIVE_PROMPT

    return DEFAULT_NEGATIVE_PROMPT


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
    return components.vae.decode_pixels(
        prompt_latent(
            components, prompt, settings, (width, height), negative_prompt=negative_prompt, pad_to=pad_to,
            cancelled=cancelled,
        )
    )  # fmt: skip


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
    """The picture's normalised latent, [1, 16, h, w]."""
    import torch

    from duogen_core.sampling import initial_noise, sample_picture, sigmas
    from duogen_core.vae import fit_size

    if negative_prompt is None:
        negative_prompt = default_negative_prompt()
    settings, own = settings.resolved(components.config), components.config.sampling
    dtype = working_dtype(components.dit)
    width, height = fit_size(*size)

    def branch(text: str) -> Callable[[Tensor, Tensor], Tensor]:
        states = prompt_states(components.mllm, components.connector, text, pad_to)[None].to(dtype)
        return lambda x, t: components.dit.forward_packed([x.to(dtype)], t, states).float()

    with torch.inference_mode():
        return sample_picture(
            branch(prompt),
            initial_noise(settings.seed, (1, 16, height // 8, width // 8)),
            sigmas(settings.steps, settings.shift, own.schedule),
            negative=None if settings.guidance == 1.0 else branch(negative_prompt),
            guidance=settings.guidance,
            solver=own.solver,
            cancelled=cancelled,
        )
