"""What several nodes share: the sockets of our own, and the widgets that appear on more than one node.

Sockets, where ComfyUI's core has none, and what they carry: DUOGEN_CONTEXT a `duogen_core.document.Document`,
DUOGEN_MLLM and DUOGEN_CONNECTOR a `ModelHandle` (host/model_management.py), DUOGEN_STATES a `States` (steps/stages.py),
DUOGEN_LOOP a `Round` (steps/loop.py), DUOGEN_TRIES a `Tries` (steps/review.py). Widgets take what differs between the
nodes (tooltip, `optional`, `advanced`).
"""

from __future__ import annotations

from functools import wraps
from typing import Any

import comfy.samplers
from comfy_api.latest import io

from ..host import self_check
from ..steps import AS_IT_GOES, PLAN_FIRST

Mllm = io.Custom("DUOGEN_MLLM")
Connector = io.Custom("DUOGEN_CONNECTOR")
Context = io.Custom("DUOGEN_CONTEXT")
States = io.Custom("DUOGEN_STATES")
Loop = io.Custom("DUOGEN_LOOP")
Tries = io.Custom("DUOGEN_TRIES")

AS_TRAINED = "as trained"
# What a hand-written workflow may hold in place of a link, and no socket of the type ever carries.
_OBJECTS = (
    "MODEL",
    "VAE",
    "IMAGE",
    "CONTROL_NET",
    *(each.io_type for each in (Mllm, Connector, Context, States, Loop, Tries)),
)
PLAIN = {
    **dict.fromkeys(_OBJECTS, (str, int, float, list, dict)),
    "CONDITIONING": (str, int, float, dict),  # a list
    "LATENT": (str, int, float, list),  # a dict
}


def refuse_plain_values(node: type[io.ComfyNode]) -> None:
    """Makes a node refuse text, numbers and lists where a link belongs, with an error message; and say which Python
    package is missing, where one is.

    ComfyUI checks what is linked to a socket, but not a value that a hand-written workflow puts in place of a link.
    """
    run = node.__dict__["execute"].__func__

    @wraps(run)
    def execute(cls: type[io.ComfyNode], *args: Any, **values: Any) -> io.NodeOutput:
        from duogen_core.errors import DuoGenError, shown

        for each in cls.SCHEMA.inputs:
            value = values.get(each.id)
            missing = value is None and each.id in values and not (each.optional or each.lazy)
            kind = each.get_io_type()
            if kind in PLAIN and (missing or isinstance(value, PLAIN[kind])):
                text = shown(repr(value)[:80])
                raise DuoGenError(
                    f"The input {each.id} is {text}, which is not of type {kind}; connect a node's output to it."
                )
        try:
            return run(cls, *args, **values)
        # The core has sentences of its own, which know no ComfyUI; diffusers wraps a failed import in a RuntimeError.
        except (DuoGenError, ImportError, RuntimeError) as error:
            if said := self_check.explained(error):
                raise DuoGenError(said) from None
            raise

    node.execute = classmethod(execute)


def seed(tooltip: str) -> io.Int.Input:
    return io.Int.Input(
        "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True, tooltip=tooltip
    )  # fmt: skip


def steps(**options: Any) -> io.Int.Input:
    return io.Int.Input(
        "steps",
        default=0,
        min=0,
        max=1000,
        tooltip="Sampling steps for each image. 0: as many as the checkpoint was made for.",
        **options,
    )


def cfg(**options: Any) -> io.Float.Input:
    return io.Float.Input(
        "cfg",
        default=0.0,
        min=0.0,
        max=100.0,
        step=0.1,
        round=0.01,
        tooltip="How closely an image follows the paragraph before it. 1 switches guidance off and is twice as fast. "
        "0: the value the checkpoint was made for.",
        **options,
    )


def sampler_name(**options: Any) -> io.Combo.Input:
    return io.Combo.Input(
        "sampler_name",
        options=[AS_TRAINED, *comfy.samplers.KSampler.SAMPLERS],
        default=AS_TRAINED,
        tooltip="The sampling algorithm. as trained: the one that the MODEL was published with. The others are "
        "KSampler's.",
        **options,
    )


def scheduler(**options: Any) -> io.Combo.Input:
    return io.Combo.Input(
        "scheduler",
        options=[AS_TRAINED, *comfy.samplers.KSampler.SCHEDULERS],
        default=AS_TRAINED,
        tooltip="How the noise levels are spaced. as trained: as in the MODEL's training. The others are KSampler's.",
        **options,
    )


def max_images() -> io.Int.Input:
    return io.Int.Input(
        "max_images",
        default=8,
        min=0,
        max=100,
        tooltip="The answer ends when it asks for an image beyond this number.",
    )


def max_tokens(tooltip: str = "The answer ends when it has written this many tokens.", **options: Any) -> io.Int.Input:
    return io.Int.Input("max_tokens", default=1024, min=1, max=32768, tooltip=tooltip, **options)


def mode(**options: Any) -> io.Combo.Input:
    return io.Combo.Input(
        "mode",
        options=[AS_IT_GOES, PLAN_FIRST],
        default=AS_IT_GOES,
        tooltip="as it goes: each paragraph is written with the images before it in view. plan first: the whole text "
        "is written at once, with placeholders for its images, and can be changed before they are drawn.",
        **options,
    )


def temperature(**options: Any) -> io.Float.Input:
    return io.Float.Input(
        "temperature",
        default=0.0,
        min=0.0,
        max=10.0,
        step=0.05,
        tooltip="0 always takes the likeliest word; higher values vary the text more.",
        **options,
    )


def top_p(**options: Any) -> io.Float.Input:
    return io.Float.Input(
        "top_p",
        default=1.0,
        min=0.001,
        max=1.0,
        step=0.01,
        advanced=True,
        tooltip="Words are chosen from the likeliest ones that together have this probability.",
        **options,
    )


def token_filters() -> list[io.Input]:
    """Inputs that came later than top_p: optional and last; with their defaults old workflows write the same text."""
    return [
        io.Int.Input(
            "top_k",
            default=0,
            min=0,
            max=1000000,
            optional=True,
            advanced=True,
            tooltip="Above temperature 0, words are chosen from this many of the likeliest ones. 0: from all.",
        ),
        io.Float.Input(
            "min_p",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            optional=True,
            advanced=True,
            tooltip="Above temperature 0, words less likely than this share of the likeliest one's probability are not "
            "chosen. 0: all may be.",
        ),
        io.Float.Input(
            "repetition_penalty",
            default=1.0,
            min=0.1,
            max=10.0,
            step=0.01,
            optional=True,
            advanced=True,
            tooltip="Above 1, words that the conversation already has become less likely, at temperature 0 too.",
        ),
    ]


def given() -> io.String.Input:
    """Optional and last, as token_filters: see answer.parse_given."""
    return io.String.Input(
        "given",
        default="",
        optional=True,
        advanced=True,
        tooltip="What stays as it is, as JSON that the viewer's Keep and Edit write: by the number of an image, the "
        "text before it and its seed. Only what comes after a change is made anew. Empty: nothing is given.",
    )


def picture_seeds(tooltip: str, **options: Any) -> io.String.Input:
    """ "3: 1234, 5: 99": see answer.parse_seeds."""
    return io.String.Input("seeds", default="", tooltip=tooltip, **options)
