"""The stages of an answer, one function each: write, encode, connect, refer, append.

Each takes and returns what travels between nodes (Document, States, CONDITIONING, LATENT, IMAGE) and keeps nothing, so
that a node is a schema around one of them. What makes the answer equal to the command line's is shared with it:
`duogen_core.pipeline`. Drawing has a file of its own, drawing.py; decoding is the stock VAEDecode.
"""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import comfy.model_management as mm
import node_helpers
import torch

from duogen_core import pipeline
from duogen_core.checkpoint import CheckpointConfig, PictureSize
from duogen_core.document import Picture
from duogen_core.errors import DuoGenError

from ..definitions.sockets import pictures_from_image
from ..host import memory_estimates as room
from ..host import out_of_memory as leaner
from ..host import part_check as fit
from ..host.diffusion_model import (
    FRAME_ENDS,
    HIDDEN_TEXT,
    PICTURE_ENDS,
    PICTURE_LIMIT,
    STEP_TEXT,
)
from ..host.model_management import Managed, interrupted_as_comfyui, load_models
from . import planned_answer as plan

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from duogen_core.document import Document
    from duogen_core.mllm.base import ContextStates, Continuation


UNLIMITED = 16384  # pixels a side
ADVICE = "leave out early turns, use smaller pictures, or start ComfyUI with --lowvram"
MAX_PLACES = 100  # of a planned answer, for a model that wants pictures without end
_latents: weakref.WeakKeyDictionary[Picture, list] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class States:
    """DUOGEN_STATES: what the connector made of the context, for the one picture that is due.

    The projection is summed layer by layer while the language model runs, so these are [tokens, width of the DiT's
    text input] and never tokens x layers x hidden size. Finished with bias and GELU, not yet split into the positive
    and the negative side.
    """

    states: ContextStates
    config: CheckpointConfig
    text: str  # the paragraph that the picture shows


@dataclass(frozen=True)
class Written:
    context: Document
    text: str
    stop: str  # "picture", "end" or "max_tokens"
    tokens: int


def write(mllm: Managed, connector: Managed | None, context: Document, **how: Any) -> Written:
    """Lets the MLLM write until it wants a picture or ends. A planned answer is written already: nothing to do.

    how: see `_continue`.
    """
    pipeline.check_request(context)
    if plan.pending_index(context) is not None:
        return Written(context, "", "picture", 0)
    stop = plan.planned_stop(context)
    if stop:
        return Written(plan.with_planned_stop(context, None), "", stop, 0)
    return _continue(mllm, connector, context, **how)


def _continue(
    mllm: Managed,
    connector: Managed | None,
    context: Document,
    *,
    max_new_tokens: int,
    seed: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    on_token: Callable[[str], None] | None = None,
) -> Written:
    fit.check_connector(mllm, connector)
    needed, stream = room.of_context(mllm, context, max_new_tokens), leaner.skipping(on_token)

    def continue_(factor: float) -> Continuation:
        load_models(mllm, connector, memory_required=needed * factor)
        return mllm.core.continue_(
            context,
            connector=connector.core if connector else None,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            on_token=stream(),
            cancelled=mm.processing_interrupted,
        )

    written = leaner.twice(continue_, what="writing", advice=ADVICE)
    mm.throw_exception_if_processing_interrupted()
    context = pipeline.with_caption(pipeline.with_text(context, written.text), written.caption)
    return Written(context, written.text, written.stop, written.tokens)


def write_whole(
    mllm: Managed, connector: Managed | None, context: Document, *, max_new_tokens: int, **how: Any
) -> Written:
    """Lets the MLLM write its whole answer, with an empty place wherever it wants a picture (see plan.py)."""
    pipeline.check_request(context)
    if plan.pending_index(context) is not None:
        return Written(context, "", "picture", 0)
    start = len(context.text) if context.last_turn.role == "assistant" else 0
    tokens = places = 0
    while True:
        written = _continue(mllm, connector, context, max_new_tokens=max_new_tokens - tokens, **how)
        context, tokens = written.context, tokens + written.tokens
        if written.stop != "picture" or places == MAX_PLACES:
            break
        place = plan.place(size_of_next(context, mllm.config), pipeline.pending_caption(context))
        context = pipeline.with_caption(context.append(place), "")
        places += 1
    if places:
        stop = "max_images" if written.stop == "picture" else written.stop
        context = plan.with_planned_stop(context, stop)
    return Written(context, context.text[start:], "picture" if places else written.stop, tokens)


def encode(mllm: Managed, connector: Managed, context: Document) -> States:
    """What the next picture shall show: the connector's states of everything before it."""
    context = plan.before_next_picture(context)
    check_answering(context)
    fit.check_connector(mllm, connector)
    needed = room.of_context(mllm, context, 1)

    def encoded(factor: float) -> ContextStates:
        load_models(mllm, connector, memory_required=needed * factor)
        return pipeline.picture_states(mllm.core, connector.core, context, mm.processing_interrupted)

    with interrupted_as_comfyui():
        states = leaner.twice(encoded, what="reading the conversation", advice=ADVICE)
    return States(states, mllm.config, pipeline.step_text(context))


def connect(encoded: States) -> tuple[list, list]:
    """(positive, negative) CONDITIONING: the negative hides the last text segment and keeps every picture.

    Where the pictures stand in the text travels along; which of them the DiT sees is decided by `refer`.
    """
    states = encoded.states
    values = {
        PICTURE_ENDS: tuple(states.frame_ends),
        PICTURE_LIMIT: encoded.config.picture.max_side,
        STEP_TEXT: encoded.text,
    }
    device = mm.intermediate_device()

    def conditioning(text: torch.Tensor, hidden: tuple[int, int] | None = None) -> list:
        if hidden and hidden[0] >= max(states.frame_ends, default=0):
            # No earlier picture saw this text, so that it can simply be left out.
            text, hidden = torch.cat([text[: hidden[0]], text[hidden[1] :]]), None
        own = {HIDDEN_TEXT: hidden} if hidden else {}
        return [[text[None].float().to(device), {**values, **own}]]

    positive = states.positive()
    return conditioning(positive), conditioning(*(states.negative() or (positive,)))


