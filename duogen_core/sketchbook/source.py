"""Sketchbook as a source: endless, every case drawn when it is asked for and a pure function of its number."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import TYPE_CHECKING, Any

from duogen_core.data.sources.base import Limits, Source, stable_hash
from duogen_core.document import Document
from duogen_core.errors import DuoGenError, unknown
from duogen_core.sketchbook.tasks import FAMILIES, WEIGHTS, training_case

if TYPE_CHECKING:
    from duogen_core.sketchbook.world import SketchbookWorld


class Sketchbook(Source):
    """families: how often each task comes up, {"guide": 2, "draw": 1}; None: the recipe of the bundled model."""

    endless = True

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

    @staticmethod
    def world() -> SketchbookWorld:
        """What training asks of Sketchbook beyond documents."""
        from duogen_core.sketchbook.world import SketchbookWorld

        return SketchbookWorld()

    def identity(self) -> dict[str, Any]:
        return {"kind": "sketchbook", "families": self.families}
