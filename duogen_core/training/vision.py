"""Warm-up of the MLLM's vision tower: before the language model looks through it, it learns to name what it sees.

Our own addition, second phase of pretrain.py: next-token loss alone teaches a small tower slowly, because a picture
gives few learnt words. So every picture token learns to be the words for what lies in its cell: of a random scene the
shape, its size and colour, its row and column, as directions of the language model's own word embeddings. "A large
red star at the top" then reads like words that stand in the prompt, and the language model can copy from a picture as
it copies from text. Learnt read-outs that are thrown away afterwards ask for the palette colours at 16 points of a
token's 32x32 pixels too, so that other pictures are seen as well.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from duogen_core.data.sketchbook.draw import draw_scene
from duogen_core.data.sketchbook.scene import CANVASES, CELLS, COLOURS, HELD_OUT, KINDS, PALETTE, SIZES, Scene, Shape
from duogen_core.training.fast import quick_bf16, tower_features
from duogen_core.training.loop import Run

POINTS = 4  # palette points per token side
WORDS: Mapping[str, tuple[str, ...]] = {
    "kind": (*KINDS, "background"),
    "colour": COLOURS,
    "size": SIZES,
    "row": ("top", "centre", "bottom"),
    "column": ("left", "centre", "right"),
}
SHARPNESS = 20.0  # logit of a word whose direction the token has; five words at once reach 20 / sqrt(5) each


# -- what to look at --------------------------------------------------------------------------------------------------


def random_scene(rng: random.Random, canvas: tuple[int, int]) -> Scene:
    """Any number of shapes, mostly on cream; never a held-out pair."""
    background = "cream" if rng.random() < 0.7 else rng.choice(COLOURS)
    shapes = []
    for cell in rng.sample(CELLS, rng.choice((1, 2, 3, 4, 5, 6, 9))):
        colour, kind = background, ""
        while colour == background or (colour, kind) in HELD_OUT:
            colour, kind = rng.choice(COLOURS), rng.choice(KINDS)
        shapes.append(Shape(cell, kind, colour, rng.choice(SIZES)))
    return Scene(tuple(shapes), background, canvas)


def token_targets(scene: Scene, token: int = 32) -> np.ndarray:
    """int [tokens, 5]: per attribute of WORDS the word for the cell in which a token's centre lies; -1: none.

    An empty cell is a "background" of the picture's ground colour, without a size.
    """
    width, height = scene.canvas
    rows = []
    for y in range(token // 2, height, token):
        for x in range(token // 2, width, token):
            row, column = 3 * y // height, 3 * x // width
            shape = scene.at(CELLS[3 * row + column])
            if shape:
                what = KINDS.index(shape.kind), COLOURS.index(shape.colour), SIZES.index(shape.size)
            else:
                what = len(KINDS), COLOURS.index(scene.background), -1
            rows.append((*what, row, column))
    return np.array(rows)


def palette_points(pixels: np.ndarray, token: int = 32) -> np.ndarray:
    """uint8 [n, H, W, 3] -> int [n, tokens, 16]: nearest palette colour at 4x4 points of every token."""
    step = token // POINTS
    sampled = pixels[:, step // 2 :: step, step // 2 :: step].astype(np.int32)
    palette = np.array(list(PALETTE.values()))
    index = ((sampled[..., None, :] - palette) ** 2).sum(-1).argmin(-1)
    n, rows, columns = index.shape
    index = index.reshape(n, rows // POINTS, POINTS, columns // POINTS, POINTS).transpose(0, 1, 3, 2, 4)
    return index.reshape(n, -1, POINTS * POINTS)


def word_directions(embedding: Tensor, tokenizer: Any) -> dict[str, Tensor]:
    """Per attribute the unit embeddings [words, hidden] of its words as they stand inside a sentence; of a word that
    the tokenizer cuts up, the mean of its pieces."""

    def direction(word: str) -> Tensor:
        ids = tokenizer.encode(f" {word}", add_special_tokens=False)
        return F.normalize(embedding.detach()[torch.tensor(ids)].float().mean(0), dim=-1)

    return {attribute: torch.stack([direction(word) for word in words]) for attribute, words in WORDS.items()}


class ReadOut(nn.Module):
    """How far picture tokens are the words they should be; `points` is learnt along and thrown away."""

    def __init__(self, directions: Mapping[str, Tensor], length: float) -> None:
        super().__init__()
        self.directions, self.length = directions, length
        self.points = nn.Linear(next(iter(directions.values())).shape[1], POINTS * POINTS * len(COLOURS))

    def forward(self, features: Tensor, targets: Tensor, points: Tensor) -> tuple[Tensor, dict[str, float]]:
        """features [n, tokens, hidden]; targets as of `token_targets`, points as of `palette_points`, both stacked."""
        unit = F.normalize(features.float(), dim=-1)
        # The language model adds to what it is given, so the length matters too: that of a few words together.
        loss = (features.float().norm(dim=-1) / self.length).log().square().mean()
        right = torch.ones(targets.shape[:2], dtype=torch.bool)
        for words, target in zip(self.directions.values(), targets.unbind(-1), strict=True):
            logits = SHARPNESS * unit @ words.T
            loss = loss + F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=-1)
            right &= (logits.argmax(-1) == target) | (target < 0)
        points_loss = F.cross_entropy(self.points(unit * self.length).view(-1, len(COLOURS)), points.flatten())
        shapes = targets[..., 2] >= 0
        return loss + 0.3 * points_loss, {
            "token_right": right[shapes].float().mean().item(),
            "points_loss": points_loss.item(),
        }


def warmup_batch(rng: random.Random, size: int) -> tuple[Tensor, Tensor, Tensor]:
    canvas = rng.choices(CANVASES, (8, 1, 1))[0]
    scenes = [random_scene(rng, canvas) for _ in range(size)]
    pixels = np.stack([draw_scene(scene) for scene in scenes])
    targets = np.stack([token_targets(scene) for scene in scenes])
    return torch.from_numpy(pixels), torch.from_numpy(targets), torch.from_numpy(palette_points(pixels))


@dataclass(kw_only=True)
class VisionConfig:
    """It ends at `steps` or `minutes`, whichever comes first."""

    minutes: float | None = 12.0
    steps: int | None = None
    lr: float = 1.5e-3
    batch: int = 32  # pictures a step


def warm_up(
    model: nn.Module, tokenizer: Any, folder: Path, config: VisionConfig, *, seed: int = 0, bf16: bool = False
) -> Run:
    """Train the tower of a Qwen2.5-VL model in place; its language model stays. A finished run is only read."""
    tower, embedding = model.model.visual, model.get_input_embeddings().weight
    tower.requires_grad_(True)
    words = word_directions(embedding, tokenizer)
    read_out = ReadOut(words, length=2 * float(embedding.detach().norm(dim=-1).median()))
    parameters = [*tower.parameters(), *read_out.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, betas=(0.9, 0.98), weight_decay=0.01)
    record = asdict(config) | {"tower": tower.config.to_dict()}
    run = Run(folder, record, seed=seed, minutes=config.minutes, steps=config.steps)
    run.attach({"tower": tower, "read_out": read_out}, {"adamw": optimizer})
    for step in run:
        pixels, targets, points = warmup_batch(run.rng(step), config.batch)
        with quick_bf16(pixels.device, bf16):
            features = tower_features(tower, pixels)
        loss, figures = read_out(features, targets, points)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        run.report(loss=loss.detach(), **figures)
    return run
