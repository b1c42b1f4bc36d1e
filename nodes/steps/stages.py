"""The stages of an answer, one function each: write, encode, condition, refer to earlier images, size, append.

Each takes and returns what travels between nodes (Document, States, CONDITIONING, LATENT, IMAGE) and keeps no state, so
that a node is a schema around one of them. What makes the answer equal to the command line's is shared with it:
`duogen_core.pipeline`. Sampling is in nodes/host/sampling.py; decoding is the stock VAEDecode.
"""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import comfy.model_management as mm
import node_helpers
import torch

from duogen_core import picture_sampling, pipeline
from duogen_core.checkpoint import CheckpointConfig, PictureSize
from duogen_core.document import Picture, pending
from duogen_core.errors import DuoGenError
from duogen_core.out_of_memory import without_repeats

from ..host.compatibility import check_connector, check_vae
from ..host.conditioning import FRAME_ENDS, HIDDEN_TEXT, MADE_FOR, PICTURE_ENDS, PICTURE_LIMIT, STEP_TEXT
from ..host.images import pictures_from_image
from ..host.model_config import VERSIONS
from ..host.model_management import (
    ModelHandle,
    interrupted_as_comfyui,
    load_models,
    memory_of_context,
    memory_of_tokens,
    retry_out_of_memory,
)
from .answer import parse_given
from .tries import about

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from duogen_core.document import Document
    from duogen_core.mllm.base import ContextStates, Continuation

UNLIMITED = 16384  # pixels a side
ADVICE = "leave out early turns, use smaller images, or start ComfyUI with --lowvram"
MAX_PLACEHOLDERS = 100  # of a planned answer, for a model that never stops asking for images
UNPADDED = 2048  # tokens, for the estimate of what an unpadded prompt needs
_latents: weakref.WeakKeyDictionary[Picture, list] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class States:
    """DUOGEN_STATES: the context as the connector projects it, for the one image that is due.

    The projection is summed layer by layer while the language model runs, so these are [tokens, width of the DiT's
    text input] and never tokens x layers x hidden size. Finished with bias and GELU, not yet split into the positive
    and the negative side.
    """

    states: ContextStates
    config: CheckpointConfig
    text: str  # the paragraph that the image illustrates
    made_for: str | None = None  # the family of DiT that the connector was trained with


@dataclass(frozen=True)
class Written:
    """What the language model wrote, and the context with it."""

    context: Document
    text: str
    stop: str  # "picture" (one is due), "end" or "max_tokens"
    tokens: int
    trouble: str = ""  # what is wrong with a prompted model's marker, where something is


def write(
    mllm: ModelHandle, connector: ModelHandle | None, context: Document, *, given: str = "", **how: Any
) -> Written:
    """Lets the MLLM write until it wants an image or ends. A planned answer is written already: nothing to do.

    given: texts that stand fixed (`answer.parse_given`), counted from this one. how: see `_continue`.
    """
    pipeline.check_request(context)
    return (
        take_planned(context)
        or take_given(context, parse_given(given).get(1, {}))
        or _continue(mllm, connector, context, **how)
    )


def take_given(context: Document, entry: Mapping[str, Any]) -> Written | None:
    """Puts in a text that is given; None: it is to be written."""
    if "text" not in entry:
        return None
    context = pending.with_caption(pipeline.with_text(context, entry["text"]), entry.get("caption", ""))
    return Written(context, entry["text"], "end" if entry.get("end") else "picture", 0)


def take_planned(context: Document) -> Written | None:
    """Returns what follows in a planned answer: its next image, or its end. None: it is still to be written."""
    if pending.pending_index(context) is not None:
        return Written(context, "", "picture", 0)
    stop = pending.planned_stop(context)
    return Written(pending.with_planned_stop(context, None), "", stop, 0) if stop else None


def _continue(
    mllm: ModelHandle,
    connector: ModelHandle | None,
    context: Document,
    *,
    max_new_tokens: int,
    seed: int,
    on_token: Callable[[str], None] | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
) -> Written:
    check_connector(mllm, connector)
    needed, stream = memory_of_context(mllm, context, max_new_tokens), without_repeats(on_token)

    def continue_(factor: float) -> Continuation:
        load_models(mllm, connector, memory_required=needed * factor)
        return mllm.core.continue_(
            context,
            connector=connector.core if connector else None,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
            on_token=stream(),
            cancelled=mm.processing_interrupted,
        )

    written = retry_out_of_memory(continue_, what="writing", advice=ADVICE)
    # A cancelled text is returned as far as it goes; ComfyUI wants its own exception, or it would go on.
    mm.throw_exception_if_processing_interrupted()
    trouble = pipeline.bad_marker(mllm.core, context, written)
    context = pending.with_caption(pipeline.with_text(context, written.text), written.caption)
    return Written(context, written.text, written.stop, written.tokens, trouble)


