"""The loop: write, draw, look, write on (DuoGen, arXiv 2602.00508, inference).

In: Components and a Document that ends with a user turn, or with an assistant turn to be continued.
Out: the Document with the assistant's turn grown by texts and pictures, and `generation` filled. The same settings
and seed give the same Document, byte for byte. Between two pictures everything is a pure function of the Document,
so the small functions below are also what the ComfyUI nodes are made of.

Every picture of the conversation is a clean latent frame for the next one, the user's included; `reference_pixels`
says at which size. Every picture of an answer has a seed of its own (`picture_seed`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np

from duogen_core.checkpoint import CheckpointConfig, Components
from duogen_core.document import Document, Picture, Text
from duogen_core.errors import Cancelled, DuoGenError
from duogen_core.out_of_memory import retry as retry_out_of_memory
from duogen_core.out_of_memory import warn, without_repeats

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from duogen_core.connector import Connector
    from duogen_core.dit.prepared import Prepared
    from duogen_core.mllm.base import ContextStates, Continuation, Mllm

MIN_SIDE = 32  # two DiT patches, one MLLM token
MAX_SEED = 2**64 - 1
CAPTION = "caption"  # in the meta of an answer that waits for its picture, then in that of the picture


@dataclass(frozen=True)
class Settings:
    """What the user may choose. None: the model's own value (model_index.json)."""

    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    shift: float | None = None
    # An approximation for weights with full attention: earlier images are computed anew in every so many steps.
    refresh: int = 1
    size: tuple[int, int] | None = None  # (width, height); None: as the last picture, else the model's own
    max_images: int = 8
    max_new_tokens: int = 1024  # of text, in the whole answer
    temperature: float | None = 0.0  # this and the next four: None is what the model's generation_config.json says
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    def __post_init__(self) -> None:
        _between("The seed", self.seed, 0, MAX_SEED)
        if self.steps is not None:
            _between("The number of steps", self.steps, 1, 1000)
        if self.guidance is not None:
            _between("The guidance", self.guidance, 0.0, 100.0)
        if self.shift is not None:
            _between("The shift", self.shift, 0.01, 100.0)
        _between("refresh", self.refresh, 1, 1000)
        _between("The limit of images", self.max_images, 0, 1000)
        _between("The limit of tokens", self.max_new_tokens, 1, 1_000_000)
        for what, value, low, high in (
            ("The temperature", self.temperature, 0.0, 10.0),
            ("top_p", self.top_p, 0.001, 1.0),
            ("top_k", self.top_k, 0, 1_000_000),
            ("min_p", self.min_p, 0.0, 1.0),
            ("The repetition penalty", self.repetition_penalty, 0.1, 10.0),
        ):
            if value is not None:
                _between(what, value, low, high)
        for side in self.size or ():
            _between("A side of the image", side, 16, 16384)

    def token_sampling(self) -> dict[str, float | None]:
        """Returns what `Mllm.continue_` takes of it."""
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        return {name: getattr(self, name) for name in names}

    def resolved(self, config: CheckpointConfig) -> Settings:
        """With the model's own values where the user chose none."""
        own = config.sampling
        return replace(
            self,
            steps=own.steps if self.steps is None else self.steps,
            guidance=own.guidance if self.guidance is None else self.guidance,
            shift=own.shift if self.shift is None else self.shift,
        )


def _nothing(*_: Any) -> None:
    pass


@dataclass(frozen=True)
class Callbacks:
    """Called while an answer grows. `k` counts the pictures of this answer from 0."""

    on_token: Callable[[str], None] = _nothing  # a piece of text
    on_picture_step: Callable[[int, int, int, Tensor], None] = _nothing  # k, step, steps, guessed latent [1, 16, h, w]
    on_picture: Callable[[int, Picture], None] = _nothing
    on_document: Callable[[Document], None] = _nothing  # after every finished text and picture: worth saving
    on_notice: Callable[[str], None] = warn  # a sentence that the user should know of


# ---------------------------------------------------------------- pure steps, shared with the ComfyUI nodes


def with_text(document: Document, text: str) -> Document:
    """Appends what the MLLM wrote; begins the assistant's turn where it has not begun, even when the text is empty."""
    if document.last_turn.role != "assistant":
        document = document.begin_turn("assistant")
    return document.append(Text(text)) if text else document


