"""How an answer is going: its settings and progress, what it has planned, and what is to be drawn next.

`Step` is what DuoGen Interleave and the loop pass from one step to the next, as plain JSON text. Beside it stand the
small languages of their widgets: seeds of single images ("3: 1234"), which images to look at ("last 2").

Plan first, draw later: an answer whose text is written at once, with placeholders for its images. A placeholder is a
white image of the size the real one will have, with meta {"pending": true} and the caption that a prompted model gave:
so the language model sees where an image stands, and later tokens keep their positions when it is drawn. The answer's
turn keeps in its meta {"planned": stop reason} why the text ended. Every stage works on `before_next_picture(context)`,
which is the context itself where nothing is planned; so the same nodes draw both kinds of answers.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from duogen_core import pipeline
from duogen_core.document import Picture
from duogen_core.errors import DuoGenError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from duogen_core.document import Document, Turn

ALL = "all"
UNLIMITED = 1000  # images


@dataclass(frozen=True)
class Step:
    """The settings of one answer, and how far it has come. All plain values: nodes carry it as a string."""

    seed: int
    max_images: int
    tokens_left: int
    steps: int | None = None  # None: set on the sampler in the user's own graph
    cfg: float | None = None
    shift: float | None = None
    sampler_name: str = "euler"
    scheduler: str = "simple"
    width: int = 0
    height: int = 0
    size_like: int = 0  # 0: the last image; n: image n of the context
    temperature: float = 0.0
    references: str = ALL
    seeds: str = ""
    drawn: int = 0
    first_picture: int = 0  # images of the context before this answer
    first_text: int = 0  # characters of the answer that were there before
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def sampling(self) -> dict[str, Any]:
        """How the next words are chosen, as inputs of DuoGen Write Text; what does nothing is left out of the new ones,
        so that ComfyUI's cache knows the nodes of old workflows again."""
        chosen = {"temperature": self.temperature, "top_p": self.top_p}
        for name, nothing in (("top_k", 0), ("min_p", 0.0), ("repetition_penalty", 1.0)):
            if getattr(self, name) != nothing:
                chosen[name] = getattr(self, name)
        return chosen

    @property
    def picture_seed(self) -> int:
        """The seed of the image that is due: the user's own, else one derived from the answer's seed."""
        own = parse_seeds(self.seeds)
        return own.get(self.drawn + 1, pipeline.picture_seed(self.seed, self.drawn))

    @property
    def write_seed(self) -> int:
        """The seed of the text. At temperature 0 it changes nothing, so it is fixed, for ComfyUI's cache."""
        return self.seed if self.temperature else 0

    def after_text(self, tokens: int) -> Step:
        return replace(self, tokens_left=max(0, self.tokens_left - tokens))

    def after_picture(self) -> Step:
        return replace(self, drawn=self.drawn + 1)

    def ending(self, stop: str) -> str | None:
        """Why the answer ends here, after a text that stopped for `stop`; None: an image is due."""
        if stop != "picture":
            return stop
        return "max_images" if self.drawn >= self.max_images else None

    def record(self, name: str | None, stop: str) -> dict[str, Any]:
        """The document's `generation`: how the answer was made, as far as it is known here."""
        settings = pipeline.Settings(
            seed=self.seed, steps=self.steps, guidance=self.cfg, shift=self.shift, temperature=self.temperature
        )
        record = pipeline.generation_record(name, settings, stop)
        return {key: value for key, value in record.items() if value is not None}

    def finished(self, context: Document, name: str | None, stop: str) -> Document:
        """The context with a record of how its answer was made; placeholders that were not drawn are left out."""
        if pending_index(context) is not None:
            context = before_next_picture(context)
        if context.last_turn.role == "assistant":
            context = pipeline.with_caption(with_planned_stop(context, None), "")
        return context.replace_generation(**self.record(name, stop))

    def written(self, context: Document) -> str:
        return context.text[self.first_text :]

    def to_text(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Step:
        return cls(**json.loads(text))


def begin(context: Document, **settings: Any) -> Step:
    """Returns the first step of an answer to `context`."""
    pipeline.check_request(context)
    answering = context.last_turn.role == "assistant"
    step = Step(first_picture=len(context.pictures), first_text=len(context.text) if answering else 0, **settings)
    parse_seeds(step.seeds)
    return step


def parse_seeds(text: str) -> dict[int, int]:
    """ "3: 1234, 5: 99" -> {3: 1234, 5: 99}; images count from 1."""
    seeds = {}
    for entry in filter(None, (piece.strip() for piece in re.split(r"[,;\n]", text))):
        found = re.fullmatch(r"(\d+)\s*[:=]\s*(\d+)", entry)
        if not found or int(found[1]) < 1 or int(found[2]) > pipeline.MAX_SEED:
            raise DuoGenError(
                f"The seeds say {entry!r}; expected the number of an image and its seed, such as 3: 1234, with "
                "commas between several."
            )
        seeds[int(found[1])] = int(found[2])
    return seeds


def for_next_picture(step: Step, seeds: Mapping[int, int], max_images: int) -> Step:
    """Returns the step with only what concerns the next image: its own seed, and whether it is beyond the limit.

    A step in the loop is an input of every node that draws its image, and inputs are what ComfyUI's cache goes by:
    another limit, or the seed of a later image, must not change it.
    """
    own = seeds.get(step.drawn + 1)
    beyond = step.drawn >= max_images
    return replace(step, seeds="" if own is None else f"{step.drawn + 1}: {own}", max_images=0 if beyond else UNLIMITED)


def choose(which: str, count: int) -> list[int]:
    """Which of `count` images, as indexes from 0 in order: "all", "none", or a list such as "1, 3-4, last 2"."""
    wanted = which.strip().lower()
    if wanted in ("", ALL):
        return list(range(count))
    if wanted == "none":
        return []
    chosen: set[int] = set()
    for entry in (piece.strip() for piece in wanted.split(",")):
        last = re.fullmatch(r"last(?:\s+(\d+))?", entry)
        found = re.fullmatch(r"(\d+)(?:\s*-\s*(\d+))?", entry)
        if last:
            chosen.update(range(max(0, count - int(last[1] or 1)), count))
            continue
        if not found:
            raise DuoGenError(
                f"The images to look at are given as {which!r}; write all, none, last 2, or numbers such as 1, 3-4, "
                "with commas between several."
            )
        first, end = int(found[1]), int(found[2] or found[1])
        if not 1 <= first <= end:
            raise DuoGenError(f"The images to look at are given as {which!r}, but images count from 1 upwards.")
        chosen.update(range(first - 1, min(end, count)))  # a number beyond the last image is one still to come
    return sorted(chosen)


# ------------------------------------------------------------ planned answers

PENDING, PLANNED = "pending", "planned"


def placeholder(size: tuple[int, int], caption: str = "") -> Picture:
    """Returns what stands where an image of (width, height) will be drawn."""
    meta = {PENDING: True} | ({pipeline.CAPTION: caption} if caption else {})
    return Picture(np.full((size[1], size[0], 3), 255, np.uint8), meta)


def is_pending(part: object) -> bool:
    return isinstance(part, Picture) and bool(part.meta.get(PENDING))


def pending_index(context: Document) -> int | None:
    """Which part of the last turn is the first image still to be drawn."""
    if not context.turns:
        return None
    return next((i for i, part in enumerate(context.last_turn.parts) if is_pending(part)), None)


def before_next_picture(context: Document) -> Document:
    """The context up to the next image: whatever draws it does not know what follows."""
    index = pending_index(context)
    if index is None:
        return context
    parts = context.last_turn.parts
    before = with_last_turn(context, replace(context.last_turn, parts=parts[:index]))
    return pipeline.with_caption(before, parts[index].meta.get(pipeline.CAPTION, ""))


def with_placeholder_filled(context: Document, picture: Picture) -> Document:
    """The context with this image in the place of its first placeholder."""
    parts = list(context.last_turn.parts)
    parts[pending_index(context)] = picture
    return with_last_turn(context, replace(context.last_turn, parts=tuple(parts)))


def planned_stop(context: Document) -> str | None:
    """Why the planned text ended; None where it is to be written on."""
    if not context.turns or context.last_turn.role != "assistant":
        return None
    return context.last_turn.meta.get(PLANNED)


def with_planned_stop(context: Document, stop: str | None) -> Document:
    meta = {key: value for key, value in context.last_turn.meta.items() if key != PLANNED}
    return with_last_turn(context, replace(context.last_turn, meta={**meta, PLANNED: stop} if stop else meta))


def with_last_turn(context: Document, turn: Turn) -> Document:
    return replace(context, turns=(*context.turns[:-1], turn))


def last_answer(document: Document) -> Document:
    """The last turn alone; an error where it is no answer."""
    if not document.turns or document.last_turn.role != "assistant":
        raise DuoGenError("The context holds no answer yet; connect the context that comes out of DuoGen Interleave.")
    return replace(document, turns=document.turns[-1:])


def picture_title(hidden: Any) -> str:
    """Which image of how many the running node draws, as the step that put it in knows.

    It is looked up there rather than passed as an input: inputs are what ComfyUI's cache goes by, and a changed limit
    must not draw a finished image again.
    """
    parent = hidden.dynprompt and hidden.dynprompt.get_parent_node_id(hidden.unique_id)
    inputs = hidden.dynprompt.get_node(parent)["inputs"] if parent else {}
    if "duogen_step" not in inputs:
        return "Image"
    step = Step.from_text(inputs["duogen_step"])
    return f"Image {step.drawn + 1} of at most {step.max_images}"


def whole_answer(context: Document) -> str:
    """The last turn in a few plain lines."""
    pieces, count = [], 0
    for part in context.last_turn.parts:
        if isinstance(part, Picture):
            count += 1
            pieces.append(f"\n\n[image {count}]\n\n")
        else:
            pieces.append(part.text)
    return "".join(pieces).strip()