def write_whole(
    mllm: ModelHandle,
    connector: ModelHandle | None,
    context: Document,
    *,
    max_new_tokens: int,
    given: str = "",
    **how: Any,
) -> Written:
    """Lets the MLLM write its whole answer, with a placeholder wherever it wants an image. given: as in `write`."""
    pipeline.check_request(context)
    fixed = parse_given(given)
    if pending.pending_index(context) is not None:
        return Written(context, "", "picture", 0)
    start = len(context.text) if context.last_turn.role == "assistant" else 0
    tokens = places = 0
    while True:
        written = take_given(context, fixed.get(places + 1, {})) or _continue(
            mllm, connector, context, max_new_tokens=max_new_tokens - tokens, **how
        )
        context, tokens = written.context, tokens + written.tokens
        if written.trouble:
            return written
        if written.stop != "picture" or places == MAX_PLACEHOLDERS:
            break
        empty = pending.placeholder(size_of_next(context, mllm.config), pending.due_caption(context))
        context = pending.with_caption(context.append(empty), "")
        places += 1
    if places:
        stop = "max_images" if written.stop == "picture" else written.stop
        context = pending.with_planned_stop(context, stop)
    return Written(context, context.text[start:], "picture" if places else written.stop, tokens)


def encode(mllm: ModelHandle, connector: ModelHandle, context: Document) -> States:
    """Returns the connector's states of everything before the next image: what it should show."""
    context = pending.before_next_picture(context)
    check_answering(context)
    check_connector(mllm, connector)
    needed = memory_of_context(mllm, context, 1)

    def encoded(factor: float) -> ContextStates:
        load_models(mllm, connector, memory_required=needed * factor)
        return picture_sampling.picture_states(mllm.core, connector.core, context, mm.processing_interrupted)

    with interrupted_as_comfyui():
        states = retry_out_of_memory(encoded, what="reading the conversation", advice=ADVICE)
    return States(states, mllm.config, picture_sampling.step_text(context), connector.made_for)


def condition(encoded: States) -> tuple[list, list]:
    """(positive, negative) CONDITIONING: the negative hides the last text segment and keeps every image.

    Where the images stand in the text travels along; which of them the DiT sees is decided by `refer`.
    """
    states = encoded.states
    values = {
        PICTURE_ENDS: tuple(states.frame_ends),
        PICTURE_LIMIT: encoded.config.picture.max_side,
        STEP_TEXT: encoded.text,
        MADE_FOR: encoded.made_for,
    }
    device = mm.intermediate_device()

    def conditioning(text: torch.Tensor, hidden: tuple[int, int] | None = None) -> list:
        if hidden and hidden[0] >= max(states.frame_ends, default=0):
            # No earlier image saw this text, so it can simply be left out.
            text, hidden = torch.cat([text[: hidden[0]], text[hidden[1] :]]), None
        own = {HIDDEN_TEXT: hidden} if hidden else {}
        return [[text[None].float().to(device), {**values, **own}]]

    positive = states.positive()
    return conditioning(positive), conditioning(*(states.negative() or (positive,)))


def encode_prompt(
    mllm: ModelHandle,
    connector: ModelHandle,
    prompt: str,
    negative: str,
    pad_to: int | None,
    say: Callable[[str], None] | None = None,
) -> list[list]:
    """Returns positive and negative CONDITIONING of two texts, as Cosmos-Predict2.5 was published: no conversation.

    negative: empty for Cosmos' own. pad_to: tokens that shorter texts are filled up to; None: as many as they have.
    """
    from duogen_core.mllm.prompt_states import default_negative_prompt, prompt_states

    check_connector(mllm, connector)
    needed = memory_of_tokens(mllm, pad_to or UNPADDED)

    def states(factor: float) -> list[Any]:
        load_models(mllm, connector, memory_required=needed * factor)
        texts = (prompt, negative.strip() or default_negative_prompt())
        cancelled = mm.processing_interrupted
        return [prompt_states(mllm.core, connector.core, text, pad_to, cancelled=cancelled) for text in texts]

    with interrupted_as_comfyui():
        both = retry_out_of_memory(states, what="reading the prompt", advice="start ComfyUI with --lowvram", say=say)
    device = mm.intermediate_device()
    own = {STEP_TEXT: prompt, MADE_FOR: connector.made_for}
    return [[[text[None].float().to(device), own]] for text in both]