def step_text(document: Document) -> str:
    """Returns the text that the next picture illustrates: what the assistant wrote since its last picture."""
    texts: list[str] = []
    for part in reversed(document.last_turn.parts):
        if isinstance(part, Picture):
            break
        texts.insert(0, part.text)
    return "".join(texts).strip()


def with_caption(document: Document, caption: str) -> Document:
    """Notes the caption of the picture that is due; "" removes it."""
    turn = document.last_turn
    meta = {key: value for key, value in turn.meta.items() if key != CAPTION}
    turn = replace(turn, meta={**meta, CAPTION: caption} if caption else meta)
    return replace(document, turns=(*document.turns[:-1], turn))


def pending_caption(document: Document) -> str:
    """Returns the caption of the picture that is due, where a prompted model gave one, else ""."""
    return str(document.last_turn.meta.get(CAPTION) or "") if document.turns else ""


def picture_prompt(document: Document) -> str:
    """Returns what the next picture shows: its caption, else the text since the last picture, else the request."""
    asked = (turn.text.strip() for turn in reversed(document.turns) if turn.role == "user")
    return pending_caption(document) or step_text(document) or next(filter(None, asked), "")


def with_picture(document: Document, pixels: np.ndarray, seed: int, caption: str = "") -> Document:
    """Appends a drawn picture, which carries its own seed, its step text, and a prompted model's caption.

    By its caption that model finds its own marker again (`duogen_core.mllm.prompted`).
    """
    meta = {"seed": seed, "text": step_text(document)}
    return document.append(Picture(pixels, meta | ({CAPTION: caption} if caption else {})))


def picture_seed(seed: int, k: int) -> int:
    """Returns the seed of picture k (from 0) of an answer: the answer's own for the first, then unlike numbers.

    seed + k would give neighbouring seeds, which people try one after another, the same noise one picture later.
    Below 2^53, so that every program that reads it from a picture's file or a document reads it exactly.
    """
    if k == 0:
        return seed
    return int.from_bytes(blake2b(f"{seed}:{k}".encode(), digest_size=8).digest(), "big") >> 11


def fit_area(width: int, height: int, config: CheckpointConfig) -> tuple[int, int]:
    """Returns the size at which the model sees or draws a picture of this size: no side above its training size.

    The proportions are kept down to MIN_SIDE; sides are multiples of the DiT's and VAE's grid.
    """
    from duogen_core.vae import fit_size

    largest = max(config.picture.max_side, MIN_SIDE)
    scale = min(1.0, largest / max(width, height))
    return fit_size(*(max(MIN_SIDE, math.floor(side * scale + 0.5)) for side in (width, height)))


def picture_size(document: Document, config: CheckpointConfig, size: tuple[int, int] | None = None) -> tuple[int, int]:
    """Returns (width, height) of the next picture: as asked for, else as the last picture, else the model's own."""
    if size is not None:
        from duogen_core.vae import fit_size

        return fit_size(*size)
    pictures = document.pictures
    return fit_area(*(pictures[-1].size if pictures else (config.picture.width, config.picture.height)), config)


def reference_pixels(picture: Picture, config: CheckpointConfig) -> np.ndarray:
    """Returns the picture as the DiT sees it, uint8 [H, W, 3]. The Document keeps the original."""
    size = fit_area(*picture.size, config)
    if size == picture.size:
        return picture.pixels
    from PIL import Image

    return np.asarray(Image.fromarray(picture.pixels).resize(size, Image.Resampling.LANCZOS))


def generation_record(name: str, settings: Settings, stop_reason: str) -> dict[str, Any]:
    """Returns `generation` of the Document; settings are the resolved ones."""
    return {
        "model": name,
        "seed": settings.seed,
        "steps": settings.steps,
        "guidance": settings.guidance,
        "shift": settings.shift,
        "temperature": settings.temperature,
        **({"refresh": settings.refresh} if settings.refresh > 1 else {}),
        "stop_reason": stop_reason,
    }


def check_request(document: Document) -> None:
    """Raises a DuoGenError where there is nothing to answer."""
    if not document.turns:
        raise DuoGenError("The document is empty; begin a user turn with a request.")
    last = document.last_turn
    if last.role == "system":
        raise DuoGenError("The document ends with a system turn; add a user turn with a request.")
    if last.role == "user" and not last.pictures and not last.text.strip():
        raise DuoGenError("The request is empty; write what the answer should be about.")


