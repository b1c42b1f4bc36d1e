"""The curves of a run: metrics.jsonl -> loss.png and, where it was scored, scores.png.

Needs matplotlib, an optional extra.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from duogen_core.errors import DuoGenError


class MissingExtra(DuoGenError):
    """An optional dependency that is not installed."""


def plot_curves(folder: str | Path) -> None:
    plot_losses(folder)
    plot_scores(folder)


def plot_losses(folder: str | Path) -> Path | None:
    """loss.png (log scale, thin: every line, thick: running mean)."""
    figure_of, lines = _matplotlib(), _lines(folder)
    points = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    if not points:
        return None
    steps, losses = zip(*points, strict=True)
    smooth, mean = [], losses[0]
    for loss in losses:
        mean = 0.9 * mean + 0.1 * loss
        smooth.append(mean)
    figure = figure_of(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(steps, losses, color="#9bb8d3", linewidth=0.8)
    axes.plot(steps, smooth, color="#1f4e79", linewidth=1.8)
    if min(losses) > 0:
        axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3, which="both")
    return _save(figure, Path(folder) / "loss.png")


def plot_scores(folder: str | Path) -> Path | None:
    """scores.png: a panel for each kind of score ("token", "psnr"), a line for each family or source."""
    figure_of = _matplotlib()
    curves: dict[str, dict[str, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for line in _lines(folder):
        for name, value in scalars(line) if "loss" not in line else ():
            if name not in ("step", "seconds"):
                of, _, score = name.removeprefix("eval/").rpartition("/")
                curves[score][of].append((line["step"], value))
    if not curves:
        return None
    figure = figure_of(figsize=(8, 3.5 * len(curves)), layout="constrained")
    for axes, (score, lines) in zip(figure.subplots(len(curves), squeeze=False)[:, 0], curves.items(), strict=True):
        for of, points in lines.items():
            axes.plot(*zip(*points, strict=True), marker=".", label=of or None)
        axes.set_xlabel("step")
        axes.set_ylabel(score)
        axes.grid(alpha=0.3)
        if any(lines):
            axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return _save(figure, Path(folder) / "scores.png")


def scalars(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """{"eval": {"draw": {"token": 0.5}}} -> ("eval/draw/token", 0.5)."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from scalars(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{key}", float(value)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; one that a kill or a full disk cut short is left out."""
    found = []
    for line in path.read_bytes().split(b"\n"):  # str.splitlines would also split at U+2028, which JSON may hold
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict) and "step" in entry:
            found.append(entry)
    return found


def _lines(folder: str | Path) -> list[dict[str, Any]]:
    path = Path(folder) / "metrics.jsonl"
    return read_lines(path) if path.exists() else []


def _matplotlib() -> Any:
    """The class of figures, which draw into files alone."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra(
            "The curves need matplotlib: pip install -e '.[train]'. Everything else was saved."
        ) from error
    return Figure


def _save(figure: Any, target: Path) -> Path:
    figure.savefig(target.with_suffix(".new.png"), dpi=110)
    os.replace(target.with_suffix(".new.png"), target)
    return target
