"""How an answer is going: what DuoGen Interleave and the loop hand from one step to the next, as plain JSON text.

Also the small languages of their widgets: seeds of single pictures ("3: 1234"), which pictures to look at ("last 2").
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from duogen_core import pipeline
from duogen_core.errors import DuoGenError

from . import planned_answer as plan

if TYPE_CHECKING:
    from collections.abc import Mapping

    from duogen_core.document import Document

ALL = "all"
UNLIMITED = 1000  # pictures


@dataclass(frozen=True)
class Step:
    """The settings of one answer, and how far it has come. All plain values: nodes carry it as a string."""

    seed: int
    max_images: int
    tokens_left: int
    steps: int | None = None  # None: whoever draws knows
    cfg: float | None = None
    shift: float | None = None
    sampler_name: str = "euler"
    scheduler: str = "simple"
    width: int = 0
    height: int = 0
    size_like: int = 0  # 0: the last picture; n: picture n of the context
    temperature: float = 0.0
    references: str = ALL
    seeds: str = ""
    drawn: int = 0
    first_picture: int = 0  # pictures of the context before this answer
    first_text: int = 0  # characters of the answer that were there before

    @property
    def picture_seed(self) -> int:
        """Of the picture that is due: the user's own, else one made of the answer's seed."""
        own = parse_seeds(self.seeds)
        return own.get(self.drawn + 1, pipeline.picture_seed(self.seed, self.drawn))

    @property
    def write_seed(self) -> int:
        """Of the text. Without temperature it decides nothing, and a fixed one lets the cache see that."""
        return self.seed if self.temperature else 0

    def after_text(self, tokens: int) -> Step:
        return replace(self, tokens_left=max(0, self.tokens_left - tokens))

    def after_picture(self) -> Step:
        return replace(self, drawn=self.drawn + 1)

    def ending(self, stop: str) -> str | None:
        """Why the answer ends here, after a text that stopped for `stop`; None: a picture is due."""
        if stop != "picture":
            return stop
        return "max_images" if self.drawn >= self.max_images else None

    def record(self, name: str | None, stop: str) -> dict[str, Any]:
        """`generation` of the answer, without what nobody here knows."""
        settings = pipeline.Settings(
            seed=self.seed, steps=self.steps, guidance=self.cfg, shift=self.shift, temperature=self.temperature
        )
        record = pipeline.generation_record(name, settings, stop)
        return {key: value for key, value in record.items() if value is not None}

    def finished(self, context: Document, name: str | None, stop: str) -> Document:
        """The context with how its answer was made; of a plan, what was drawn of it."""
        if plan.pending_index(context) is not None:
            context = plan.before_next_picture(context)
        if context.last_turn.role == "assistant":
            context = pipeline.with_caption(plan.with_planned_stop(context, None), "")
        return context.replace_generation(**self.record(name, stop))

    def written(self, context: Document) -> str:
        return context.text[self.first_text :]

    def to_text(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Step:
        return cls(**json.loads(text))


def begin(context: Document, **settings: Any) -> Step:
    """The first step of an answer to `context`."""
    pipeline.check_request(context)
    answering = context.last_turn.role == "assistant"
    step = Step(first_picture=len(context.pictures), first_text=len(context.text) if answering else 0, **settings)
    parse_seeds(step.seeds)
    return step


def parse_seeds(text: str) -> dict[int, int]:
    """ "3: 1234, 5: 99" -> {3: 1234, 5: 99}; pictures count from 1."""
    seeds = {}
    for entry in filter(None, (piece.strip() for piece in re.split(r"[,;\n]", text))):
        found = re.fullmatch(r"(\d+)\s*[:=]\s*(\d+)", entry)
        if not found or int(found[1]) < 1 or int(found[2]) > pipeline.MAX_SEED:
            raise DuoGenError(
                f"The seeds say {entry!r}; expected the number of a picture and its seed, such as 3: 1234, with "
                "commas between several."
            )
        seeds[int(found[1])] = int(found[2])
    return seeds


def for_next_picture(step: Step, seeds: Mapping[int, int], max_images: int) -> Step:
    """The step with what concerns the picture that comes next, and no other: its own seed, and whether it is beyond
    the limit. A step in the loop is an input of everything that draws its picture; another limit, or the seed of a
    later picture, must not change it."""
    own = seeds.get(step.drawn + 1)
    beyond = step.drawn >= max_images
    return replace(step, seeds="" if own is None else f"{step.drawn + 1}: {own}", max_images=0 if beyond else UNLIMITED)


def choose(which: str, count: int) -> list[int]:
    """Which of `count` pictures, as indexes from 0 in order: "all", "none", or a list such as "1, 3-4, last 2"."""
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
                f"The pictures to look at are given as {which!r}; write all, none, last 2, or numbers such as 1, 3-4, "
                "with commas between several."
            )
        first, end = int(found[1]), int(found[2] or found[1])
        if not 1 <= first <= end:
            raise DuoGenError(f"The pictures to look at are given as {which!r}, but pictures count from 1 upwards.")
        chosen.update(range(first - 1, min(end, count)))  # a number beyond the last picture: it is still to come
    return sorted(chosen)
