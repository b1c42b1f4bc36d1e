"""Turns what was measured into figures: means with 95% intervals, differences from DuoGen's own arm, a table, a plot.

In: per arm and figure one value a case (the mean over the seeds). All arms answer the same cases, and draw from the
same noise, so the interval of a difference is that of the mean of the cases' differences. It tells what another set of
cases would change; what another training would change, only several seeds can tell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from duogen_core.errors import MissingPackage
from duogen_core.evaluation.report import gain, interval
from duogen_core.files import atomic_path
from duogen_core.sketchbook.ablation.trainings import Question

LOWER_IS_BETTER = ("loss", "seconds")
UNITS = {"psnr": "psnr, dB", "loss": "loss, held out", "seconds": "seconds an image"}
Values = Mapping[str, Sequence[float]]


def is_share(name: str) -> bool:
    return not name.endswith((*LOWER_IS_BETTER, "psnr"))


def spread(values: Sequence[float]) -> float:
    """Half the width of the 95% interval of a mean."""
    n = len(values)
    if n < 2:  # one case tells nothing about the spread
        return math.inf
    mean = sum(values) / n
    return 1.96 * math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1) / n)


def figure(name: str, values: Sequence[float]) -> dict[str, Any]:
    mean = sum(values) / len(values)
    reach = spread(values)
    low, high = interval(mean, len(values)) if is_share(name) else (mean - reach, mean + reach)
    return rounded(mean, low, high, len(values))


def difference(values: Sequence[float], reference: Sequence[float]) -> dict[str, Any] | None:
    """Mean of values - reference over the cases; None where they are not of the same cases."""
    if len(values) != len(reference):
        return None
    pairs = list(zip(values, reference))
    if {value for pair in pairs for value in pair} <= {0.0, 1.0}:  # right or wrong: paired proportions
        mean, (low, high) = gain(pairs)
    else:
        each = [a - b for a, b in pairs]
        mean, reach = sum(each) / len(each), spread(each)
        low, high = mean - reach, mean + reach
    return rounded(mean, low, high, len(pairs))


def rounded(mean: float, low: float, high: float, count: int) -> dict[str, Any]:
    ends = {"low": low, "high": high}
    return {
        "mean": round(mean, 4),
        **{k: round(v, 4) if math.isfinite(v) else None for k, v in ends.items()},
        "n": count,
    }


def over_seeds(found: Sequence[Values]) -> dict[str, list[float]]:
    """Per case the mean over the seeds; figures whose cases differ from seed to seed are put in a row."""
    merged: dict[str, list[float]] = {}
    for name in found[0]:
        columns = [values[name] for values in found if name in values]
        if len({len(column) for column in columns}) == 1:
            merged[name] = [sum(values) / len(values) for values in zip(*columns)]
        else:
            merged[name] = [value for column in columns for value in column]
    return merged


def answer_to(key: str, question: Question, measured: Mapping[str, Values]) -> dict[str, Any]:
    """The question with what came out. measured: per name of an arm; arms that are not there yet are left out."""
    arms = []
    for arm in question.arms:
        if arm.name not in measured:
            continue
        names = dict(arm.figures)
        values = {name: measured[arm.name].get(names.get(name, name)) for name in question.figures}
        values = {name: each for name, each in values.items() if each}
        one: dict[str, Any] = {"name": arm.name, "training": arm.training, "guidance": arm.guidance}
        one["figures"] = {name: figure(name, each) for name, each in values.items()}
        if arm is question.arms[0]:
            reference = values
        elif question.arms[0].name in measured:
            compared = {n: difference(each, reference[n]) for n, each in values.items() if n in reference}
            one["difference"] = {name: each for name, each in compared.items() if each}
        arms.append(one)
    return {"key": key, "title": question.title, "paper": question.claim, "arms": arms}


# ---------------------------------------------------------------- as a table


def verdict(name: str, found: Mapping[str, Any]) -> str:
    """ "better", "worse" or "" where the interval of the difference holds zero."""
    low, high = found["low"], found["high"]
    if low is None or low <= 0 <= high:
        return ""
    return "better" if (low > 0) != (name in LOWER_IS_BETTER) else "worse"


def number(value: float | None, name: str, signed: bool = False) -> str:
    if value is None:
        return "?"
    digits = 1 if name == "psnr" else 3 if name in LOWER_IS_BETTER else 2
    return f"{value:{'+' if signed else ''}.{digits}f}".replace("-", "−")


def cell(found: Mapping[str, Any] | None, name: str, signed: bool = False) -> str:
    if found is None:
        return ""
    ends = " to ".join(number(found[end], name, signed) for end in ("low", "high"))
    return f"{number(found['mean'], name, signed)} ({ends})"


def table(answer: Mapping[str, Any]) -> str:
    """A Markdown table: a row a figure, a column an arm, and for all but the first the difference."""
    arms = answer["arms"]
    head = ["", *(arm["name"] for arm in arms), *(f"{arm['name']}: difference" for arm in arms[1:])]
    rows = [head, ["---"] * len(head)]
    for name in dict.fromkeys(name for arm in arms for name in arm["figures"]):
        row = [f"`{UNITS.get(name, name)}`", *(cell(arm["figures"].get(name), name) for arm in arms)]
        for arm in arms[1:]:
            found = arm.get("difference", {}).get(name)
            judged = verdict(name, found) if found else ""
            row.append(cell(found, name, signed=True) + (f", **{judged}**" if judged else ""))
        rows.append(row)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def markdown(report: Mapping[str, Any]) -> str:
    """The whole report, in the order of the questions."""
    parts = ["# The paper in miniature", summary(report)]
    for answer in report["questions"]:
        if answer["arms"]:
            parts += [f"## {answer['title']}", f"DuoGen: {answer['paper']}", table(answer)]
    parts += ["## The trainings", trainings(report)]
    return "\n\n".join(parts) + "\n"


def summary(report: Mapping[str, Any]) -> str:
    settings = report["settings"]
    ends = [f"{settings[name]:g} {name}" for name in ("steps", "minutes") if settings[name]]
    return (
        f"Model: {report['model']}. Budget of an arm: {' or '.join(ends)}. Seeds: {settings['seeds']}. "
        f"Cases: {settings['cases']} of each task. Means with 95% intervals; differences are taken case by case, and "
        "called better or worse where their interval does not hold zero."
    )


def trainings(report: Mapping[str, Any]) -> str:
    rows = [["training", "seed", "differs in", "steps", "minutes", "loss at its end"], ["---"] * 6]
    for one in report["trainings"]:
        differs = ", ".join(f"{name}: {value}" for name, value in one["differs"].items()) or "nothing"
        minutes = f"{one['seconds'] / 60:.1f}"
        rows.append([one["name"], str(one["seed"]), differs, str(one["steps"]), minutes, f"{one['loss']:.4f}"])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


# ---------------------------------------------------------------- as a plot

COLOURS = ("#1f4e79", "#c8553d", "#7a9e3a")
ROWS = 5  # figures of a panel, at most


def plot(report: Mapping[str, Any], target: Path) -> Path | None:
    """Plots a panel for each question, a row for each figure, and a dot with its 95% interval for each arm.

    Only figures in [0, 1]; those that are 0 for all arms tell nothing and are left out, and so are empty panels.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackage("The plot (the table was written)", "matplotlib", "train") from error
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
    with atomic_path(target) as temporary:
        figure.savefig(temporary, dpi=90, format="png")
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
