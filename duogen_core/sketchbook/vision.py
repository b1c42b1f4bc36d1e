"""Warm-up of the MLLM's vision tower: before the language model looks through it, it learns to name what it sees.

Our own addition, second phase of pretrain.py: next-token loss alone teaches a small tower slowly, because a picture
gives few learnt words. So every picture token learns to be the words for what it shows (vision_targets.py): the shape,
its size and colour, its row and column; the thing and its parts; what lies on a board, as directions of the language
model's own word embeddings. "A large red star at the top" then reads like words that stand in the prompt, and the
language model can copy from a picture as it copies from text. Learnt read-outs that are thrown away afterwards ask for
the palette colours at 16 points of a token's 32x32 pixels too, so that other pictures are seen as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from duogen_core.sketchbook.scene import COLOURS
from duogen_core.sketchbook.vision_targets import (
    ANY,
    BACKGROUND,
    KINDS_OF_PICTURE,
    NONE,
    TOKEN,
    WORDS,
    palette_index,
    random_pictures,
)
from duogen_core.training.configuration import check_numbers
from duogen_core.training.next_token import tower_features
from duogen_core.training.optimisation import quick_bf16
from duogen_core.training.run import Run

POINTS = 4  # palette points per token side
SHARPNESS = 20.0  # logit of a word whose direction the token has; five words at once reach 20 / sqrt(5) each
SILENCE = 4.0  # logit of saying no word of an attribute


def palette_points(pixels: np.ndarray, token: int = TOKEN) -> np.ndarray:
    """uint8 [n, H, W, 3] -> int [n, tokens, 16]: nearest palette colour at 4x4 points of every token."""
    step = token // POINTS
    index = palette_index(pixels[:, step // 2 :: step, step // 2 :: step])
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
    """How far picture tokens are the words they should be; `points` is learnt along and thrown away."""

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
    """Train the tower of a Qwen2.5-VL model in place; its language model stays. A finished run is only read.

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
        with quick_bf16(device, bf16):
            features = tower_features(tower, seen[0])
        loss, figures = read_out(features, *seen[1:])
        run.update(loss, clip=1.0)
        run.report(loss=loss.detach(), **figures)
        if show_minutes and run.elapsed >= due:
            show(run)
            due = run.elapsed + 60 * show_minutes
    if run.finished and not run.complete():
        if show_minutes:
            show(run)
        run.mark_complete()
    return run
