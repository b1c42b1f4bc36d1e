"""What the task families share: `Case`, words for shapes, colours and places, and random scenes.

A case is a task with its ideal answer: `document` is the complete conversation, images included; `prompt` is what the
model gets; `truth` holds, as plain JSON data, all that a checker needs to judge any other answer to the same prompt.
The assistant's wording is fixed (one name per cell, size and colour), so that its text is an exact order for the image
that follows; users may say the same thing in several ways.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from duogen_core.document import (
    Document,
    Picture,
    Text,
    Turn,
)
from duogen_core.sketchbook.scene import (
    CELLS,
    COLOURS,
    HELD_OUT,
    KINDS,
    SIZES,
    Scene,
    Shape,
)


@dataclass(frozen=True)
class Case:
    family: str
    document: Document
    truth: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> Document:
        """The conversation up to the last user turn."""
        last = max(k for k, turn in enumerate(self.document.turns) if turn.role == "assistant")
        return Document(turns=self.document.turns[:last])


# ---------------------------------------------------------------- words

Canvas = tuple[int, int]
PLACES = {
    "top left": "in the top left",
    "top": "at the top",
    "top right": "in the top right",
    "left": "on the left",
    "centre": "in the centre",
    "right": "on the right",
    "bottom left": "in the bottom left",
    "bottom": "at the bottom",
    "bottom right": "in the bottom right",
}
_USER_PLACES = {
    "centre": ("in the centre", "in the middle", "in the center"),
    "left": ("on the left", "on the left side"),
    "right": ("on the right", "on the right side"),
}
# The plain word twice: synonyms occur, but stay the exception.
_USER_SIZES = {"small": ("small", "small", "little"), "large": ("large", "large", "big")}
PLURALS = {kind: f"{kind}s" for kind in KINDS} | {"cross": "crosses"}


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def join(phrases: Sequence[str]) -> str:
    """One, two and three phrases -> "a", "a and b", "a, b and c"."""
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def shape_words(shape: Shape) -> str:
    """The assistant's words: "large red circle in the top left"."""
    return f"{shape.size} {shape.colour} {shape.kind} {PLACES[shape.cell]}"


def a_shape(shape: Shape) -> str:
    return f"a {shape_words(shape)}"


def user_place(rng: Random, cell: str) -> str:
    if " " in cell and rng.random() < 0.3:
        return f"in the {cell} corner"
    return rng.choice(_USER_PLACES.get(cell, (PLACES[cell],)))


def user_cell(rng: Random, cell: str) -> str:
    """A cell as the goal of a movement: "to the top left"."""
    return "to the " + (rng.choice(("centre", "middle", "center")) if cell == "centre" else cell)


def user_size(rng: Random, size: str) -> str:
    return rng.choice(_USER_SIZES[size])


def user_colour(rng: Random, colour: str) -> str:
    return "gray" if colour == "grey" and rng.random() < 0.3 else colour


def reference(rng: Random, scene: Scene, shape: Shape) -> str:
    """Words of a user for one shape of the scene which fit no other shape of it."""
    ways = [
        f"the {shape.colour} {shape.kind} {user_place(rng, shape.cell)}",
        f"the shape {user_place(rng, shape.cell)}",
    ]
    others = [other for other in scene.shapes if other != shape]
    # "the star" only where there is one star; repeated entries are the more natural wordings.
    if all(other.kind != shape.kind for other in others):
        ways += [f"the {shape.kind}"] * 2
    if all((other.kind, other.colour) != (shape.kind, shape.colour) for other in others):
        ways += [f"the {shape.colour} {shape.kind}"] * 4
    if all(other.colour != shape.colour for other in others):
        ways += [f"the {shape.colour} shape"]
    return rng.choice(ways)


def allowed(colour: str, kind: str) -> bool:
    return (colour, kind) not in HELD_OUT


def random_background(rng: Random, share: float = 0.2) -> str:
    return rng.choice(COLOURS) if rng.random() < share else "cream"


def random_shape(rng: Random, scene: Scene, *, held_out: bool = False) -> Shape:
    """A shape for a free cell of the scene; with `held_out`, of a pair that training never shows."""
    cell, size = rng.choice(scene.free_cells), rng.choice(SIZES)
    if held_out:
        # Sorted, because the order of a set differs from process to process and a seed must give the same case.
        colour, kind = rng.choice(sorted(pair for pair in HELD_OUT if pair[0] != scene.background))
        return Shape(cell, kind, colour, size)
    while True:  # until it is visible and not held out
        colour, kind = rng.choice(COLOURS), rng.choice(KINDS)
        if colour != scene.background and allowed(colour, kind):
            return Shape(cell, kind, colour, size)


def random_scene(
    rng: Random, count: int, canvas: Canvas, *, background: str | None = None, held_out: bool = False
) -> Scene:
    """`count` shapes in random cells; with `held_out` the first one drawn is of a held-out pair."""
    scene = Scene((), random_background(rng) if background is None else background, canvas)
    for k in range(count):
        scene = scene.add(random_shape(rng, scene, held_out=held_out and k == 0))
    return scene


def with_repeats(rng: Random, scene: Scene) -> Scene:
    """Returns the scene with its colours and kinds picked anew from those of its first three shapes, so that some occur
    more than once; only in pairs that occur in training."""
    kinds, colours = [shape.kind for shape in scene.shapes[:3]], [shape.colour for shape in scene.shapes[:3]]
    shapes = []
    for shape in scene.shapes:
        other = replace(shape, kind=rng.choice(kinds), colour=rng.choice(colours))
        shapes.append(other if allowed(other.colour, other.kind) and not shape.held_out else shape)
    return replace(scene, shapes=tuple(shapes))


def pick_count(rng: Random, weights: Sequence[float]) -> int:
    """1, 2, 3 … with the given weights."""
    return rng.choices(range(1, len(weights) + 1), weights)[0]


def with_background(text: str, background: str) -> str:
    return text if background == "cream" else f"{text}, on {article(background)} {background} background"


def user_turn(rng: Random, text: str, image: Picture | None = None) -> Turn:
    """The request, with its picture before or after it."""
    if image is None:
        return Turn("user", (Text(text),))
    return Turn("user", (image, Text(text)) if rng.random() < 0.6 else (Text(text), image))


def assistant_turn(*parts: str | Picture) -> Turn:
    return Turn("assistant", tuple(Text(part) if isinstance(part, str) else part for part in parts))


def conversation(turns: Iterable[Turn]) -> Document:
    return Document(turns=tuple(turns))


def cells_of(band: str) -> tuple[str, ...]:
    """Cells of "top row", "middle row", "bottom row", "left column", "middle column", "right column"."""
    name, direction = band.split()
    k = {"top": 0, "left": 0, "middle": 1, "bottom": 2, "right": 2}[name]
    return CELLS[3 * k : 3 * k + 3] if direction == "row" else CELLS[k::3]


BANDS = ("top row", "middle row", "bottom row", "left column", "middle column", "right column")