# ---------------------------------------------------------------- drawing one picture


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


class PictureSampler:
    """Samples the next picture of a growing Document and caches what later pictures need again.

    Cached: the latent of every picture seen so far, and for a frame_causal DiT the keys and values of all clean frames,
    which serve every step, both guidance branches and all later pictures.
    """

    def __init__(self, components: Components, settings: Settings) -> None:
        from duogen_core.dit.frame_cache import FrameCache

        self.components, self.settings = components, settings
        causal = components.dit.config.attention == "frame_causal"
        self.cache = FrameCache() if causal else None
        self._latents: dict[str, Tensor] = {}

    def clear(self) -> None:
        """Forgets what is cached; it costs time only."""
        self._latents.clear()
        if self.cache is not None:
            self.cache.clear()

    def latent(self, picture: Picture) -> Tensor:
        """[1, 16, h, w], normalised, of one picture of the context."""
        if picture.digest not in self._latents:
            pixels = reference_pixels(picture, self.components.config)
            self.components.use("vae")
            self._latents[picture.digest] = self.components.vae.encode(pixels.copy())  # torch wants writable memory
        return self._latents[picture.digest]

    def draw(
        self,
        document: Document,
        seed: int,
        on_step: Callable[[int, int, Tensor], None] = _nothing,
        cancelled: Callable[[], bool] | None = None,
    ) -> np.ndarray:
        """uint8 [H, W, 3]: the picture that comes next in the assistant's open turn."""
        from duogen_core.sampling import initial_noise, sample_picture, sigmas

        settings, own = self.settings, self.components.config.sampling
        width, height = picture_size(document, self.components.config, settings.size)
        shape = (1, 16, height // 8, width // 8)
        prepared = self.prepare(document, shape, cancelled)
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
        self, document: Document, shape: Sequence[int], cancelled: Callable[[], bool] | None = None
    ) -> Prepared:
        """Reads the conversation and looks at its pictures: what no step of the next one, a latent of `shape`, changes.

        It gives guidance's two velocities, or one where guidance is off or its branches would be equal.
        """
        components = self.components
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
        return components.dit.prepare(
            references, texts, shape, frame_ends=states.frame_ends, cache=self.cache, refresh=self.settings.refresh
        )


# ---------------------------------------------------------------- the loop


