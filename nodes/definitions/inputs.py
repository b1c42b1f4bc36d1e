"""The widgets that several nodes share, each written once: seed, steps, cfg, tokens, pictures, how freely to write.

In: what differs between the nodes (the tooltip, `optional`, `advanced`). Out: the input, for a node's schema.
"""

from __future__ import annotations

from typing import Any

import comfy.samplers
from comfy_api.latest import io

AS_IT_GOES, PLAN_FIRST = "as it goes", "plan first"
AS_TRAINED = "as trained"


def seed(tooltip: str) -> io.Int.Input:
    return io.Int.Input(
        "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True, tooltip=tooltip
    )  # fmt: skip


def steps() -> io.Int.Input:
    return io.Int.Input(
        "steps",
        default=0,
        min=0,
        max=1000,
        tooltip="Sampling steps for each picture. 0: as many as the checkpoint was made for.",
    )


def cfg() -> io.Float.Input:
    return io.Float.Input(
        "cfg",
        default=0.0,
        min=0.0,
        max=100.0,
        step=0.1,
        round=0.01,
        tooltip="How closely a picture follows the paragraph before it. 1 is off and twice as fast. 0: the value the "
        "checkpoint was made for.",
    )


def sampler_name() -> io.Combo.Input:
    return io.Combo.Input(
        "sampler_name",
        options=[AS_TRAINED, *comfy.samplers.KSampler.SAMPLERS],
        default=AS_TRAINED,
        tooltip="The sampling algorithm. as trained: the one that the MODEL was published with. The others are "
        "KSampler's.",
    )


def scheduler() -> io.Combo.Input:
    return io.Combo.Input(
        "scheduler",
        options=[AS_TRAINED, *comfy.samplers.KSampler.SCHEDULERS],
        default=AS_TRAINED,
        tooltip="How the noise levels are spaced. as trained: as the MODEL was trained. The others are KSampler's.",
    )


def max_images() -> io.Int.Input:
    return io.Int.Input(
        "max_images",
        default=8,
        min=0,
        max=100,
        tooltip="The answer ends when it asks for a picture beyond this number.",
    )


def max_tokens(tooltip: str = "The answer ends when it has written this many tokens.") -> io.Int.Input:
    return io.Int.Input("max_tokens", default=1024, min=1, max=32768, tooltip=tooltip)


def mode(**options: Any) -> io.Combo.Input:
    return io.Combo.Input(
        "mode",
        options=[AS_IT_GOES, PLAN_FIRST],
        default=AS_IT_GOES,
        tooltip="as it goes: each paragraph is written with the pictures before it in view. plan first: the whole text "
        "is written at once, with places for its pictures, and can be changed before they are drawn.",
        **options,
    )


def temperature(**options: Any) -> io.Float.Input:
    return io.Float.Input(
        "temperature",
        default=0.0,
        min=0.0,
        max=10.0,
        step=0.05,
        tooltip="0 takes the likeliest word every time; higher values write more freely.",
        **options,
    )


def picture_seeds(tooltip: str, **options: Any) -> io.String.Input:
    """ "3: 1234, 5: 99": see answer.parse_seeds."""
    return io.String.Input("seeds", default="", tooltip=tooltip, **options)
