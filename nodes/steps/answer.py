"""How an answer is going: its settings and progress, what it has planned, and what is to be drawn next.

`Step` is what DuoGen Interleave and the loop pass from one step to the next, as plain JSON text. Beside it stand the
small languages of their widgets: seeds of single images ("3: 1234"), which images to look at ("last 2").

An answer that was planned first holds placeholders for its images (`duogen_core.document.pending`).
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from duogen_core import picture_sampling, pipeline
from duogen_core.document import Picture, is_text, pending
from duogen_core.errors import DuoGenError
from duogen_core.settings import MAX_SEED, Settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from duogen_core.document import Document

ALL, PLANNED = "all", "planned"
UNLIMITED = 1000  # images
MAX_GIVEN = 20_000  # characters of one given text
FIRST_AND_LAST = "1, last 2"  # what "planned" means for an image without a plan


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
    before: int = 0  # images of this answer that are there already, where it is continued
    given: str = ""  # texts and seeds that stand fixed (parse_given)

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
        """The seed of the image that is due: the one it is kept with, the user's own, else one derived from the
        answer's seed."""
        number = self.drawn + 1
        kept = parse_given(self.given).get(number, {}).get("seed")
        own = parse_seeds(self.seeds).get(number) if kept is None else kept
        return self.derived_seed if own is None else own

    @property
    def derived_seed(self) -> int:
        return picture_sampling.picture_seed(self.seed, self.before + self.drawn)

    @property
    def write_seed(self) -> int:
        """The seed of the text. At temperature 0 it changes nothing, so it is fixed, for ComfyUI's cache."""
        return self.seed if self.temperature else 0

    def given_texts(self, *, whole: bool) -> dict[str, str]:
        """What DuoGen Write Text gets of `given`, counted from the text it writes; {} for nothing, so that ComfyUI's
        cache knows the nodes of answers without it again.

        whole: it writes the whole answer; else the next text alone, because others must not change its inputs."""
        texts = {
            number - self.drawn: {key: value for key, value in entry.items() if key in ("text", "caption", "end")}
            for number, entry in parse_given(self.given).items()
            if "text" in entry and (number > self.drawn if whole else number == self.drawn + 1)
        }
        return {"given": json.dumps(texts)} if texts else {}

    def after_text(self, tokens: int) -> Step:
        return replace(self, tokens_left=max(0, self.tokens_left - tokens))

    def after_picture(self) -> Step:
        return replace(self, drawn=self.drawn + 1)

    def continuing(self, context: Document) -> Step:
        """Of an answer that gave way to a plan (`pipeline.may_plan_anew`), nothing is drawn yet."""
        if picture_sampling.drawn_before(context) >= self.before + self.drawn:
            return self
        return replace(self, drawn=0, before=0, first_text=0, max_images=max(1, self.max_images))

    def ending(self, stop: str) -> str | None:
        """Why the answer ends here, after a text that stopped for `stop`; None: an image is due."""
        if stop != "picture":
            return stop
        return "max_images" if self.drawn >= self.max_images else None

    def record(self, name: str | None, stop: str) -> dict[str, Any]:
        """The document's `generation`: how the answer was made, as far as it is known here."""
        settings = Settings(
            seed=self.seed, steps=self.steps, guidance=self.cfg, shift=self.shift, temperature=self.temperature
        )
        record = pipeline.generation_record(name, settings, stop)
        record |= {"images_before": self.before or None}  # from where the viewer counts, as `seeds` does
        return {key: value for key, value in record.items() if value is not None}

    def finished(self, context: Document, name: str | None, stop: str) -> Document:
        """The context with a record of how its answer was made; placeholders that were not drawn are left out."""
        return pending.without_pending(context).replace_generation(**self.record(name, stop))

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
    # Of a planned answer the text is there already, and the images to be drawn have their places: they are its own.
    planned = pending.pending_index(context) is not None
    step = Step(
        first_picture=len(pending.before_next_picture(context).pictures),
        first_text=len(context.text) if context.last_turn.role == "assistant" and not planned else 0,
        before=picture_sampling.drawn_before(context),
        **settings,
    )
    parse_seeds(step.seeds)
    parse_given(step.given)
    return step


def parse_seeds(text: str) -> dict[int, int]:
    """ "3: 1234, 5: 99" -> {3: 1234, 5: 99}; images count from 1."""
    seeds = {}
    for entry in filter(None, (piece.strip() for piece in re.split(r"[,;\n]", text))):
        found = re.fullmatch(r"(\d+)\s*[:=]\s*(\d+)", entry)
        if not found or int(found[1]) < 1 or int(found[2]) > MAX_SEED:
            raise DuoGenError(
                f"The seeds say {entry!r}; expected the number of an image and its seed, such as 3: 1234, with "
                "commas between several."
            )
        seeds[int(found[1])] = int(found[2])
    return seeds