def refer(
    conditionings: Sequence[list],
    vae: Any,
    pictures: Sequence[Picture],
    chosen: Sequence[int],
    megapixels: float = 0.0,
) -> list[list]:
    """Adds these images to each conditioning as reference latents, each in its own place of the text.

    pictures: all of the conversation. chosen: indexes of those to add. megapixels: larger ones are scaled down to
    this; 0: none are.
    """
    values = next((entries[0][1] for entries in conditionings if entries), {})
    if PICTURE_ENDS in values:  # of our connector, so a MODEL of ours will draw
        # Checked without earlier images too: the same VAE decodes the first one, in a stock node that does not check.
        check_vae(vae)
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
                f"The conditioning was made from a context with {len(ends)} images, but this context holds "
                f"{len(pictures)}; connect the context that went into DuoGen Encode Context."
            )
        added[FRAME_ENDS] = tuple(ends[i] for i in chosen)
    return [node_helpers.conditioning_set_values(entries, added) for entries in conditionings]


def side_for(picture: Picture, megapixels: float) -> int:
    """The longer side at which an image has this many pixels; 0: no limit."""
    width, height = picture.size
    area = megapixels * 1024 * 1024
    return round(max(width, height) * math.sqrt(area / (width * height))) if area else UNLIMITED


def reference_latent(vae: Any, picture: Picture, max_side: int = UNLIMITED) -> torch.Tensor:
    """Encodes one earlier image, with our VAE to [1, C, 1, h, w]. One at a time: a video VAE reads a batch as time.

    Every later image of an answer refers to it again, so its latent is cached as long as the image itself lives.
    """
    cached = _latents.setdefault(picture, [])
    for made_by, side, latent in cached:
        if made_by() is vae and side == max_side:
            return latent
    step = 32 if VERSIONS.get(getattr(vae, "latent_channels", None)) == "2.2" else 16  # its cells have 16 pixels, not 8
    size = PictureSize(max_side=max_side, step=step)
    pixels = picture_sampling.reference_pixels(picture, CheckpointConfig(picture=size))
    latent = vae.encode(torch.from_numpy(pixels.copy())[None].float() / 255)
    cached[:] = [entry for entry in cached if entry[0]() is not None] + [(weakref.ref(vae), max_side, latent)]
    return latent


def size_of_next(
    context: Document, config: CheckpointConfig | None, *, size: tuple[int, int] | None = None, like: int = 0
) -> tuple[int, int]:
    """(width, height) of the next image: as asked for, else like image `like` (from 1), 0: like the last one."""
    pictures = context.pictures
    if size is None and not pictures and config is None:
        raise DuoGenError(
            "The context has no image whose size the next one could take; connect the mllm, or choose a fixed size."
        )
    config = config or CheckpointConfig(picture=PictureSize(max_side=UNLIMITED))
    if size is None and like and pictures:
        return picture_sampling.fit_area(*pictures[min(like, len(pictures)) - 1].size, config)
    return picture_sampling.picture_size(context, config, size)


def empty_latent(width: int, height: int) -> dict[str, Any]:
    """Returns what the stock EmptyLatentImage does: samplers fit it to any MODEL, ours or another."""
    device, dtype = mm.intermediate_device(), mm.intermediate_dtype()
    samples = torch.zeros((1, 4, height // 8, width // 8), device=device, dtype=dtype)
    return {"samples": samples, "downscale_ratio_spacial": 8}


def append(nodes: Any, context: Document, image: torch.Tensor, seed: int | None = None) -> Document:
    """Adds the drawn image to the context, as any viewer would see it: 8 bits a colour. nodes: the running graph."""
    check_answering(context)
    pictures = pictures_from_image(image)
    if len(pictures) != 1:
        raise DuoGenError(
            f"One image is due, but the IMAGE is a batch of {len(pictures)}; choose one of them first, for example "
            "with ImageFromBatch."
        )
    known = dict(about(nodes, context, pictures[0]))  # where a critic has looked at it
    return picture_sampling.with_picture(context, pictures[0].pixels, known.pop("seed", seed), **known)


def check_answering(context: Document) -> None:
    if not context.turns or context.last_turn.role != "assistant":
        raise DuoGenError(
            "The context holds a request but no answer yet, so no image is due; connect the context that comes out "
            "of DuoGen Write Text."
        )
