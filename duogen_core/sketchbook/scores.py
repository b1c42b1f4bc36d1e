"""Scores an answer against the truth of its case: one scorer per task family, (Case, answer Document) -> Score.

The answer is the whole conversation as `pipeline.generate` returns it: the case's prompt and the model's turn. A check
is a number in [0, 1]; a measure is any other number. What is missing counts as wrong: an answer without the image that
was asked for has kept nothing.

One drawn image against the ideal one (uint8 [height, width, 3]): the ideal images before and after a step say which
region was to change. `step_agreement` judges that region and whatever else the model changed,
`checker.share_kept` the rest.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

import numpy as np

from duogen_core.document import Document, Picture, Turn
from duogen_core.sketchbook.boards import (
    MOVES,
    board_from_dict,
    draw_board,
    read_board,
)
from duogen_core.sketchbook.checker import alike, changed, grow, read, share_kept, shrink
from duogen_core.sketchbook.drawing import draw_scene
from duogen_core.sketchbook.scene import (
    COLOURS,
    KINDS,
    PALETTE_RGB,
    SIZES,
    Scene,
    Shape,
    nearest,
    scene_from_dict,
)
from duogen_core.sketchbook.tasks.common import PLACES, Case
from duogen_core.sketchbook.tasks.plan import parse_move
from duogen_core.sketchbook.things import ideal_picture, parse_step, thing_named

# ---------------------------------------------------------------- one image

STEP_RIGHT = 0.9  # share of the changed region that must show the ideal's colours


def agreement(picture: np.ndarray, ideal: np.ndarray) -> np.ndarray:
    """Where picture and ideal show the same, bool [height, width]; edges may lie a pixel off, thin lines must exist."""
    return alike(picture, ideal) & alike(ideal, picture)


def step_agreement(before: np.ndarray, after: np.ndarray, ideal_before: np.ndarray, ideal_after: np.ndarray) -> float:
    """Share of the changed region in which `after` shows what the ideal shows.

    The region is where the ideal changes, and where the model changed more than that: paint beside the part counts.
    """
    if after.shape != ideal_after.shape:
        return 0.0
    region = changed(ideal_before, ideal_after)
    if before.shape == after.shape:
        repainted = ~agreement(after, before)
        region = region | (grow(shrink(repainted)) & repainted)
    return float(agreement(after, ideal_after)[region].mean()) if region.any() else 1.0


def step_right(before: np.ndarray, after: np.ndarray, ideal_before: np.ndarray, ideal_after: np.ndarray) -> bool:
    return step_agreement(before, after, ideal_before, ideal_after) >= STEP_RIGHT


def shows(picture: np.ndarray, scene: Scene) -> bool:
    """True when the picture is exactly this scene, at its size."""
    return picture.shape[1::-1] == scene.canvas and read(picture).shows(scene)


def psnr(picture: np.ndarray, ideal: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB; at most 60, so that a mean stays finite."""
    if picture.shape != ideal.shape:
        return 0.0
    error = float(((picture.astype(np.float64) - ideal) ** 2).mean())
    return 60.0 if error == 0 else min(60.0, 10 * math.log10(255**2 / error))


def blank(picture: np.ndarray) -> np.ndarray:
    """The empty ground of an ideal picture: its majority palette colour everywhere."""
    ground = np.bincount(nearest(picture).ravel()).argmax()
    return np.broadcast_to(PALETTE_RGB[ground].astype(np.uint8), picture.shape)


