"""A prompt by itself -> the DiT's text condition, as Cosmos-Predict2.5 was published: no conversation.

The prompt stands in a fixed chat; the MLLM's states of all layers, normalised, go through the connector. Cosmos was
trained on 512 tokens, always: shorter prompts are filled up with pad tokens whose states are part of the condition
(`pad_to`; None leaves them out, as DuoGen's own conversations do). The negative branch is a prompt of its own.
Source: diffusers' Cosmos2_5_PredictBasePipeline (`_get_prompt_embeds`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from duogen_core.document import Document, Text
from duogen_core.errors import Cancelled, DuoGenError
from duogen_core.mllm.chat import layout

if TYPE_CHECKING:
    from duogen_core.connector import Connector
    from duogen_core.mllm.base import Mllm

SYSTEM = "You are a helpful assistant who will provide prompts to an image generator."
PADDED = 512


def prompt_states(
    mllm: Mllm,
    connector: Connector,
    prompt: str,
    pad_to: int | None = PADDED,
    *,
    cancelled: Callable[[], bool] | None = None,
) -> Tensor:
    """The DiT's text condition, float32 [tokens, cross_width]; a prompt longer than pad_to is cut.

    Raises Cancelled between two layers.
    """
    chat = Document().begin_turn("system", [Text(SYSTEM)]).begin_turn("user", [Text(prompt)])
    ids = layout(chat, mllm.tokenizer, [], marker=lambda picture: "").ids
    if pad_to is not None:
        pad = mllm.tokenizer.pad_token_id
        if pad is None:
            raise DuoGenError("The tokenizer of this MLLM has no pad token; draw with pad_to=None.")
        ids = [*ids, *[pad] * (pad_to - len(ids))][:pad_to]
    total: list[Tensor] = []

    def add(layer: int, h: Tensor) -> None:
        if cancelled is not None and cancelled():  # the cache is this call's own, so it may be left half filled
            raise Cancelled("Reading the prompt was stopped.")
        total[:] = [connector.project_layer(layer, h[0], *total)]

    with torch.inference_mode():
        embeds = mllm.embed(torch.tensor([ids], device=mllm.device), None, None)
        mllm.run_layers(embeds, mllm.positions(ids, [])[:, None].to(mllm.device), mllm.new_cache(), add)
        return connector.finish(total[0])


def default_negative_prompt() -> str:
    """The one that Cosmos-Predict2.5's own pipeline has."""
    from diffusers.pipelines.cosmos.pipeline_cosmos2_5_predict import DEFAULT_NEGATIVE_PROMPT

    return DEFAULT_NEGATIVE_PROMPT
