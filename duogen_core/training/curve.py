"""The loss curve of a run: metrics.jsonl -> loss.png. Needs matplotlib, an optional extra."""

from __future__ import annotations

import json
import os
from pathlib import Path

from duogen_core.errors import DuoGenError


class MissingExtra(DuoGenError):
    """An optional dependency that is not installed."""


def plot_losses(folder: str | Path) -> Path | None:
    """metrics.jsonl -> loss.png (log scale, thin: every line, thick: running mean)."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra(
            "The loss curve needs matplotlib: pip install -e '.[train]'. Everything else was saved."
        ) from error
    path = Path(folder) / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    points = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    if not points:
        return None
    steps, losses = zip(*points, strict=True)
    smooth, mean = [], losses[0]
    for loss in losses:
        mean = 0.9 * mean + 0.1 * loss
        smooth.append(mean)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(steps, losses, color="#9bb8d3", linewidth=0.8)
    axes.plot(steps, smooth, color="#1f4e79", linewidth=1.8)
    if min(losses) > 0:
        axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3, which="both")
    target = Path(folder) / "loss.png"
    figure.savefig(target.with_suffix(".new.png"), dpi=110)
    os.replace(target.with_suffix(".new.png"), target)
    return target
