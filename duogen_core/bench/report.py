"""A benchmark's report as lines for people, as bench_NAME.json, and as a plot of seconds and memory, bench_NAME.png."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from duogen_core.bench.measure import Report, Side
from duogen_core.errors import MissingPackage
from duogen_core.files import write_errors
from duogen_core.weights.writing import readable


def lines(report: Report) -> list[str]:
    """The report as a table: seconds of both sides, how many times faster (and its range), memory, difference."""
    where = report.machine
    head = [
        f"bench {report.benchmark} on {where['device']} ({where['device_name']}, {where['threads']} threads, "
        f"{where['dtype']}, {where['clock']} clock); torch {where['torch']}, transformers {where['transformers']}, "
        f"diffusers {where['diffusers']}",
        ", ".join(f"{name} {_plain(value)}" for name, value in report.settings.items()),
        f"reference: {report.reference}",
        "",
    ]
    table = [["", "ours", "reference", "times faster", "memory, ours", "reference", "difference"]]
    for row in report.rows:
        ratios = row.ratios
        spread = f" ({min(ratios):.2f} to {max(ratios):.2f})" if len(ratios) > 1 else ""
        table.append([
            row.case,
            _seconds(row.ours),
            _seconds(row.reference),
            f"{row.times_faster:.2f}{spread}" if ratios else "",
            _bytes(row.ours),
            _bytes(row.reference),
            "" if row.difference is None else f"{row.difference:.1e}",
        ])  # fmt: skip
    wide = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    body = [
        "  ".join(cell.ljust(size) if n == 0 else cell.rjust(size) for n, (cell, size) in enumerate(zip(line, wide)))
        for line in table
    ]
    extra = [
        f"{row.case}: " + ", ".join(f"{name.replace('_', ' ')} {_plain(value)}" for name, value in row.extra.items())
        for row in report.rows
        if row.extra
    ]
    totals = [f"{name.replace('_', ' ')}: {_plain(value, name)}" for name, value in report.totals.items()]
    stopped = ["Stopped; what had been measured is above."] if report.stopped else []
    return [*head, *(line.rstrip() for line in body), *([""] if extra or totals else []), *extra, *totals, *stopped]


def _seconds(side: Side) -> str:
    if not side.seconds:
        return ""
    return f"{side.median:.2f} s" if side.median >= 1 else f"{side.median * 1000:.2f} ms"


def _bytes(side: Side) -> str:
    return "" if side.peak_bytes is None else readable(side.peak_bytes)


def _plain(value: Any, name: str = "") -> str:
    if name.endswith("_bytes") and value is not None:
        return readable(value)
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def save(report: Report, folder: Path) -> list[Path]:
    """Writes the JSON and, where there is something to draw, the plot; returns the files."""
    data, picture = (folder / f"bench_{report.benchmark}.{kind}" for kind in ("json", "png"))
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        data.write_text(json.dumps(report.to_json(), indent=2) + "\n", "utf-8")
        if not report.rows:
            return [data]
        plot(report).savefig(picture, dpi=120)
    return [data, picture]


def figure_class() -> type:
    """matplotlib's Figure; asked for before anything is measured, so that nothing is lost where it is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackage("The plot that --out writes", "matplotlib", "train") from error
    return Figure


def plot(report: Report) -> Any:
    """Seconds and peak memory against the images (loop), the earlier images (dit), or the cases."""
    figure = figure_class()(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = [row.case for row in report.rows]
    short = [name.split()[-1] if name.startswith("image ") else name.split()[0] for name in names]
    places = range(len(names))
    series = (("ours", "#1f77b4", "o"), ("reference", "#d62728", "s"))
    for name, colour, marker in series:
        sides = [getattr(row, name) for row in report.rows]
        left.plot(places, [side.median for side in sides], color=colour, marker=marker, label=name)
        for place, side in zip(places, sides):
            if side.seconds:
                left.vlines(place, min(side.seconds), max(side.seconds), color=colour, alpha=0.4)
        if any(side.peak_bytes for side in sides):
            right.plot(
                places, [(side.peak_bytes or 0) / 2**20 for side in sides], color=colour, marker=marker, label=name
            )
    what = {"loop": "image of the answer", "dit": "earlier images"}.get(report.benchmark, "case")
    for axes, title in ((left, "seconds"), (right, "peak memory of tensors, MiB")):
        axes.set(title=title, xlabel=what, ylim=(0, None), xticks=list(places))
        axes.set_xticklabels(short)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.has_data():
            axes.legend(frameon=False)
    figure.suptitle(f"bench {report.benchmark}, {report.machine['device']}, {report.machine['dtype']}", fontsize=10)
    return figure