def refer(
    conditionings: Sequence[list],
    vae: Any,
    pictures: Sequence[Picture],
    chosen: Sequence[int],
    megapixels: float = 0.0,
) -> list[list]:
    """Each conditioning with these pictures as reference latents, every one in its own place of the text.

    megapixels: what larger pictures are scaled down to; 0: nothing."""
    values = next((entries[0][1] for entries in conditionings if entries), {})
    if PICTURE_ENDS in values:  # of our connector, so a MODEL of ours will draw
        # Without earlier pictures too: the same VAE decodes the first picture, in a stock node that does not check it.
        fit.check_vae(vae)
    if not chosen:
        return list(conditionings)
    limit = values.get(PICTURE_LIMIT, UNLIMITED)
    sides = [min(limit, side_for(pictures[i], megapixels)) for i in chosen]
    latents = [reference_latent(vae, pictures[i], side) for i, side in zip(chosen, sides, strict=True)]
    added: dict[str, Any] = {"reference_latents": latents}
    ends = values.get(PICTURE_ENDS)
    if ends is not None:
        if len(ends) != len(pictures):
            raise DuoGenError(
                f"The conditioning was made from a context with {len(ends)} pictures, but this context holds "
                f"{len(pictures)}; connect the context that went into DuoGen Encode Context."
            )
        added[FRAME_ENDS] = tuple(ends[i] for i in chosen)
    return [node_helpers.conditioning_set_values(entries, added) for entries in conditionings]


def side_for(picture: Picture, megapixels: float) -> int:
    """The longer side at which a picture has this many pixels; 0: no limit."""
    width, height = picture.size
    area = megapixels * 1024 * 1024
    return round(max(width, height) * math.sqrt(area / (width * height))) if area else UNLIMITED


def reference_latent(vae: Any, picture: Picture, max_side: int = UNLIMITED) -> torch.Tensor:
    """One earlier picture as the VAE's latent, ours [1, 16, 1, h, w]. One at a time: a batch would be read as a video.

    Every later picture of an answer looks at it again; its latent is kept as long as the picture itself.
    """
    known = _latents.setdefault(picture, [])
    for made_by, side, latent in known:
        if made_by() is vae and side == max_side:
            return latent
    pixels = pipeline.reference_pixels(picture, CheckpointConfig(picture=PictureSize(max_side=max_side)))
    latent = vae.encode(torch.from_numpy(pixels.copy())[None].float() / 255)
    known[:] = [entry for entry in known if entry[0]() is not None] + [(weakref.ref(vae), max_side, latent)]
    return latent


def size_of_next(
    context: Document, config: CheckpointConfig | None, *, size: tuple[int, int] | None = None, like: int = 0
) -> tuple[int, int]:
    """(width, height) of the next picture: as asked for, else like picture `like` (from 1), 0: like the last one."""
    pictures = context.pictures
    if size is None and not pictures and config is None:
        raise DuoGenError(
            "The context has no picture whose size the next one could take; connect the mllm, or choose a fixed size."
        )
    config = config or CheckpointConfig(picture=PictureSize(max_side=UNLIMITED))
    if size is None and like and pictures:
        return pipeline.fit_area(*pictures[min(like, len(pictures)) - 1].size, config)
    return pipeline.picture_size(context, config, size)


def empty_latent(width: int, height: int) -> dict[str, Any]:
    """What the stock EmptyLatentImage gives: samplers fit it to the MODEL at hand, ours or another."""
    device, dtype = mm.intermediate_device(), mm.intermediate_dtype()
    samples = torch.zeros((1, 4, height // 8, width // 8), device=device, dtype=dtype)
    return {"samples": samples, "downscale_ratio_spacial": 8}


def append(context: Document, image: torch.Tensor, seed: int | None = None) -> Document:
    """The context with the drawn picture, which joins it as any viewer would see it: 8 bits a colour."""
    check_answering(context)
    pictures = pictures_from_image(image)
    if len(pictures) != 1:
        raise DuoGenError(
            f"One picture is due, but the IMAGE is a batch of {len(pictures)}; choose one of them first, for example "
            "with ImageFromBatch."
        )
    before = plan.before_next_picture(context)
    meta = {**({} if seed is None else {"seed": seed}), "text": pipeline.step_text(before)}
    caption = pipeline.pending_caption(before)
    picture = Picture(pictures[0].pixels, meta | ({pipeline.CAPTION: caption} if caption else {}))
    context = pipeline.with_caption(context, "")
    return context.append(picture) if plan.pending_index(context) is None else plan.filled(context, picture)


def check_answering(context: Document) -> None:
    if not context.turns or context.last_turn.role != "assistant":
        raise DuoGenError(
            "The context holds a request but no answer yet, so no picture is due; connect the context that comes out "
            "of DuoGen Write."
        )


def trained_sampling(model: Any, steps: int, cfg: float) -> tuple[int, float]:
    """(steps, cfg), with what the weights were made for where the user left 0."""
    own = getattr(model.model.model_config, "duogen_sampling", None)
    if own is None and not (steps and cfg):
        raise DuoGenError(
            "This MODEL does not say how it wants to be sampled (it is not a DuoGen one); set steps and cfg yourself."
        )
    return steps or own.steps, cfg or own.guidance
