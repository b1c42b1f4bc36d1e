"""Warms up the MLLM's vision tower: before the language model looks through it, the tower learns to name what it sees.

Our own addition, second phase of pretrain.py: next-token loss alone teaches a small tower slowly, because an image
comes with few words to learn from. So every image token learns to be the words for what it shows: the shape, its size
and colour, its row and column; the thing and its parts; what lies on a board, as directions of the language model's own
word embeddings. "A large red star at the top" then reads like words that stand in the prompt, and the language model
can copy from an image as it copies from text. Trainable read-outs, dropped afterwards, also ask for the palette colours
at 16 points of a token's 32x32 pixels, so that other images are seen as well.

A shape, a part of a thing and a marker are named by exactly one token each, so that counting them is counting tokens:
a shape by the token at the middle of its cell, a part by the token that shows most of it, what lies on a board by its
cell. All other tokens are "background".

The first half makes the material: pixels uint8 [n, H, W, 3] and words int [n, tokens, attributes of WORDS], each an
index, or NONE (no word of this attribute), or ANY (not asked). The second half trains on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from duogen_core.mllm.batched_tower import tower_features
from duogen_core.mllm.image_processor import normalised
from duogen_core.mllm.qwen2_5_vl import Qwen25VL
from duogen_core.sketchbook.boards import Board, draw_board, random_board
from duogen_core.sketchbook.drawing import cell_centre, draw_scene, paint
from duogen_core.sketchbook.scene import (
    CANVASES,
    CELLS,
    COLOURS,
    HELD_OUT,
    KINDS,
    SIZES,
    Scene,
    Shape,
    nearest,
)
from duogen_core.sketchbook.things import THINGS, Thing, part_names
from duogen_core.training.configuration import check_numbers
from duogen_core.training.precision import mixed_precision
from duogen_core.training.run import Run

TOKEN = 32  # pixels of a picture token's side
NONE, ANY = -1, -2
PARTS = tuple(sorted({*part_names(THINGS.values())} - {*KINDS}))
DIGITS = ("1", "2", "3", "4", "5")
WORDS: Mapping[str, tuple[str, ...]] = {
    "what": (*KINDS, *PARTS, "marker", "goal", "wall", "background"),
    "colour": COLOURS,
    "size": SIZES,
    "row": ("top", "centre", "bottom"),
    "column": ("left", "centre", "right"),
    "thing": tuple(THINGS),
    "board column": DIGITS,
    "board row": DIGITS,
}
BACKGROUND = len(WORDS["what"]) - 1
KINDS_OF_PICTURE = ("scene", "thing", "board")


def ground(canvas: tuple[int, int], colour: str) -> np.ndarray:
    """int [rows, columns, attributes]: nothing but background."""
    words = np.full((canvas[1] // TOKEN, canvas[0] // TOKEN, len(WORDS)), NONE)
    words[..., :2] = BACKGROUND, COLOURS.index(colour)
    return words


def random_scene(rng: Random, canvas: tuple[int, int]) -> Scene:
    """Any number of shapes, mostly on cream; never a held-out pair."""
    background = "cream" if rng.random() < 0.7 else rng.choice(COLOURS)
    shapes = []
    for cell in rng.sample(CELLS, rng.choice((1, 2, 3, 4, 5, 6, 9))):
        colour, kind = background, ""
        while colour == background or (colour, kind) in HELD_OUT:
            colour, kind = rng.choice(COLOURS), rng.choice(KINDS)
        shapes.append(Shape(cell, kind, colour, rng.choice(SIZES)))
    return Scene(tuple(shapes), background, canvas)


def scene_words(scene: Scene) -> np.ndarray:
    """Returns int [tokens, attributes]; an empty cell is a "background" in its place."""
    words = ground(scene.canvas, scene.background)
    for number, cell in enumerate(CELLS):
        x, y = (int(middle) // TOKEN for middle in cell_centre(cell, scene.canvas))
        shape = scene.at(cell)
        if shape:
            words[y, x, :3] = KINDS.index(shape.kind), COLOURS.index(shape.colour), SIZES.index(shape.size)
        words[y, x, 3:5] = divmod(number, 3)
    return words.reshape(-1, len(WORDS))


def thing_words(thing: Thing, colours: Mapping[str, str], steps: int, canvas: tuple[int, int]) -> np.ndarray:
    """int [tokens, attributes]; every token says which thing it is, one token a part says part and colour."""
    words = ground(canvas, "cream")
    words[..., 2:5] = ANY
    words[..., 5] = WORDS["thing"].index(thing.name)
    free = np.ones(words.shape[:2], dtype=bool)
    shown = visible_parts(thing, steps, canvas)
    for number in sorted(range(steps), key=lambda k: shown[k].sum()):  # the smallest chooses first
        part = thing.parts[number]
        y, x = np.unravel_index(np.where(free, shown[number], -1).argmax(), free.shape)
        free[y, x] = False
        words[y, x, :2] = WORDS["what"].index(part.name), COLOURS.index(colours[part.name])
    return words.reshape(-1, len(WORDS))


def visible_parts(thing: Thing, steps: int, canvas: tuple[int, int]) -> np.ndarray:
    """How much of a part every token shows, [steps, rows, columns]; parts painted in a colour each, to tell them."""
    colours = {part.name: COLOURS[number] for number, part in enumerate(thing.parts)}
    pixels = paint(thing.marks(colours, steps, canvas), canvas)
    parts = nearest(pixels)
    rows, columns = canvas[1] // TOKEN, canvas[0] // TOKEN
    tokens = parts.reshape(rows, TOKEN, columns, TOKEN)
    return np.stack([(tokens == number).sum((1, 3)) for number in range(steps)])


def board_words(board: Board) -> np.ndarray:
    """int [tokens, attributes]; a cell of the board is a token. A marker at the goal hides it."""
    words = ground(board.canvas, "cream")
    for row in range(board.rows):
        for column in range(board.columns):
            words[row, column, 6:] = column, row
    marks = [("goal", board.goal, board.goal_colour), ("marker", board.marker, board.marker_colour)]
    for what, (column, row), colour in [*(("wall", place, board.wall_colour) for place in board.walls), *marks]:
        words[row, column, :2] = WORDS["what"].index(what), COLOURS.index(colour)
    words[..., 3:5] = ANY
    return words.reshape(-1, len(WORDS))


def random_picture(rng: Random, canvas: tuple[int, int]) -> tuple[str, np.ndarray, np.ndarray]:
    """What kind of picture it is, its pixels and its words."""
    kind = rng.choices(KINDS_OF_PICTURE, (5, 3, 2))[0]
    if kind == "scene":
        scene = random_scene(rng, canvas)
        return kind, draw_scene(scene), scene_words(scene)
    if kind == "thing":
        thing = rng.choice(list(THINGS.values()))
        colours, steps = thing.choose_colours(rng), rng.randint(1, thing.steps)
        return kind, paint(thing.marks(colours, steps, canvas), canvas), thing_words(thing, colours, steps, canvas)
    board = random_board(rng, canvas)
    for _ in range(rng.choice((0, 0, 1, 2, 4))):  # some on the way or at the goal
        board = rng.choice(
            [moved for name in ("right", "down", "left", "up") if (moved := board.move(name))] or [board]
        )
    return kind, draw_board(board), board_words(board)


def smudged(pixels: np.ndarray, rng: Random) -> np.ndarray:
    """As a model may have drawn it: half of the pictures a little blurred, and with noise."""
    if rng.random() < 0.5:
        return pixels
    soft = pixels.astype(np.float32)
    if rng.random() < 0.5:
        edge = np.pad(soft, ((1, 1), (1, 1), (0, 0)), "edge")
        soft = (edge[:-2, 1:-1] + edge[2:, 1:-1] + edge[1:-1, :-2] + edge[1:-1, 2:] + soft) / 5
    noise = np.random.default_rng(rng.getrandbits(32)).standard_normal(soft.shape, dtype=np.float32)
    return (soft + rng.uniform(0, 8) * noise).clip(0, 255).round().astype(np.uint8)


def random_pictures(rng: Random, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """pixels, words and kinds int [n] (of KINDS_OF_PICTURE) of `count` pictures of one size."""
    canvas = rng.choices(CANVASES, (8, 1, 1))[0]
    kinds, pixels, words = zip(*(random_picture(rng, canvas) for _ in range(count)), strict=True)
    smudges = [smudged(picture, rng) for picture in pixels]
    return np.stack(smudges), np.stack(words), np.array([KINDS_OF_PICTURE.index(kind) for kind in kinds])


# ---------------------------------------------------------------- learning to see it

POINTS = 4  # palette points per token side
SHARPNESS = 20.0  # logit of a word whose direction the token has; five words at once reach 20 / sqrt(5) each
SILENCE = 4.0  # logit of saying no word of an attribute


def palette_points(pixels: np.ndarray, token: int = TOKEN) -> np.ndarray:
    """uint8 [n, H, W, 3] -> int [n, tokens, 16]: nearest palette colour at 4x4 points of every token."""
    step = token // POINTS
    index = nearest(pixels[:, step // 2 :: step, step // 2 :: step])
    n, rows, columns = index.shape
    index = index.reshape(n, rows // POINTS, POINTS, columns // POINTS, POINTS).transpose(0, 1, 3, 2, 4)
    return index.reshape(n, -1, POINTS * POINTS)


def word_directions(embedding: Tensor, tokenizer: Any) -> dict[str, Tensor]:
    """Per attribute the unit embeddings [words, hidden] of its words as they stand inside a sentence; of a word that
    the tokenizer cuts up, the mean of its pieces. A board's row is the digit's direction shifted by one place, since
    row 2 and column 2 must not be one."""

    def direction(word: str) -> Tensor:
        ids = tokenizer.encode(f" {word}", add_special_tokens=False)
        return F.normalize(embedding.detach()[torch.tensor(ids)].float().mean(0), dim=-1)

    found = {attribute: torch.stack([direction(word) for word in words]) for attribute, words in WORDS.items()}
    return {**found, "board row": found["board row"].roll(1, -1)}


class ReadOut(nn.Module):
    """How far picture tokens are the words they should be; `points` is trained too, and dropped afterwards."""

    def __init__(self, directions: Mapping[str, Tensor], length: float) -> None:
        super().__init__()
        self.directions, self.length = directions, length
        self.points = nn.Linear(next(iter(directions.values())).shape[1], POINTS * POINTS * len(COLOURS))

    def forward(
        self, features: Tensor, words: Tensor, points: Tensor, kinds: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """features [n, tokens, hidden]; words and kinds as of `random_pictures`, points as of `palette_points`."""
        unit = F.normalize(features.float(), dim=-1)
        # The language model adds to what it is given, so the length matters too: that of a few words together.
        loss = (features.float().norm(dim=-1) / self.length).log().square().mean()
        right = torch.ones(words.shape[:2], dtype=torch.bool, device=words.device)
        for directions, target in zip(self.directions.values(), words.unbind(-1), strict=True):
            logits = F.pad(SHARPNESS * unit @ directions.T, (0, 1), value=SILENCE)
            wanted = target.where(target != NONE, len(directions))
            asked = wanted != ANY
            loss = loss + F.cross_entropy(logits[asked], wanted[asked], reduction="sum") / asked.sum().clamp(min=1)
            right &= (logits.argmax(-1) == wanted) | (wanted == ANY)
        points_loss = F.cross_entropy(self.points(unit * self.length).view(-1, len(COLOURS)), points.flatten())
        marks = (words[..., 0] != BACKGROUND) & (words[..., 0] >= 0)
        shares = {
            name: right[marks & (kinds == kind)[:, None]].float().mean().item()
            for kind, name in enumerate(KINDS_OF_PICTURE)
            if (kinds == kind).any()
        }
        return loss + 0.3 * points_loss, {**shares, "points_loss": points_loss.item()}


@dataclass(kw_only=True)
class VisionConfig:
    """It ends at `steps` or `minutes`, whichever comes first."""

    minutes: float | None = 12.0
    steps: int | None = None
    lr: float = 1.5e-3
    batch: int = 32  # pictures a step

    def __post_init__(self) -> None:
        check_numbers(self, least={"steps": 1, "batch": 1}, above_0=("minutes",))


def warm_up(
    model: nn.Module,
    tokenizer: Any,
    folder: Path,
    config: VisionConfig,
    *,
    seed: int = 0,
    bf16: bool = False,
    show: Callable[[Run], object] = lambda run: None,
    show_minutes: float = 0.0,
    **of_run: Any,
) -> Run:
    """Trains the tower of a Qwen2.5-VL model in place; its language model stays as it is. Loads a finished run instead.

    show(run): called every `show_minutes` and at the end, if they are not 0. of_run: further settings of `Run`.
    """
    record = asdict(config) | {"tower": model.model.visual.config.to_dict()}
    run = Run(folder, record, seed=seed, minutes=config.minutes, steps=config.steps, **of_run)
    device = run.processes.device
    model.to(device)
    tower, embedding = model.model.visual, model.get_input_embeddings().weight
    tower.requires_grad_(True)
    read_out = ReadOut(
        word_directions(embedding, tokenizer), length=2 * float(embedding.detach().norm(dim=-1).median())
    ).to(device)
    parameters = [*tower.parameters(), *read_out.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, betas=(0.9, 0.98), weight_decay=0.01)
    run.attach({"tower": tower, "read_out": read_out}, {"adamw": optimizer})
    due = run.elapsed + 60 * show_minutes
    for step in run:
        pixels, words, kinds = random_pictures(run.rng(step), config.batch)
        seen = [torch.from_numpy(each).to(device) for each in (pixels, words, palette_points(pixels), kinds)]
        with mixed_precision(device, bf16):
            features = tower_features(tower, normalised(seen[0], Qwen25VL.picture_settings))
        loss, figures = read_out(features, *seen[1:])
        run.update(loss, clip=1.0)
        run.report(loss=loss.detach(), **figures)
        if show_minutes and run.elapsed >= due:
            with run.looking("The samples"):
                show(run)
            due = run.elapsed + 60 * show_minutes
    if run.finished and not run.complete():
        if show_minutes:
            with run.looking("The samples"):
                show(run)
        run.mark_complete()
    return run
