"""The loop: write, draw, look, write on (DuoGen, arXiv 2602.00508, inference).

In: Components and a Document that ends with a user turn, or with an assistant turn to be continued.
Out: the Document with the assistant's turn grown by texts and pictures, and `generation` filled. The same settings
and seed give the same Document, byte for byte. Between two pictures everything is a pure function of the Document;
one picture is `picture_sampling`'s. The small functions of both are also what the ComfyUI nodes are made of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from duogen_core.checkpoint import Components
from duogen_core.document import Document, Picture, Text
from duogen_core.document.pending import (
    SIZE,
    before_next_picture,
    looks_at,
    pending_picture,
    placeholder,
    planned_size,
    planned_stop,
    with_caption,
    without_pending,
)
from duogen_core.errors import Cancelled, DuoGenError
from duogen_core.out_of_memory import retry as retry_out_of_memory
from duogen_core.out_of_memory import warn, without_repeats
from duogen_core.picture_sampling import (
    Control,
    Painter,
    PictureSampler,
    asked_of,
    drawn_before,
    picture_seed,
    picture_size,
    redraw_request,
    with_picture,
)
from duogen_core.review import TRIES, Critic, Try, best, draw_reviewed, record
from duogen_core.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

    from duogen_core.mllm.base import Continuation, Mllm

PLAN_INSTEAD = "Models that do so write better answers when they plan first."


def _nothing(*_: Any) -> None:
    pass


@dataclass(frozen=True)
class Callbacks:
    """Called while an answer grows. `k` counts the pictures of this answer from 0."""

    on_token: Callable[[str], None] = _nothing  # a piece of text
    on_picture_step: Callable[[int, int, int, Tensor], None] = _nothing  # k, step, steps, guessed latent [1, c, h, w]
    on_picture: Callable[[int, Picture], None] = _nothing
    on_try: Callable[[int, int, Try], None] = _nothing  # k, number of the try from 0, the try; before on_picture
    on_document: Callable[[Document], None] = _nothing  # after every finished text and picture: worth saving
    on_notice: Callable[[str], None] = warn  # a sentence that the user should know of


# ---------------------------------------------------------------- pure steps, shared with the ComfyUI nodes


def with_text(document: Document, text: str) -> Document:
    """Appends what the MLLM wrote; begins the assistant's turn where it has not begun, even when the text is empty."""
    if document.last_turn.role != "assistant":
        document = document.begin_turn("assistant")
    return document.append(Text(text)) if text else document


def bad_marker(mllm: Mllm, document: Document, written: Continuation) -> str:
    """Says what is wrong with the marker at which a prompted model stopped; "" where nothing is.

    Small models copy the marker of their instructions word for word, caption and all, or write markers alone: such an
    answer is better planned first. document: before what was written.
    """
    if mllm.prompted is None or not mllm.prompted.captions or written.stop != "picture":
        return ""
    if not written.caption:
        return "The language model asks for an image without saying what it shows."
    parts = document.last_turn.parts if document.last_turn.role == "assistant" else ()
    if not written.text.strip() and parts and isinstance(parts[-1], Picture):
        return "The language model asks for two images in a row, without a text between them."
    return ""


def may_plan_anew(document: Document) -> bool:
    """Whether an answer may give way to a plan of it, and lose what it has drawn: no more than the one picture that it
    takes to see two markers in a row. Else it goes on as it is."""
    return drawn_before(document) <= 1


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


Replan = Callable[[Document], Document]  # a request -> it with its planned answer


# ---------------------------------------------------------------- the loop


def generate(
    components: Components | None,
    document: Document,
    settings: Settings | None = None,
    callbacks: Callbacks | None = None,
    cancelled: Callable[[], bool] | None = None,
    painter: Painter | None = None,
    critic: Critic | None = None,
    redraws: int = 0,
    replan: Replan | None = None,
    controls: Sequence[Control | None] = (),
) -> Document:
    """Answers the document. A cancelled run returns what was finished, with the stop reason "interrupted".

    Pictures that are pending in its answer are drawn, and where its text was planned to the end nothing is written.
    painter: draws in the place of the components' DiT. components: may be None where nothing is to be written.
    critic: looks at every picture; one that it refuses is drawn again up to `redraws` times, and the best one kept.
    replan: gives the document with a planned answer, for a prompted model whose markers are no good (`bad_marker`).
    controls: for the images of this answer, the first for the first one; None, and past their end: drawn freely. Not
    with a painter.
    """
    watch, how = callbacks and [callbacks], (cancelled, painter, critic, redraws, replan, controls)
    (answer,) = generate_many(components, [document], settings, None, watch, *how)
    return answer