def score_pictures(
    cases: Sequence[Case], pictures: Sequence[np.ndarray], indices: Sequence[int] | None = None
) -> dict[str, float]:
    """A quick measure while a DiT trains: each picture was drawn in the ideal context of its case.

    pictures[i] stands for picture indices[i] (default: the last) of the ideal answer of cases[i]; what came before it
    are the ideal's own pictures. Returns means over all, and per family as "guide.right": right (a scene is read back
    as asked; anything else agrees with the ideal where it changes and is kept elsewhere), kept, psnr in dB.
    """
    if len(pictures) != len(cases) or (indices is not None and len(indices) != len(cases)):
        raise ValueError(f"score_pictures got {len(cases)} cases, but {len(pictures)} images to score.")
    found: dict[str, list[float]] = {}
    for number, (case, picture) in enumerate(zip(cases, pictures)):
        answer = case.document.last_turn.pictures
        if not answer:
            raise ValueError(f"Case {number} ({case.family}) has no image in its answer.")
        index = range(len(answer))[-1 if indices is None else indices[number]]
        ideal = answer[index].pixels
        earlier = case.document.pictures[: len(case.document.pictures) - len(answer) + index]
        before = earlier[-1].pixels if earlier and earlier[-1].pixels.shape == ideal.shape else blank(ideal)
        held = share_kept(before, picture, changed(before, ideal))
        scene = read(ideal)
        if scene.clean and case.family not in ("guide", "continue", "plan"):
            right = shows(picture, scene.scene)
        else:
            right = step_right(before, picture, before, ideal) and held >= STEP_RIGHT
        for name, value in (("right", float(right)), ("kept", held), ("psnr", psnr(picture, ideal))):
            found.setdefault(name, []).append(value)
            found.setdefault(f"{case.family}.{name}", []).append(value)
    return {name: float(np.mean(values)) for name, values in found.items()}


# ---------------------------------------------------------------- one answer

MOST_STRAY = 0.01  # share of a board's pixels that may show what is not there


@dataclass(frozen=True)
class Score:
    checks: Mapping[str, float] = field(default_factory=dict)
    measures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """The model's turn, cut at its pictures: the text before each one, and the text after the last one."""

    steps: tuple[tuple[str, np.ndarray], ...]
    closing: str
    ended: bool  # by itself, not at a limit

    @property
    def pictures(self) -> list[np.ndarray]:
        return [picture for _, picture in self.steps]

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.steps) + self.closing


def answer_of(case: Case, document: Document) -> Answer:
    turns = document.turns[len(case.prompt.turns) :]
    turn = turns[0] if turns else Turn("assistant")
    steps, text = [], ""
    for part in turn.parts:
        if isinstance(part, Picture):
            steps.append((text, part.pixels))
            text = ""
        else:
            text += part.text
    return Answer(tuple(steps), text, document.generation.get("stop_reason", "end") == "end")


def score(case: Case, document: Document) -> Score:
    return SCORERS[case.family](case, document)


# ---------------------------------------------------------------- guide and continue


def guide(case: Case, document: Document) -> Score:
    answer, truth = answer_of(case, document), case.truth
    thing, done, canvas = thing_named(truth["thing"]), truth.get("done", 0), tuple(truth["canvas"])
    told = [parse_step(text, thing) for text, _ in answer.steps]
    names = [part.name for part in thing.parts]
    stated = {step.part: step.colour for step in told if step}
    structure = (
        answer.ended
        and len(answer.steps) == thing.steps - done
        and "Step" not in answer.closing
        and has_words(answer.text, thing.name)
        and all(numbers(text) == [k] for k, (text, _) in enumerate(answer.steps, done + 1))
        and [step and step.part for step in told] == names[done:]
        and all(stated.get(part) == colour for part, colour in truth["asked"].items())
    )
    # The ideal has the colours that the texts name; where a text names none, the truth's.
    colours = {**truth["colours"], **{part: colour for part, colour in stated.items() if part in names[done:]}}
    ideals = [ideal_picture(thing, colours, k, canvas) for k in range(done, thing.steps + 1)]
    pictures = [ideals[0], *answer.pictures]  # what stands before the first step: the user's picture, or nothing
    right, held, quality = [], [], []
    for k in range(1, len(ideals)):
        if k >= len(pictures):
            right.append(False)
            continue
        before, after = pictures[k - 1], pictures[k]
        fits = told[k - 1] is not None and told[k - 1].part == names[done + k - 1]
        right.append(fits and step_right(before, after, ideals[k - 1], ideals[k]))
        quality.append(psnr(after, ideals[k]))
        if k > 1 or done:
            held.append(share_kept(before, after, changed(ideals[k - 1], ideals[k])))
    family = case.family
    checks = {
        f"{family}.structure": float(structure),
        f"{family}.step_right": mean(right),
        f"{family}.kept": mean(held),
    }
    return Score(checks, {f"{family}.psnr": mean(quality)} if quality else {})


