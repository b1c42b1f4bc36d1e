"""One picture of an answer: what it shows, its seed and its size, and its sampling.

The first half are pure functions of the growing Document, of which the ComfyUI nodes are made, too. `PictureSampler`
takes the steps: the MLLM's states, the connector's condition, the earlier pictures as clean latent frames, the solver,
the VAE. Every picture of the conversation is a clean frame for the next one, the user's included (`reference_pixels`
says at which size), and every picture of an answer has a seed of its own (`picture_seed`). Other painters stand behind
the same protocol, `Painter`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from duogen_core.checkpoint import CheckpointConfig, Components
from duogen_core.document import Document, Picture, Text
from duogen_core.document.pending import (
    CAPTION,
    PENDING,
    before_next_picture,
    due_caption,
    is_pending,
    pending_picture,
    planned_size,
    with_caption,
    with_placeholder_filled,
)
from duogen_core.review import Asked
from duogen_core.settings import Settings

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from duogen_core.connector import Connector
    from duogen_core.dit.controlnet import ControlledSteps, PackedControlNet
    from duogen_core.dit.prepared import Prepared
    from duogen_core.mllm.base import ContextStates, Mllm

MIN_SIDE = 32  # two DiT patches, one MLLM token


def step_text(document: Document) -> str:
    """Returns the text that the next picture illustrates: what the assistant wrote since its last picture."""
    texts: list[str] = []
    for part in reversed(document.last_turn.parts):
        if isinstance(part, Picture):
            break
        texts.insert(0, part.text)
    return "".join(texts).strip()


def picture_prompt(document: Document) -> str:
    """Returns what the next picture shows: its caption, else the text since the last picture, else the request."""
    asked = (turn.text.strip() for turn in reversed(document.turns) if turn.role == "user")
    return due_caption(document) or step_text(document) or next(filter(None, asked), "")


def with_picture(document: Document, pixels: np.ndarray, seed: int | None, **meta: Any) -> Document:
    """Puts in the picture that is due: in the place of the first placeholder, else at the end.

    It carries its own seed, its step text, and its caption if it has one, by which a prompted model finds its own
    marker again (`duogen_core.mllm.prompted`). meta: more of it.
    """
    before, due = before_next_picture(document), pending_picture(document)
    known = {name: value for name, value in (due.meta if due else {}).items() if name != PENDING}
    about = {**({} if seed is None else {"seed": seed}), "text": step_text(before), **known, **meta}
    if caption := due_caption(before):
        about[CAPTION] = caption
    picture, document = Picture(pixels, about), with_caption(document, "")
    return document.append(picture) if due is None else with_placeholder_filled(document, picture)


def redraw_request(document: Document, prompt: str, number: int, conversation: bool) -> Document:
    """Returns what a painter is given for redraw `number` (from 1) of the picture that is due at the document's end.

    conversation: the painter was trained on conversations (a DuoGen model). It gets a new one: the last image, the
    request, and the prompt as the answer's text; for every third redraw the prompt alone. What came long before is what
    most often misleads it (docs/critic.md has the figures). Any other painter gets the prompt as the picture's caption.
    The answer itself stays as it was written.
    """
    if not conversation:
        return with_caption(document, prompt)
    requests = [turn.text.strip() for turn in document.turns if turn.role == "user"]
    asked = [*document.pictures[-1:], Text(requests[-1] if requests else prompt)]
    if number % 3 == 0:
        asked = [Text(prompt)]
    return Document().begin_turn("user", asked).begin_turn("assistant", [Text(prompt)])


def asked_of(document: Document, picture: Picture, tried: str = "", looks_at: Sequence[int] | None = None) -> Asked:
    """Returns what a critic gets of a picture that was drawn for the end of this document (`Asked`).

    looks_at: which earlier pictures the painter was shown, counted from 1; None or none: all of them count.
    """
    pictures = document.pictures
    seen = [pictures[number - 1] for number in looks_at or () if 1 <= number <= len(pictures)]
    plan = document.last_turn.meta.get("plan") if document.turns else None  # duogen_core.planning.as_document
    cast = plan.get("cast") if isinstance(plan, dict) else None
    members = [one for one in cast if isinstance(one, dict)] if isinstance(cast, list) else []
    requests = [turn.text.strip() for turn in document.turns if turn.role == "user"]
    return Asked(
        request=requests[-1] if requests else "",
        text=step_text(document),
        prompt=picture_prompt(document),
        picture=picture,
        earlier=tuple(seen) or pictures,
        tried=tried,
        cast=tuple((str(one.get("name", "")), str(one.get("looks", ""))) for one in members),
    )


def picture_seed(seed: int, k: int) -> int:
    """Returns the seed of picture k (from 0) of an answer: the answer's own for the first, then unlike numbers.

    seed + k would give neighbouring seeds, which people try one after another, the same noise one picture later.
    Below 2^53, so that every program that reads it from a picture's file or a document reads it exactly.
    """
    if k == 0:
        return seed
    return int.from_bytes(blake2b(f"{seed}:{k}".encode(), digest_size=8).digest(), "big") >> 11


def drawn_before(document: Document) -> int:
    """Returns how many pictures the answer has that is to be continued: the next one's seed is that of their number,
    as if it had never been interrupted."""
    if not document.turns or document.last_turn.role != "assistant":
        return 0
    return sum(not is_pending(picture) for picture in document.last_turn.pictures)


def fit_area(width: int, height: int, config: CheckpointConfig) -> tuple[int, int]:
    """Returns the size at which the model sees or draws a picture of this size: no side above its training size.

    The proportions are kept down to MIN_SIDE; sides are multiples of the DiT's and VAE's grid.
    """
    from duogen_core.vae import fit_size

    largest = max(config.picture.max_side, MIN_SIDE)
    scale = min(1.0, largest / max(width, height))
    return fit_size(*(max(MIN_SIDE, math.floor(side * scale + 0.5)) for side in (width, height)), config.picture.step)


def picture_size(document: Document, config: CheckpointConfig, size: tuple[int, int] | None = None) -> tuple[int, int]:
    """Returns (width, height) of the next picture: as asked for, else as the last picture, else the model's own."""
    if size is not None:
        from duogen_core.vae import fit_size

        return fit_size(*size, config.picture.step)
    pictures = document.pictures
    return fit_area(*(pictures[-1].size if pictures else (config.picture.width, config.picture.height)), config)


