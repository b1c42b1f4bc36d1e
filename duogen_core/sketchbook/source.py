"""What Sketchbook offers to training: an endless source of documents, and what training asks of a world besides.

`Sketchbook`: every case is drawn when it is asked for and is a pure function of its number.
`SketchbookWorld` (training.data.World): task mixtures, examples, cases to score on, probes. The figures are the recipe
of the bundled model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING, Any

from duogen_core.data.sources.base import Limits, Source, stable_hash
from duogen_core.document import Document
from duogen_core.errors import DuoGenError, unknown
from duogen_core.sketchbook.scene import CANVASES
from duogen_core.sketchbook.tasks import CANVAS_WEIGHTS, FAMILIES, WEIGHTS, evaluation_case, outlined, training_case
from duogen_core.sketchbook.tasks.common import Case

# Training, and torch with it, is imported where it is used: `data check` and `data make` read this source without them.
if TYPE_CHECKING:
    from duogen_core.sketchbook.probes import WordProbes
    from duogen_core.training.data import Example


class Sketchbook(Source):
    """families: how often each task comes up, {"guide": 2, "draw": 1}; None: the recipe of the bundled model."""

    endless = drawn = True

    def __init__(self, families: Mapping[str, float] | None = None, limits: Limits | None = None) -> None:
        super().__init__("sketchbook", limits)
        self.families = dict(WEIGHTS if families is None else families)
        for family, weight in self.families.items():
            if family not in FAMILIES:
                raise DuoGenError(unknown("sketchbook: the task family", family, FAMILIES))
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < float("inf"):
                raise DuoGenError(f"sketchbook: the weight of {family} is {weight!r}; expected a number from 0 on.")
        if not any(self.families.values()):
            raise DuoGenError("sketchbook: every family has the weight 0; give at least one of them more.")

    def __len__(self) -> int:
        raise TypeError("Sketchbook is endless")

    def load(self, index: int) -> Document:
        return training_case(Random(f"sketchbook/{index}"), self.families).document

    def label(self, index: int) -> str:
        return f"sketchbook case {index}"

    def index_at(self, seed: int, epoch: int, position: int) -> int:
        return stable_hash(seed, epoch, position)

    def pick(self, seed: int, nth: int, attempt: int = 0, chance: int = 0) -> int:
        return self.index_at(seed, attempt, chance if attempt else nth)

    @staticmethod
    def world() -> SketchbookWorld:
        return SketchbookWorld()

    def identity(self) -> dict[str, Any]:
        return {"kind": "sketchbook", "families": self.families}


# ---------------------------------------------------------------- beyond documents

DRAWN = ("guide", "draw", "edit", "plan")  # answered in <out>/samples by stage 2
WRITTEN = (*DRAWN, "draft", "describe")  # and by stage 1


class SketchbookWorld:
    families = tuple(FAMILIES)
    vision_families = ("plan", "draft", "undrafted", "edit", "edit_chain", "continue")
    probe_weight = 0.5
    mixtures: Mapping[str, Mapping[str, float]] = {
        "stage1": {
            "guide": 0.11,
            "draw": 0.06,
            "edit": 0.10,
            "edit_chain": 0.10,
            "continue": 0.09,
            "plan": 0.07,
            "draft": 0.18,
            "undrafted": 0.05,
            "describe": 0.12,
            "quiz": 0.12,
        },
        # Without the families that draw nothing.
        "stage2": {
            "guide": 0.15,
            "draw": 0.19,
            "edit": 0.16,
            "edit_chain": 0.14,
            "continue": 0.09,
            "plan": 0.09,
            "draft": 0.18,
        },
        # In the outlines of the drawn images (tasks/outlined.py); of the others, half are turned left for right.
        "controlnet": {"outlined": 0.76, "edit": 0.13, "guide": 0.11},
        # Of fine-tuning on other documents. What is most like those is forgotten first: guides, continuing one, and the
        # answer where a thing cannot be drawn (talk), of which descriptions alone would bring five in a run.
        "replay": {
            "guide": 0.28,
            "continue": 0.14,
            "draw": 0.1,
            "edit": 0.12,
            "edit_chain": 0.06,
            "plan": 0.06,
            "draft": 0.08,
            "undrafted": 0.02,
            "describe": 0.06,
            "quiz": 0.02,
            "talk": 0.06,
        },
    }

    def examples(
        self, rng: Random, weights: Mapping[str, float], count: int, vision_families: Sequence[str]
    ) -> list[Example]:
        cases = [training_case(rng, weights) for _ in range(count)]
        return [example_of(case, vision_families, f"{case.family} ({k})") for k, case in enumerate(cases)]

    def evaluation_examples(self, count: int, vision_families: Sequence[str] = ()) -> dict[str, list[Example]]:
        cases = evaluation_cases(count)
        return {family: [example_of(case, vision_families) for case in some] for family, some in cases.items()}

    def drawn_example(self, rng: Random, weights: Mapping[str, float]) -> Example:
        from duogen_core.training.data import Example

        case = drawn_case(rng, weights)
        return Example(case.family, case.document)

    def controlled_example(self, rng: Random, weights: Mapping[str, float]) -> Example:
        from duogen_core.training.data import Example

        family = rng.choices(list(weights), list(weights.values()))[0]
        if family == "outlined":
            case = outlined.sample(rng, canvas=rng.choices(CANVASES, CANVAS_WEIGHTS)[0])
            return Example(family, case.document)
        document = drawn_case(rng, {family: 1.0}).document
        return Example(family, outlined.mirrored(document) if rng.random() < 0.5 else document)

    def ideals(self) -> dict[str, Document]:
        from duogen_core.training.run import rng_for

        return {family: evaluation_case(family, rng_for(0, "samples", family)).document for family in DRAWN}

    def probes(self, tokenizer: Any, layers: int, hidden: int) -> WordProbes:
        from duogen_core.sketchbook.probes import WordProbes

        return WordProbes(tokenizer, layers, hidden)


def example_of(case: Case, vision_families: Sequence[str] = (), name: str = "") -> Example:
    """Returns the case as training reads it.

    Of families that are not vision families only the user's images teach the tower: the drawn ones repeat what their
    text says.
    """
    from duogen_core.training.data import Example

    return Example(name or case.family, case.document, case.family in vision_families, case.family in WRITTEN)


def evaluation_cases(count: int, families: Sequence[str] = tuple(FAMILIES)) -> dict[str, list[Case]]:
    """Returns fixed cases that no training seed draws."""
    from duogen_core.training.run import rng_for

    return {f: [evaluation_case(f, rng_for(0, "mllm evaluation", f, k)) for k in range(count)] for f in families}


def drawn_case(rng: Random, weights: Mapping[str, float]) -> Case:
    """Returns a training case with images of one size, the assistant's after the user's."""
    while True:
        case = training_case(rng, weights)
        pictures = case.document.pictures
        one_size = len({picture.size for picture in pictures}) == 1
        if one_size and any(part in pictures for part in case.document.last_turn.parts):
            return case
