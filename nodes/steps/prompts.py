"""A prompt and a negative prompt -> two CONDITIONINGs, as Cosmos-Predict2.5 was published.

In: the language model, the connector, two texts. Out: the states of each (`duogen_core.mllm.prompt_states`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import comfy.model_management as mm

from ..host import memory_estimates as room
from ..host import out_of_memory as leaner
from ..host import part_check as fit
from ..host.diffusion_model import STEP_TEXT
from ..host.model_management import interrupted_as_comfyui, load_models

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..host.model_management import Managed

UNPADDED = 2048  # tokens, for the estimate of what an unpadded prompt needs


def encode(
    mllm: Managed,
    connector: Managed,
    prompt: str,
    negative: str,
    pad_to: int | None,
    say: Callable[[str], None] | None = None,
) -> list[list]:
    from duogen_core.mllm.prompt_states import default_negative_prompt, prompt_states

    fit.check_connector(mllm, connector)
    needed = room.of_tokens(mllm, pad_to or UNPADDED)

    def states(factor: float) -> list[Any]:
        load_models(mllm, connector, memory_required=needed * factor)
        texts = (prompt, negative.strip() or default_negative_prompt())
        cancelled = mm.processing_interrupted
        return [prompt_states(mllm.core, connector.core, text, pad_to, cancelled=cancelled) for text in texts]

    with interrupted_as_comfyui():
        both = leaner.twice(states, what="reading the prompt", advice="start ComfyUI with --lowvram", say=say)
    device = mm.intermediate_device()
    return [[[text[None].float().to(device), {STEP_TEXT: prompt}]] for text in both]
