"""One drawn picture against the ideal one. Pictures are uint8 [height, width, 3].

The ideal pictures before and after a step say which region was to change. `step_agreement` judges that region (and
whatever else the model changed), `kept` of data/sketchbook/colours.py judges the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from duogen_core.sketchbook.cases import Case
from duogen_core.sketchbook.checker import PALETTE_RGB, alike, changed, grow, kept, nearest, read, shrink
from duogen_core.sketchbook.scene import Scene

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
        raise ValueError(f"score_pictures got {len(cases)} cases, but {len(pictures)} pictures to score.")
    found: dict[str, list[float]] = {}
    for number, (case, picture) in enumerate(zip(cases, pictures)):
        answer = case.document.last_turn.pictures
        if not answer:
            raise ValueError(f"Case {number} ({case.family}) has no picture in its answer.")
        index = range(len(answer))[-1 if indices is None else indices[number]]
        ideal = answer[index].pixels
        earlier = case.document.pictures[: len(case.document.pictures) - len(answer) + index]
        before = earlier[-1].pixels if earlier and earlier[-1].pixels.shape == ideal.shape else blank(ideal)
        held = kept(before, picture, changed(before, ideal))
        scene = read(ideal)
        if scene.clean and case.family not in ("guide", "continue", "plan"):
            right = shows(picture, scene.scene)
        else:
            right = step_right(before, picture, before, ideal) and held >= STEP_RIGHT
        for name, value in (("right", float(right)), ("kept", held), ("psnr", psnr(picture, ideal))):
            found.setdefault(name, []).append(value)
            found.setdefault(f"{case.family}.{name}", []).append(value)
    return {name: float(np.mean(values)) for name, values in found.items()}
