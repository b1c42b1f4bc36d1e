"""Measures an arm: how well it draws, and how well it writes.

Each figure is a list with one value a case, so that two arms can be compared case by case.

Drawing: single images in the ideal context of their case, and whole answers of the arm's own. In the ideal context text
and earlier images are the case's own, so that only connector and DiT are judged; every arm draws the same images from
the same noise.
Writing: whole answers in which the case's own images take the place of drawn ones, so that only the words are judged
and no DiT is needed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

import numpy as np
import torch

from duogen_core.checkpoint import Components
from duogen_core.document import Document, Picture
from duogen_core.mllm.base import Mllm
from duogen_core.picture_sampling import PictureSampler
from duogen_core.pipeline import generate, with_text
from duogen_core.sampling import initial_noise
from duogen_core.settings import Settings
from duogen_core.sketchbook.evaluation import cases
from duogen_core.sketchbook.scene import COLOURS, PALETTE_RGB
from duogen_core.sketchbook.scores import score, score_pictures
from duogen_core.sketchbook.tasks.common import Case

# ---------------------------------------------------------------- drawing

NOISE = (0.5, 0.75, 0.9, 0.97)  # times at which the velocity is looked at
Values = dict[str, list[float]]
Say = Callable[[int, int], object]  # (done, of how many)


def silent(done: int, of: int) -> None:
    pass


@dataclass(frozen=True)
class Spot:
    """Picture `index` of the ideal answer of a case, and all that comes before it."""

    case: Case
    index: int

    @property
    def ideal(self) -> Picture:
        return self.case.document.last_turn.pictures[self.index]

    @property
    def context(self) -> Document:
        *earlier, turn = self.case.document.turns
        places = [k for k, part in enumerate(turn.parts) if isinstance(part, Picture)]
        return Document((*earlier, replace(turn, parts=turn.parts[: places[self.index]])))


def spots(groups: Sequence[str], count: int, seed: int) -> list[Spot]:
    """`count` a group, taking turns; of an answer with many pictures any one after the first."""
    found = []
    for number, (_, case) in enumerate(cases(count * len(groups), seed, groups)):
        last = len(case.document.last_turn.pictures) - 1
        found.append(Spot(case, Random(f"ablation-{seed}-{number}").randint(min(1, last), last)))
    return found


@torch.inference_mode()
def drawn_in_context(components: Components, settings: Settings, chosen: Sequence[Spot], say: Say = silent) -> Values:
    """right, kept, psnr (dB) of every spot, per family as "guide.right" and, of psnr, over all."""
    found: Values = {}
    for number, spot in enumerate(chosen):
        say(number, len(chosen))
        pixels = PictureSampler(components, settings).draw(spot.context, seed=number)
        one = score_pictures([spot.case], [pixels], [spot.index])
        for name in ("right", "kept", "psnr"):
            found.setdefault(f"{spot.case.family}.{name}", []).append(one[name])
        found.setdefault("psnr", []).append(one["psnr"])
    return found


@torch.inference_mode()
def velocity_errors(components: Components, chosen: Sequence[Spot]) -> Values:
    """Held-out flow-matching loss: mean squared error of the velocity (with the text), mean over the times NOISE."""
    found: Values = {"loss": []}
    for number, spot in enumerate(chosen):
        sampler = PictureSampler(components, Settings(guidance=1.0))
        x0 = sampler.latent(spot.ideal)
        prepared = sampler.prepare(spot.context, x0.shape)
        x0, noise = x0.to(prepared.device), initial_noise(number, tuple(x0.shape)).to(prepared.device)
        errors = []
        for t in NOISE:
            (v,) = prepared.velocities(t * noise + (1 - t) * x0, torch.tensor([t], device=prepared.device))
            errors.append(float((v - (noise - x0)).square().mean()))
        found["loss"].append(sum(errors) / len(errors))
    return found


def answered(
    components: Components, settings: Settings, groups: Sequence[str], count: int, seed: int, say: Say = silent
) -> Values:
    """The checks of whole answers, the model's own words and pictures, under "own <check>"; and seconds a picture."""
    found: Values = {}
    chosen = cases(count * len(groups), seed, groups)
    for number, (_, case) in enumerate(chosen):
        say(number, len(chosen))
        begun = time.perf_counter()
        document = generate(components, case.prompt, replace(settings, seed=number * 10))
        seconds = time.perf_counter() - begun
        scored = score(case, document)
        psnr = {name: value for name, value in scored.measures.items() if name.endswith("psnr")}
        for name, value in (*scored.checks.items(), *psnr.items()):
            found.setdefault(f"own {name}", []).append(value)
        pictures = len(document.pictures) - len(case.prompt.pictures)
        if pictures:
            found.setdefault("seconds", []).append(seconds / pictures)
    return found


# ---------------------------------------------------------------- writing

GROUPS = ("guide", "continue", "edit", "draft", "undrafted", "describe")
JUDGED = (
    "guide.structure", "continue.structure", "draft.answer", "draft.picture", "undrafted.answer", "describe.right",
    "describe.no_picture",
)  # fmt: skip
TOKENS = 300  # of an answer, at most
Answering = Callable[[Case, int], Document]


def with_ideal_pictures(mllm: Mllm, case: Case) -> Document:
    """Returns the model's greedy answer to the case's request. Where it asks for more images than the ideal answer
    has, the last one comes again."""
    document, left, drawn = case.prompt, TOKENS, 0
    ideals = case.document.last_turn.pictures or (blank(),)
    while True:
        written = mllm.continue_(document, max_new_tokens=left)
        left -= written.tokens
        document = with_text(document, written.text)
        if written.stop != "picture" or drawn > len(ideals):
            return document.replace_generation(stop_reason=written.stop)
        document = document.append(ideals[min(drawn, len(ideals) - 1)])
        drawn += 1


def blank() -> Picture:
    cream = PALETTE_RGB[COLOURS.index("cream")].astype(np.uint8)
    return Picture(np.broadcast_to(cream, (128, 128, 3)))


def with_own_pictures(components: Components, settings: Settings) -> Answering:
    return lambda case, seed: generate(components, case.prompt, replace(settings, seed=seed))


def written(answer: Answering, count: int, seed: int, groups: Sequence[str] = GROUPS, say: Say = silent) -> Values:
    """Per check one value a case; "edit.words": the answer to an edit says in words exactly what is now different."""
    found: Values = {}
    chosen = cases(count * len(groups), seed, groups)
    for number, (_, case) in enumerate(chosen):
        say(number, len(chosen))
        document = answer(case, number * 10)
        checks = {name: value for name, value in score(case, document).checks.items() if name in JUDGED}
        if case.family == "edit":
            turn = document.turns[len(case.prompt.turns)]
            checks["edit.words"] = float(turn.text == case.document.text)
        for name, value in checks.items():
            found.setdefault(name, []).append(value)
    return found