def parse_given(text: str) -> dict[int, dict[str, Any]]:
    """What is not left to the models, as the viewer's Keep and Edit write it:

        {"2": {"text": "…", "seed": 7, "caption": "…", "end": true, "edited": true}}

    Images count as in `seeds`. text: what stands before image 2, in the place of what would be written; after the last
    image, under the next number, what the answer closes with. seed: the image's. caption: what its painter reads in
    the place of the text. end: the answer ends there. edited: for the viewer, by whom the text is. All may be missing.
    """
    if not text.strip():
        return {}
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        entries = None
    if not isinstance(entries, dict):
        raise DuoGenError(
            'What is given is no JSON object; expected the number of an image and what stays, such as {"2": {"text": '
            '"Now the roof.", "seed": 7}}. Clear it, or undo the change.'
        )
    kinds = {"text": str, "caption": str, "seed": int, "end": bool, "edited": bool}
    found: dict[int, dict[str, Any]] = {}
    for number, entry in entries.items():
        if not re.fullmatch(r"[1-9]\d{0,3}", number) or not isinstance(entry, dict):
            raise DuoGenError(
                f"What is given names {number!r:.40}; expected the number of an image, such as 2, and an object."
            )
        for key, value in entry.items():
            right = type(value) is kinds.get(key) and (key != "seed" or 0 <= value <= MAX_SEED)
            if not right or (isinstance(value, str) and (len(value) > MAX_GIVEN or not is_text(value))):
                raise DuoGenError(
                    f"What is given for image {number} has {key!r:.40}: {value!r:.40}; expected text and caption (at "
                    f"most {MAX_GIVEN} characters), a seed, and whether the answer ends there."
                )
        found[int(number)] = entry
    return found


def for_next_picture(
    step: Step, seeds: Mapping[int, int], max_images: int, given: Mapping[int, Mapping[str, Any]] = MappingProxyType({})
) -> Step:
    """Returns the step with only what concerns the next image: its own seed, its text, whether it is beyond the limit.

    A step in the loop is an input of every node that draws its image, and inputs are what ComfyUI's cache goes by:
    another limit, or the seed of a later image, must not change it; nor must a seed that is written down as it was.
    """
    number = step.drawn + 1
    entry = dict(given.get(number, {}))
    own = entry.pop("seed", seeds.get(number))
    entry.pop("edited", None)
    return replace(
        step,
        seeds="" if own in (None, step.derived_seed) else f"{number}: {own}",
        given=json.dumps({number: entry}) if entry else "",
        max_images=0 if step.drawn >= max_images else UNLIMITED,
    )


def chosen(which: str, context: Document) -> list[int]:
    """Which images of the conversation the next one looks at; "planned": those that its plan says."""
    due, count = pending.pending_picture(context), len(pending.before_next_picture(context).pictures)
    planned = pending.looks_at(due)
    return choose(which, count, None if planned is None else [number - 1 for number in planned])


def choose(which: str, count: int, planned: Sequence[int] | None = None) -> list[int]:
    """Which of `count` images, as indexes from 0 in order: "all", "none", or a list such as "1, 3-4, last 2, planned".

    planned: what the plan of the next image says; None where nothing does.
    """
    wanted = which.strip().lower()
    if wanted in ("", ALL):
        return list(range(count))
    if wanted == "none":
        return []
    chosen: set[int] = set()
    for entry in (piece.strip() for piece in wanted.split(",")):
        if entry == PLANNED:
            seen = choose(FIRST_AND_LAST, count) if planned is None else planned
            chosen.update(index for index in seen if 0 <= index < count)
            continue
        last = re.fullmatch(r"last(?:\s+(\d+))?", entry)
        found = re.fullmatch(r"(\d+)(?:\s*-\s*(\d+))?", entry)
        if last:
            chosen.update(range(max(0, count - int(last[1] or 1)), count))
            continue
        if not found:
            raise DuoGenError(
                f"The images to look at are given as {which!r}; write all, none, planned, last 2, or numbers "
                "such as 1, 3-4, with commas between several."
            )
        first, end = int(found[1]), int(found[2] or found[1])
        if not 1 <= first <= end:
            raise DuoGenError(f"The images to look at are given as {which!r}, but images count from 1 upwards.")
        chosen.update(range(first - 1, min(end, count)))  # a number beyond the last image is one still to come
    return sorted(chosen)


def due_part(context: Document) -> Document:
    """Returns a planned answer up to the image that is due, its place included.

    What draws an image has this as its input, and inputs are what ComfyUI's cache goes by: a change of the plan further
    on must not draw it again. The plan's cast stays, which a critic asks for.
    """
    from duogen_core.planning.as_document import PLAN

    turn = context.last_turn
    until = pending.pending_index(context) + 1
    plan = turn.meta.get(PLAN)
    meta = {PLAN: {"cast": plan["cast"], "parts": []}} if isinstance(plan, dict) and plan.get("cast") else {}
    return pending.with_last_turn(context, replace(turn, parts=turn.parts[:until], meta=meta))


def last_answer(document: Document) -> Document:
    """The last turn alone; an error where it is no answer."""
    if not document.turns or document.last_turn.role != "assistant":
        raise DuoGenError("The context holds no answer yet; connect the context that comes out of DuoGen Interleave.")
    return replace(document, turns=document.turns[-1:])


def picture_numbers(hidden: Any) -> dict[str, int]:
    """Which image of how many the running node draws, as the step that put it in knows: {"image": 2, "of": 5}, or {}.

    It is looked up there rather than passed as an input: inputs are what ComfyUI's cache goes by, and a changed limit
    must not draw a finished image again.
    """
    parent = hidden.dynprompt and hidden.dynprompt.get_parent_node_id(hidden.unique_id)
    inputs = hidden.dynprompt.get_node(parent)["inputs"] if parent else {}
    if "duogen_step" not in inputs:
        return {}
    step = Step.from_text(inputs["duogen_step"])
    return {"image": step.drawn + 1, "of": step.max_images}


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