def generate(
    components: Components,
    document: Document,
    settings: Settings | None = None,
    callbacks: Callbacks | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Document:
    """Answers the document. A cancelled run returns what was finished, with the stop reason "interrupted"."""
    (answer,) = generate_many(components, [document], settings, None, callbacks and [callbacks], cancelled)
    return answer


def generate_many(
    components: Components,
    documents: Sequence[Document],
    settings: Settings | None = None,
    seeds: Sequence[int] | None = None,
    callbacks: Sequence[Callbacks] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> list[Document]:
    """Answers several documents: they are written as one batch until each is due an image or ends, those images are
    drawn one after another, and so on. Each answer is the one that `generate` gives, up to rounding.

    seeds: one for each document, in place of the settings'. callbacks: one for each document.
    """
    import torch

    cancelled = cancelled or (lambda: False)
    for document in documents:
        check_request(document)
    settings = _resolved(settings, components)
    # A warm prefix cache gives the same states up to rounding; starting cold, the same request gives the same bytes.
    components.mllm.clear_cache()
    with torch.inference_mode():
        answers = [
            _Answer(
                components,
                document,
                settings if seeds is None else replace(settings, seed=seeds[index]),
                Callbacks() if callbacks is None else callbacks[index],
            )
            for index, document in enumerate(documents)
        ]
        while growing := [answer for answer in answers if answer.stop is None]:
            for answer, written in zip(growing, _write(components, growing, cancelled)):
                answer.take(written)
            for answer in growing:
                if answer.stop is None:
                    answer.draw(cancelled, growing)
    return [answer.document for answer in answers]


class _Answer:
    """One answer while it grows."""

    def __init__(self, components: Components, document: Document, settings: Settings, watch: Callbacks) -> None:
        self.components, self.document, self.settings, self.watch = components, document, settings, watch
        self.sampler = PictureSampler(components, settings)
        self.texts = without_repeats(watch.on_token)
        self.drawn, self.tokens_left, self.caption = 0, settings.max_new_tokens, ""
        self.stop: str | None = None

    def take(self, written: Continuation) -> None:
        """Appends what was written; ends the answer, unless an image is due."""
        self.tokens_left -= written.tokens
        self.caption, self.texts = written.caption, without_repeats(self.watch.on_token)
        self._keep(with_caption(with_text(self.document, written.text), written.caption))
        if written.stop != "picture":
            self._end(written.stop)
        elif self.drawn >= self.settings.max_images:
            self._end("max_images")

    def draw(self, cancelled: Callable[[], bool], beside: Sequence[_Answer]) -> None:
        """Draws the image that is due. beside: all answers that are under way, which have caches too."""
        seed = picture_seed(self.settings.seed, self.drawn)
        on_step = _counted(self.watch.on_picture_step, self.drawn)
        draw = partial(self.sampler.draw, self.document, seed, on_step, cancelled)
        try:
            pixels = _retry(self.components, draw, beside, f"drawing image {self.drawn + 1}", self.watch.on_notice)
        except Cancelled:
            self._end("interrupted")
            return
        self._keep(with_picture(with_caption(self.document, ""), pixels, seed, self.caption))
        self.watch.on_picture(self.drawn, self.document.pictures[-1])
        self.drawn += 1

    def _keep(self, document: Document) -> None:
        # Whatever ends the run from here on, what is on disk says truly that it was interrupted.
        self.document = self._marked(document, "interrupted")
        self.watch.on_document(self.document)

    def _end(self, stop: str) -> None:
        self.stop = stop
        self.sampler.clear()
        self.document = self._marked(with_caption(self.document, ""), stop)
        self.watch.on_document(self.document)

    def _marked(self, document: Document, stop: str) -> Document:
        return document.replace_generation(**generation_record(self.components.name, self.settings, stop))


def _write(components: Components, answers: Sequence[_Answer], cancelled: Callable[[], bool]) -> Sequence[Continuation]:
    """Lets the MLLM write all of these answers on; where memory runs out, leaner, once."""
    settings = answers[0].settings

    def write() -> Sequence[Continuation]:
        components.use("mllm")
        how = {"connector": components.connector, "cancelled": cancelled, **settings.token_sampling()}
        streams = [answer.texts() for answer in answers]
        if len(answers) == 1:
            (answer,) = answers
            return [
                components.mllm.continue_(
                    answer.document, max_new_tokens=answer.tokens_left, seed=answer.settings.seed,
                    on_token=streams[0], **how,
                )
            ]  # fmt: skip
        return components.mllm.continue_many(
            [answer.document for answer in answers],
            max_new_tokens=[answer.tokens_left for answer in answers],
            seeds=[answer.settings.seed for answer in answers],
            on_token=lambda index, text: streams[index](text),
            **how,
        )

    return _retry(components, write, answers, "writing", answers[0].watch.on_notice)


def _retry(
    components: Components,
    run: Callable[[], Any],
    answers: Sequence[_Answer],
    what: str,
    say: Callable[[str], None],
) -> Any:
    """Where memory runs out in `run`, frees what all answers have cached, goes leaner, and runs it once more."""

    def leaner() -> str:
        for answer in answers:
            answer.sampler.clear()
        return components.go_leaner()

    return retry_out_of_memory(run, what=what, leaner=leaner, say=say)


def _resolved(settings: Settings | None, components: Components) -> Settings:
    """With the model's own values, the temperature of its MLLM included: a document's record names it."""
    from duogen_core.mllm.token_sampling import TokenSampling

    settings = (settings or Settings()).resolved(components.config)
    if settings.temperature is None:
        settings = replace(settings, temperature=TokenSampling(None).resolved(components.mllm.generation).temperature)
    return settings


def _counted(on_picture_step: Callable[..., None], k: int) -> Callable[[int, int, Tensor], None]:
    return lambda step, steps, latent: on_picture_step(k, step, steps, latent)


def _between(what: str, value: float, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise DuoGenError(f"{what} must be between {low:g} and {high:g}, not {value}.")
    if isinstance(low, int) and not isinstance(value, int):
        raise DuoGenError(f"{what} must be a whole number, not {value}.")