def reference_pixels(picture: Picture, config: CheckpointConfig) -> np.ndarray:
    """Returns the picture as the DiT sees it, uint8 [H, W, 3]. The Document keeps the original."""
    size = fit_area(*picture.size, config)
    if size == picture.size:
        return picture.pixels
    from PIL import Image

    return np.asarray(Image.fromarray(picture.pixels).resize(size, Image.Resampling.LANCZOS))


# ---------------------------------------------------------------- sampling


def working_dtype(dit: nn.Module) -> torch.dtype:
    """Returns the type a DiT computes in. Its matrices may be stored in fewer bits; its norms never are."""
    return next(weight.dtype for weight in dit.parameters() if weight.ndim == 1)


def working_device(dit: nn.Module) -> torch.device:
    """Returns the device a DiT computes on. Its matrices may lie elsewhere until they are used; its norms do not."""
    return next(weight.device for weight in dit.parameters() if weight.ndim == 1)


def picture_states(
    mllm: Mllm, connector: Connector, document: Document, cancelled: Callable[[], bool] | None = None
) -> ContextStates:
    """Returns the DiT's text condition for the picture that is due in the open answer. Raises Cancelled.

    A model that was taught <BOV> gives the states of the whole conversation. One that is only prompted for its markers
    was never trained with a DiT: conversations mean nothing to that. So what it wants drawn (`picture_prompt`) goes in
    as published weights read it, a prompt by itself, with the published negative prompt for guidance's other branch.
    """
    from duogen_core.mllm.base import ContextStates
    from duogen_core.mllm.prompt_states import PADDED, default_negative_prompt, prompt_states

    if mllm.prompted is None:
        return mllm.encode(document, connector, cancelled)
    prompts = picture_prompt(document), default_negative_prompt()
    pad_to = None if mllm.tokenizer.pad_token_id is None else PADDED
    positive, negative = (prompt_states(mllm, connector, prompt, pad_to, cancelled=cancelled) for prompt in prompts)
    no_text = (0,) * len(document.pictures)  # the prompt tells of the new picture alone, not of the earlier ones
    return ContextStates(positive, (0, len(positive)), no_text, negative_prompt=negative)


@dataclass(frozen=True)
class Control:
    """A ControlNet, and the control image that it is shown: white outlines on black, of any size."""

    net: PackedControlNet
    picture: Picture
    strength: float = 1.0


def control_pixels(picture: Picture, width: int, height: int) -> np.ndarray:
    """Returns a control image as large as the image to be drawn, uint8 [height, width, 3]: its middle, in that shape,
    as ComfyUI crops it. Thin lines stay lines: made smaller, each pixel is the mean of those it covers."""
    from PIL import Image

    image = Image.fromarray(picture.pixels)
    wide, new = image.width / image.height, width / height
    left = round(image.width * (1 - new / wide) / 2) if wide > new else 0
    top = round(image.height * (1 - wide / new) / 2) if wide < new else 0
    image = image.crop((left, top, image.width - left, image.height - top))
    smaller = image.width > width or image.height > height
    how = Image.Resampling.BOX if smaller else Image.Resampling.BILINEAR
    return np.array(image if image.size == (width, height) else image.resize((width, height), how))