def numbers(text: str) -> list[int]:
    """The step numbers in a text: exactly one is right."""
    return [int(number) for number in re.findall(r"\bStep (\d+):", text)]


# ---------------------------------------------------------------- draw and edit


def draw(case: Case, document: Document) -> Score:
    answer, truth = answer_of(case, document), case.truth
    canvas = tuple(truth["scene"]["canvas"])
    right = len(answer.pictures) == 1 and fits_request(answer.pictures[0], truth["asked"], truth["background"], canvas)
    held_out = any(shape.held_out for shape in scene_from_dict(truth["scene"]).shapes)
    return Score({"draw.right_heldout" if held_out else "draw.right": float(right)})


def fits_request(pixels: np.ndarray, asked: list[Mapping[str, Any]], background: str, canvas: tuple[int, ...]) -> bool:
    """Clean, as many shapes as asked for, and every stated property of every shape met; what was left open is free."""
    if pixels.shape[1::-1] != canvas:
        return False
    reading = read(pixels)
    shapes = reading.scene.shapes
    if not reading.clean or len(shapes) != len(asked) or reading.scene.background != background:
        return False
    return any(
        all(meets(shape, wish) for shape, wish in zip(order, asked)) for order in permutations(shapes, len(asked))
    )


def meets(shape: Shape, wish: Mapping[str, Any]) -> bool:
    return all(value is None or getattr(shape, name) == value for name, value in wish.items())


def edit(case: Case, document: Document) -> Score:
    answer = answer_of(case, document)
    before, after = scene_from_dict(case.truth["before"]), scene_from_dict(case.truth["after"])
    right = held = 0.0
    if len(answer.pictures) == 1:
        picture, was = answer.pictures[0], draw_scene(before)
        right, held = float(shows(picture, after)), share_kept(was, picture, changed(was, draw_scene(after)))
    return Score({f"{case.family}.right": right, f"{case.family}.kept": held})


# ---------------------------------------------------------------- plan and draft


def plan(case: Case, document: Document) -> Score:
    """Each picture shows the board after one legal move, and nothing else; the last one has the marker at the goal."""
    answer, board = answer_of(case, document), board_from_dict(case.truth["board"])
    legal = said = 0
    for text, picture in answer.steps:
        seen = read_board(picture)
        name = next((name for name in MOVES if seen is not None and board.move(name) == seen), None)
        if name is None or board.solved or not shows_board(picture, draw_board(seen)):
            break
        legal += 1
        said += parse_move(text) == (legal, name)
        board = seen
    reached = answer.ended and board.solved and legal == len(answer.steps)
    measures = {"plan.moves_legal": legal / max(len(answer.steps), 1), "plan.moves_as_said": said / max(legal, 1)}
    if reached:
        measures["plan.length_over_shortest"] = legal / max(case.truth["shortest"], 1)
    return Score({"plan.reached": float(reached)}, measures)


def shows_board(picture: np.ndarray, ideal: np.ndarray) -> bool:
    drawn = nearest(ideal) != COLOURS.index("cream")
    same = agreement(picture, ideal)
    lumps = grow(shrink(~same)) & ~same  # marks that are nothing of the board
    return bool(same[drawn].mean() >= STEP_RIGHT and lumps.mean() <= MOST_STRAY)


