"""The ablation as one picture: a panel a question, a row a figure, a dot with its 95% interval an arm."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from duogen_core.sketchbook.ablation.results import is_share
from duogen_core.training.metrics import MissingExtra

COLOURS = ("#1f4e79", "#c8553d", "#7a9e3a")
ROWS = 5  # figures of a panel, at most


def plot(report: Mapping[str, Any], target: Path) -> Path | None:
    """Figures in [0, 1] only; those that are 0 for all arms tell nothing and are left out, and so are empty panels."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("The plot needs matplotlib: pip install -e '.[train]'. The table was written.") from error
    panels = [(answer, shares(answer)) for answer in report["questions"]]
    panels = [(answer, names) for answer, names in panels if names]
    if not panels:
        return None
    rows = (len(panels) + 1) // 2
    figure = Figure(figsize=(11, 0.6 + 2.5 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for place, (answer, names) in enumerate(panels, 1):
        axes = figure.add_subplot(rows, 2, place)
        for number, arm in enumerate(answer["arms"]):
            draw(axes, arm, names, number, len(answer["arms"]))
        axes.set_title(answer["title"], fontsize=10, loc="left")
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlim(-0.02, 1.02)
        axes.grid(axis="x", alpha=0.3)
        axes.legend(fontsize=7, loc="best", framealpha=0.8)
    new = target.with_suffix(".new.png")
    figure.savefig(new, dpi=90)
    os.replace(new, target)
    return target


def shares(answer: Mapping[str, Any]) -> list[str]:
    found = [pair for arm in answer["arms"] for pair in arm["figures"].items()]
    names = dict.fromkeys(name for name, one in found if is_share(name) and one["mean"] > 0)
    return list(names)[:ROWS]


def draw(axes: Any, arm: Mapping[str, Any], names: list[str], number: int, arms: int) -> None:
    found = [(row, arm["figures"][name]) for row, name in enumerate(names) if name in arm["figures"]]
    shift = 0.22 * (number - (arms - 1) / 2)
    means = [one["mean"] for _, one in found]
    errors = [[one["mean"] - one["low"] for _, one in found], [one["high"] - one["mean"] for _, one in found]]
    at = [row + shift for row, _ in found]
    colour = COLOURS[number % len(COLOURS)]
    axes.errorbar(means, at, xerr=errors, fmt="o", color=colour, markersize=4, capsize=2, label=arm["name"])