def generate_many(
    components: Components | None,
    documents: Sequence[Document],
    settings: Settings | None = None,
    seeds: Sequence[int] | None = None,
    callbacks: Sequence[Callbacks] | None = None,
    cancelled: Callable[[], bool] | None = None,
    painter: Painter | None = None,
    critic: Critic | None = None,
    redraws: int = 0,
    replan: Replan | None = None,
    controls: Sequence[Control | None] = (),
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
    if components is not None:
        # A warm prefix cache gives the same states up to rounding; starting cold, the same request gives the same
        # bytes.
        components.mllm.clear_cache()
    with torch.inference_mode():
        answers = [
            _Answer(
                components,
                document,
                settings if seeds is None else replace(settings, seed=seeds[index]),
                Callbacks() if callbacks is None else callbacks[index],
                painter,
                critic,
                redraws,
                replan,
                controls,
            )
            for index, document in enumerate(documents)
        ]
        while growing := [answer for answer in answers if answer.stop is None]:
            unwritten = [answer for answer in growing if not answer.take_planned()]
            for answer, written in zip(unwritten, _write(components, unwritten, cancelled)):
                answer.take(written)
            for answer in growing:
                if answer.stop is None and answer.is_due():
                    answer.draw(cancelled, growing)
    return [answer.document for answer in answers]


class _Answer:
    """One answer while it grows."""

    def __init__(
        self,
        components: Components | None,
        document: Document,
        settings: Settings,
        watch: Callbacks,
        painter: Painter | None = None,
        critic: Critic | None = None,
        redraws: int = 0,
        replan: Replan | None = None,
        controls: Sequence[Control | None] = (),
    ) -> None:
        self.controls = controls
        self.components, self.document, self.settings, self.watch = components, document, settings, watch
        self.painter, self.critic, self.redraws = painter or PictureSampler(components, settings), critic, redraws
        self.conversation = painter is None and components.mllm.prompted is None  # what `redraw_request` asks
        self.request, self.replan = document, replan if document.last_turn.role == "user" else None
        self.told = False
        self.texts = without_repeats(watch.on_token)
        self.before = drawn_before(document)
        self.drawn, self.tokens_left = 0, settings.max_new_tokens
        self.stop: str | None = None

    def take_planned(self) -> bool:
        """Whether nothing is to be written now: a pending picture is due, or the text was planned to its end."""
        planned = planned_stop(self.document)
        if pending_picture(self.document) is not None:
            if self.drawn >= self.settings.max_images:
                self._end("max_images")
        elif planned:
            self._end(planned)
        else:
            return False
        return True

    def take(self, written: Continuation) -> None:
        """Appends what was written; ends the answer, unless an image is due."""
        reason = bad_marker(self.components.mllm, self.document, written)
        over = written.stop == "picture" and self.drawn >= self.settings.max_images  # the answer ends here anyway
        if reason and not self.told and not over:
            self.told = True
            anew = self.replan is not None and may_plan_anew(self.document)
            self.watch.on_notice(f"{reason} {'The answer is planned first.' if anew else PLAN_INSTEAD}")
            if anew:
                self._keep(self.replan(self.request))
                self.drawn = 0
                return
        self.tokens_left -= written.tokens
        self.texts = without_repeats(self.watch.on_token)
        self._keep(with_caption(with_text(self.document, written.text), written.caption))
        if written.stop != "picture":
            self._end(written.stop)
        elif over:
            self._end("max_images")

    def is_due(self) -> bool:
        """Whether a picture is to be drawn now. A plan that has none, in the place of a bad marker, is at its end."""
        return planned_stop(self.document) is None or pending_picture(self.document) is not None

    def draw(self, cancelled: Callable[[], bool], beside: Sequence[_Answer]) -> None:
        """Draws the image that is due. beside: all answers that are under way, which have caches too."""
        seed = picture_seed(self.settings.seed, self.before + self.drawn)
        on_step = _counted(self.watch.on_picture_step, self.drawn)
        due, before = pending_picture(self.document), before_next_picture(self.document)
        control = next(iter(self.controls[self.before + self.drawn :]), None)
        how = {} if control is None else {"control": control}  # no part of the Painter protocol

        def draw(seed: int, prompt: str, number: int) -> np.ndarray:
            asked, wanted = before, due
            if prompt:
                asked = redraw_request(before, prompt, number, self.conversation)
            if self.conversation and asked is not before:  # as large as it would be where it belongs
                size = picture_size(before, self.components.config, planned_size(due) or self.settings.size)
                wanted = placeholder(size, "", {SIZE: list(size)})
            run = partial(self.painter.draw, asked, seed, on_step, cancelled, wanted, **how)
            return _retry(self.components, run, beside, f"drawing image {self.drawn + 1}", self.watch.on_notice)

        try:
            if self.critic is None:
                tries, stopped = [Try(Picture(draw(seed, "", 0)), seed, "", None)], False
            else:
                tries, stopped = draw_reviewed(
                    draw, partial(asked_of, before, looks_at=looks_at(due)), self.critic, self.redraws, seed,
                    on_try=partial(self.watch.on_try, self.drawn), say=self.watch.on_notice,
                )  # fmt: skip
        except Cancelled:
            self._end("interrupted")
            return
        kept = tries[best(tries)]
        about = {} if self.critic is None else {TRIES: record(tries)}
        self._keep(with_picture(self.document, kept.picture.pixels, kept.seed, **about))
        self.watch.on_picture(self.drawn, self.document.pictures[len(before.pictures)])
        self.drawn += 1
        if stopped:  # what the tries before it have drawn is finished, and stays
            self._end("interrupted")

    def _keep(self, document: Document) -> None:
        # Whatever ends the run from here on, what is on disk says truly that it was interrupted.
        self.document = self._marked(document, "interrupted")
        self.watch.on_document(self.document)

    def _end(self, stop: str) -> None:
        self.stop = stop
        self.painter.clear()
        # What was planned stays where the run was stopped: it can go on later.
        ended = with_caption(self.document, "") if stop == "interrupted" else without_pending(self.document)
        self.document = self._marked(ended, stop)
        self.watch.on_document(self.document)

    def _marked(self, document: Document, stop: str) -> Document:
        name = self.painter.name if self.components is None else self.components.name
        return document.replace_generation(**generation_record(name, self.settings, stop))


def _write(
    components: Components | None, answers: Sequence[_Answer], cancelled: Callable[[], bool]
) -> Sequence[Continuation]:
    """Lets the MLLM write all of these answers on; where memory runs out, leaner, once."""
    if not answers:
        return []
    if components is None:
        raise DuoGenError("There is no plan to draw: a painter alone cannot write; plan the answer first.")
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
    components: Components | None,
    run: Callable[[], Any],
    answers: Sequence[_Answer],
    what: str,
    say: Callable[[str], None],
) -> Any:
    """Where memory runs out in `run`, frees what all answers have cached, goes leaner, and runs it once more."""

    def leaner() -> str:
        for answer in answers:
            answer.painter.clear()
        return "Memory ran out; trying once more." if components is None else components.go_leaner()

    return retry_out_of_memory(run, what=what, leaner=leaner, say=say)


def _resolved(settings: Settings | None, components: Components | None) -> Settings:
    """With the model's own values, the temperature of its MLLM included: a document's record names it."""
    from duogen_core.mllm.token_sampling import TokenSampling

    if components is None:
        return settings or Settings()
    settings = (settings or Settings()).resolved(components.config)
    if settings.temperature is None:
        settings = replace(settings, temperature=TokenSampling(None).resolved(components.mllm.generation).temperature)
    return settings


def _counted(on_picture_step: Callable[..., None], k: int) -> Callable[[int, int, Tensor], None]:
    return lambda step, steps, latent: on_picture_step(k, step, steps, latent)