def draft(case: Case, document: Document) -> Score:
    answer = answer_of(case, document)
    after = scene_from_dict(case.truth["after"])
    drawn = len(answer.pictures) == 1 and shows(answer.pictures[0], after)
    return Score({"draft.answer": float(right_number(answer, case)), "draft.picture": float(drawn)})


def undrafted(case: Case, document: Document) -> Score:
    """The same question with the request not to draw: only an answer in words is one."""
    answer = answer_of(case, document)
    right = right_number(answer, case) and not answer.steps
    return Score({"undrafted.answer": float(right), "undrafted.no_picture": float(not answer.steps)})


def right_number(answer: Answer, case: Case) -> bool:
    """The last answer stated is the right one; after drawing it must stand after the picture."""
    found = re.findall(r"Answer: *(\d+)", answer.closing if answer.steps else answer.text)
    return bool(found) and found[-1] == case.truth["answer"]


# ---------------------------------------------------------------- describe

_SHAPE = re.compile(
    rf"({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(KINDS)}) "
    rf"({'|'.join(sorted(PLACES.values(), key=len, reverse=True))})\b"
)
_CELLS = {words: cell for cell, words in PLACES.items()}


def describe(case: Case, document: Document) -> Score:
    answer, truth = answer_of(case, document), case.truth
    return Score(
        {
            "describe.right": float(answer.ended and right_words(answer.text, truth)),
            "describe.no_picture": float(not answer.steps),
        }
    )


def quiz(case: Case, document: Document) -> Score:
    """Of a conversation about one picture the last answer; the others are given."""
    answer = answer_of(case, document)
    return Score({"quiz.right": float(answer.ended and not answer.steps and answer.text == case.truth["answer"])})


def right_words(text: str, truth: Mapping[str, Any]) -> bool:
    """The key words are there; of shapes, colours and places, which could be guessed in heaps, no others are."""
    question, key = truth["question"], list(truth["key"])
    if question == "scene":
        scene = scene_from_dict(truth["scene"])
        ground = re.findall(rf"({'|'.join(COLOURS)}) background", text)
        return described(text) == scene.shapes and ground == ([] if scene.background == "cream" else [scene.background])
    if not all(has_words(text, words) for words in key):
        return False
    if question == "colour":
        return {colour for colour in COLOURS if has_words(text, colour)} == set(key)
    if question == "place":
        return [place for place in PLACES.values() if has_words(text, place)] == key
    if question == "cell" and key != ["Nothing"]:
        return len(_SHAPE.findall(text)) == 1
    return True


def described(text: str) -> tuple[Shape, ...]:
    """The shapes that a text names, in cell order; a text that puts two into one cell describes nothing."""
    shapes = [Shape(_CELLS[place], kind, colour, size) for size, colour, kind, place in _SHAPE.findall(text)]
    try:
        return Scene(tuple(shapes), background="none").shapes
    except ValueError:
        return ()


def has_words(text: str, words: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text, re.IGNORECASE) is not None


def mean(values: list) -> float:
    return float(sum(values) / len(values)) if values else 0.0


SCORERS: dict[str, Callable[[Case, Document], Score]] = {
    "guide": guide,
    "continue": guide,
    "draw": draw,
    "edit": edit,
    "edit_chain": edit,
    "plan": plan,
    "draft": draft,
    "undrafted": undrafted,
    "describe": describe,
    "quiz": quiz,
    "talk": describe,
}
CHECKS = (
    "guide.structure", "guide.step_right", "guide.kept", "draw.right", "draw.right_heldout", "edit.right", "edit.kept",
    "edit_chain.right", "edit_chain.kept",
    "continue.structure", "continue.step_right", "continue.kept", "plan.reached", "draft.answer", "draft.picture",
    "undrafted.answer", "undrafted.no_picture", "describe.right", "describe.no_picture",
)  # fmt: skip
