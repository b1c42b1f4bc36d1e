"""Warm-up of the MLLM's vision tower: before the language model comes in, it learns to see Sketchbook.

Our own addition, before the "from scratch" phase of mllm.py: next-token loss alone teaches a small tower slowly,
because a picture gives few learnt words. So every picture token first learns to name what lies in its cell of a random
scene (shape, colour, size; background) and the palette colours at 16 points of its 32x32 pixels. The read-out heads
are thrown away.

    python -m duogen_core.training.vision --out runs/mllm-vision --minutes 6
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from duogen_core.data.sketchbook.draw import draw_scene
from duogen_core.data.sketchbook.scene import CANVASES, CELLS, COLOURS, HELD_OUT, KINDS, PALETTE, SIZES, Scene, Shape
from duogen_core.training.fast import tower_features
from duogen_core.training.loop import Run

POINTS = 4  # palette points per token side


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
    """int [tokens, 4]: kind, colour, size (0: empty cell) and background of the cell in which a token's centre lies."""
    width, height = scene.canvas
    rows = []
    for y in range(token // 2, height, token):
        for x in range(token // 2, width, token):
            shape = scene.at(CELLS[3 * (3 * y // height) + 3 * x // width])
            kind, colour, size = 0, 0, 0
            if shape:
                kind, colour = 1 + KINDS.index(shape.kind), 1 + COLOURS.index(shape.colour)
                size = 1 + SIZES.index(shape.size)
            rows.append((kind, colour, size, COLOURS.index(scene.background)))
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


class Heads(nn.Module):
    """Linear read-outs of a picture token; the same normalisation the language model applies first."""

    SIZES = (1 + len(KINDS), 1 + len(COLOURS), 1 + len(SIZES), len(COLOURS))

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scene = nn.Linear(width, sum(self.SIZES))
        self.points = nn.Linear(width, POINTS * POINTS * len(COLOURS))

    def forward(self, features: Tensor, scenes: Tensor, points: Tensor) -> tuple[Tensor, dict[str, float]]:
        loss, right = torch.zeros(()), torch.ones(scenes.shape[:2], dtype=torch.bool)
        x = F.rms_norm(features, features.shape[-1:])
        for logits, target in zip(self.scene(x).split(self.SIZES, -1), scenes.unbind(-1), strict=True):
            loss = loss + F.cross_entropy(logits.flatten(0, 1), target.flatten())
            right &= logits.argmax(-1) == target
        colours = self.points(x).view(-1, len(COLOURS))
        points_loss = F.cross_entropy(colours, points.flatten())
        shapes = scenes[..., 0] > 0
        figures = {"token_right": right[shapes].float().mean().item(), "points_loss": points_loss.item()}
        return loss + points_loss, figures


def warmup_batch(rng: random.Random, size: int) -> tuple[Tensor, Tensor, Tensor]:
    canvas = rng.choices(CANVASES, (8, 1, 1))[0]
    scenes = [random_scene(rng, canvas) for _ in range(size)]
    pixels = np.stack([draw_scene(scene) for scene in scenes])
    targets = np.stack([token_targets(scene) for scene in scenes])
    return torch.from_numpy(pixels), torch.from_numpy(targets), torch.from_numpy(palette_points(pixels))


def warm_up(
    tower: nn.Module,
    folder: str | Path,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    lr: float = 1.5e-3,
    batch: int = 32,
    seed: int = 0,
) -> Run:
    """Train the tower in place; a finished run in the folder is only read."""
    heads = Heads(tower.config.out_hidden_size)
    parameters = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    config = {"what": "vision warm-up", "tower": tower.config.to_dict(), "lr": lr, "batch": batch}
    run = Run(folder, config, seed=seed, minutes=minutes, steps=steps, warmup=100)
    run.attach({"tower": tower, "heads": heads}, {"adamw": optimizer})
    for step in run:
        pixels, scenes, points = warmup_batch(run.rng(step), batch)
        loss, figures = heads(tower_features(tower, pixels), scenes, points)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        run.report(loss=loss.detach(), **figures)
    return run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, help="run folder")
    parser.add_argument("--minutes", type=float, default=6)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> int:
    from duogen_core.mllm.qwen2_5_vl import new_model
    from duogen_core.mllm.tokenizer import train_tokenizer

    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    tower = new_model(train_tokenizer(["a picture"], 512)).model.visual  # the tower does not depend on the vocabulary
    done = warm_up(
        tower, args.out, minutes=args.minutes, steps=args.steps, lr=args.lr, batch=args.batch, seed=args.seed
    )
    return 130 if done.interrupted else 0


def main(argv: Sequence[str] | None = None) -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    return run(parser.parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