class Painter(Protocol):
    """Draws the next picture of a growing Document, and sees all before it. `PictureSampler` is this project's own."""

    name: str  # for the document's record

    def draw(
        self,
        document: Document,
        seed: int,
        on_step: Callable[[int, int, Tensor], None],
        cancelled: Callable[[], bool] | None,
        due: Picture | None,
    ) -> np.ndarray:
        """uint8 RGB [H, W, 3]. document: up to the place of the picture; `picture_prompt(document)` is what it shows.
        due: the placeholder of one that was planned, whose meta may name a size and what it looks at
        (`duogen_core.document.pending`). Raises Cancelled."""

    def clear(self) -> None:
        """Forgets what is cached; it costs time only."""


class PictureSampler:
    """Samples the next picture of a growing Document and caches what later pictures need again.

    Cached: the latent of every picture seen so far, and for a frame_causal DiT the keys and values of all clean frames,
    which serve every step, both guidance branches and all later pictures.
    """

    def __init__(self, components: Components, settings: Settings) -> None:
        from duogen_core.dit.frame_cache import FrameCache

        self.components, self.settings, self.name = components, settings, components.name
        causal = components.dit.config.attention == "frame_causal"
        self.cache = FrameCache() if causal else None
        self._latents: dict[str, Tensor] = {}

    def clear(self) -> None:
        """Forgets what is cached; it costs time only."""
        self._latents.clear()
        if self.cache is not None:
            self.cache.clear()

    def latent(self, picture: Picture) -> Tensor:
        """[1, channels, h, w], normalised, of one picture of the context."""
        if picture.digest not in self._latents:
            pixels = reference_pixels(picture, self.components.config)
            self.components.use("vae")
            self._latents[picture.digest] = self.components.vae.encode(pixels.copy())  # torch wants writable memory
        return self._latents[picture.digest]

    def draw(
        self,
        document: Document,
        seed: int,
        on_step: Callable[[int, int, Tensor], None] = lambda *_: None,
        cancelled: Callable[[], bool] | None = None,
        due: Picture | None = None,
        control: Control | None = None,
    ) -> np.ndarray:
        """uint8 [H, W, 3]: the picture that comes next in the assistant's open turn, in the size it was planned in."""
        from duogen_core.sampling import initial_noise, sample_picture, sigmas

        settings, own = self.settings, self.components.config.sampling
        width, height = picture_size(document, self.components.config, planned_size(due) or settings.size)
        shape = self.components.vae.latent_shape(width, height)
        prepared = self.prepare(document, shape, cancelled, **({} if control is None else {"control": control}))
        latent = sample_picture(
            prepared.velocities,
            initial_noise(seed, shape).to(prepared.device),
            sigmas(settings.steps, settings.shift, own.schedule),
            guidance=settings.guidance,
            solver=own.solver,
            on_step=on_step,
            cancelled=cancelled,
        )
        del prepared  # the VAE's largest tensors find the text's keys and values gone: up to MAX_TEXT_BYTES each
        self.components.use("vae")
        return self.components.vae.decode_pixels(latent)

    def prepare(
        self,
        document: Document,
        shape: Sequence[int],
        cancelled: Callable[[], bool] | None = None,
        control: Control | None = None,
    ) -> Prepared | ControlledSteps:
        """Reads the conversation and looks at its pictures: what no step of the next one, a latent of `shape`, changes.

        It gives guidance's two velocities, or one where guidance is off or its branches would be equal.
        """
        from duogen_core.devices import move

        components = self.components
        hint = None
        if control is not None and control.strength != 0:
            control.net.check_fits(components.dit)
            components.use("vae")
            height, width = (cells * components.vae.spatial for cells in shape[-2:])
            hint = components.vae.encode(control_pixels(control.picture, width, height))
        components.use("mllm")
        states = picture_states(components.mllm, components.connector, document, cancelled)
        latents = [self.latent(picture) for picture in document.pictures]
        components.use("dit")
        device, dtype = working_device(components.dit), working_dtype(components.dit)
        positive = states.positive()[None].to(device, dtype)
        texts: list[tuple[Tensor, tuple[int, int] | None]] = [(positive, None)]
        negative = None if self.settings.guidance == 1.0 else states.negative()
        if negative is not None:
            text, hidden = negative
            # One tensor for both branches where they differ only in what is hidden: its keys are made once.
            texts.append((positive if text is states.positive() else text[None].to(device, dtype), hidden))
        references = [latent.to(device, dtype) for latent in latents]
        prepared = components.dit.prepare(
            references, texts, shape, frame_ends=states.frame_ends, cache=self.cache, refresh=self.settings.refresh
        )
        if hint is None:
            return prepared
        net, layers = move(control.net, device, dtype), components.dit.config.num_layers
        return net.prepare(hint.to(device, dtype), texts, layers, shape).steps_of(prepared, control.strength)
