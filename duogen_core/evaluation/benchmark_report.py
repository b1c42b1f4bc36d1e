"""Files of results -> one HTML page that needs nothing else, and the same figures as JSON.

Several models (and judges) of one benchmark stand side by side: the official figures and every metric by category,
each with its interval and how many answers it is of; the differences of models over the requests that both answered;
how far two judges agree on the same answers; published figures with their source; the best, the worst and some answers
by chance. Several benchmarks are several parts of the page.

Intervals: of a mean, the bootstrap (BCa), answers to one prompt drawn together; of an official figure that is no mean
(a mean of categories, a root of products), the jackknife in blocks, from the benchmark's own sums. Where values are all
the same, or there are fewer than two, there is none. All text of models, judges and files is escaped; there is no
script, and a Content-Security-Policy lets a browser load nothing.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from duogen_core.document import Document, Picture
from duogen_core.errors import DuoGenError
from duogen_core.evaluation.benchmarks import NAMES, Benchmark, Metric, benchmark
from duogen_core.evaluation.results import Case, Results
from duogen_core.evaluation.statistics import Interval, clustered, kappa, spearman

PUBLISHED = Path(__file__).with_name("published.yaml")
BLOCKS = 200  # of the jackknife
THUMBNAIL, QUALITY = 220, 80  # pixels of the longer side; of a JPEG
MOST_WORDS, MOST_IMAGES = 1500, 8  # of an answer in the gallery
MOST_STEPS = 20  # of a scale whose values are taken as labels
COLOURS = ("#3b7dd8", "#d9822b", "#2e9e4f", "#a04fc4", "#c23b50", "#5f6b76")
BAR = 120  # pixels


@dataclass(frozen=True)
class Figure:
    """A number, its interval, and of how many answers it is; None where there is none."""

    value: float | None
    interval: Interval | None = None
    count: int = 0
    scale: tuple[float, float] = (0.0, 1.0)

    @property
    def bar(self) -> dict[str, float] | None:
        """Where it begins and ends on its scale, in pixels, and the interval's ends."""
        if self.value is None:
            return None
        low, high = self.scale
        place = lambda value: round(BAR * min(max((value - low) / (high - low), 0.0), 1.0), 1)  # noqa: E731
        ends = self.interval or (self.value, self.value)
        return {"width": place(self.value), "low": place(ends[0]), "high": place(ends[1])}

    def to_json(self) -> dict[str, Any]:
        return {
            "value": self.value,
            "interval": None if self.interval is None else list(self.interval),
            "n": self.count,
        }


def mean_of(cases: Iterable[Case], metric: str, scale: Metric | None = None, seed: int = 0) -> Figure:
    """The mean of a metric with its interval; answers to the same prompt are drawn together."""
    groups: dict[str, list[float]] = {}
    for case in cases:
        value = case.values.get(metric)
        if value is not None:
            groups.setdefault(_group(case), []).append(value)
    ends = (scale.low, scale.high) if scale is not None else (0.0, 1.0)
    values = [value for group in groups.values() for value in group]
    if not values:
        return Figure(None, scale=ends)
    return Figure(sum(values) / len(values), clustered(groups.values(), seed=seed), len(values), ends)


def _group(case: Case) -> str:
    """Several samples of one prompt say less than as many prompts."""
    prompt = case.detail.get("prompt")
    return f"prompt {prompt}" if isinstance(prompt, str) else f"id {case.id}"


def official(results: Results, seed: int = 0) -> dict[str, Figure]:
    """The summary's figures, each with its interval; those of a category are called "category: figure"."""
    bench, metrics = _known(results.benchmark), metrics_of(results)
    means: dict[str, Figure] = {}
    factors = []  # of sums on another scale than the scores: shares for scores to 10, hundreds for shares
    for name, value in results.summary.items():
        category, _, metric = name.rpartition(": ")
        if metric in metrics:
            cases = [case for case in results.cases if not category or case.category == category]
            means[name] = mean_of(cases, metric, metrics[metric], seed)
            mean = means[name].value
            factors += [one for one in (0.01, 0.1, 10, 100) if mean and abs(value / mean / one - 1) < 0.01]
    left = [name for name, value in results.summary.items() if not _is(means.get(name), value)]
    ends = _jackknife(results, bench, left) if bench is not None and left else {}
    factor = max(set(factors), key=factors.count) if factors else 1.0
    low, high = _common_scale(metrics)
    found = {}
    for name, value in results.summary.items():
        if name not in left:
            found[name] = means[name]
            continue
        scale, interval = (low * factor, high * factor), ends.get(name)
        if scale[0] <= value <= scale[1]:
            interval = interval and (max(interval[0], scale[0]), min(interval[1], scale[1]))
        else:  # on a scale of its own
            scale = (min(0.0, value), next((top for top in (10 * high, 100 * high) if value <= top), value))
        count = means[name].count if name in means else len(results.cases)
        found[name] = Figure(value, interval, count, scale)
    return found


def _is(figure: Figure | None, value: float) -> bool:
    return figure is not None and figure.value is not None and abs(figure.value - value) < 1e-9 * max(1.0, abs(value))


def _common_scale(metrics: Mapping[str, Metric]) -> tuple[float, float]:
    scales = {(one.low, one.high) for one in metrics.values() if one.by == "judge"} or {
        (one.low, one.high) for one in metrics.values()
    }
    return (min((low for low, _ in scales), default=0.0), max((high for _, high in scales), default=1.0))


def _jackknife(results: Results, bench: Benchmark, names: Sequence[str]) -> dict[str, Interval]:
    """The 95% interval of figures by leaving out one block of answers after the other.

    Unlike drawing anew it never counts an answer twice, which sums that group answers would take for one."""
    try:
        whole = bench.summary([case.score for case in results.cases])
    except (KeyError, TypeError, ValueError, ZeroDivisionError, AttributeError):  # a file made by hand, without detail
        return {}
    names = [name for name in names if abs(whole.get(name, float("nan")) - results.summary[name]) < 1e-6]
    groups: dict[str, list[Case]] = {}
    for case in results.cases:
        groups.setdefault(_group(case), []).append(case)
    keys = sorted(groups)
    Random(0).shuffle(keys)
    count = min(BLOCKS, len(keys))
    if count < 2 or not names:
        return {}
    block_of = {key: number % count for number, key in enumerate(keys)}
    values: dict[str, list[float]] = {name: [] for name in names}
    for block in range(count):
        figures = bench.summary([case.score for case in results.cases if block_of[_group(case)] != block])
        for name in names:
            if name in figures:
                values[name].append(figures[name])
    ends = {}
    for name, found in values.items():
        if len(found) == count and len(set(found)) > 1:
            spread = np.sqrt((count - 1) / count * ((np.array(found) - np.mean(found)) ** 2).sum())
            ends[name] = (float(results.summary[name] - 1.96 * spread), float(results.summary[name] + 1.96 * spread))
    return ends


def _known(name: str) -> Benchmark | None:
    if name not in NAMES:
        return None
    try:
        return benchmark(name)
    except ImportError:
        return None


def metrics_of(results: Results) -> dict[str, Metric]:
    """The metrics of a file; of one that does not say, those of its benchmark, or of the values themselves."""
    if results.metrics:
        return dict(results.metrics)
    if (bench := _known(results.benchmark)) is not None:
        return dict(bench.metrics)
    names = dict.fromkeys(name for case in results.cases for name in case.values)
    ends = {}
    for name in names:
        values = [one for case in results.cases if (one := case.values.get(name)) is not None]
        low, high = min(values, default=0.0), max(values, default=1.0)
        ends[name] = Metric(min(0.0, low), max(high, low + 1e-9, 1.0), "")
    return ends


# ------------------------------------------------------------ two judges, two models


def same_answers(one: Results, other: Results) -> bool:
    """Whether two files are of the same answers: of one model and, where both say so, of one folder."""
    folders = [None if side.folder is None else side.folder.resolve() for side in (one, other)]
    return one.model == other.model and (None in folders or folders[0] == folders[1])


def _on_one_scale(one: Results, other: Results) -> dict[str, Metric]:
    """The metrics that both have on the same scale; of files made by hand it may be another."""
    theirs = {name: (metric.low, metric.high) for name, metric in metrics_of(other).items()}
    return {name: own for name, own in metrics_of(one).items() if theirs.get(name) == (own.low, own.high)}


def judges_agree(one: Results, other: Results) -> list[dict[str, Any]]:
    """Two judges on the same answers, for each metric: how many, kappa (plain, weighted), Spearman, their means.

    Kappa takes the values as labels, so it is there where a scale has few steps and all values are whole numbers."""
    theirs = {case.id: case for case in other.cases}
    found = []
    for name, metric in _on_one_scale(one, other).items():
        pairs = [
            (case.values[name], theirs[case.id].values[name])
            for case in one.cases
            if case.id in theirs and case.values.get(name) is not None and theirs[case.id].values.get(name) is not None
        ]
        if not pairs:
            continue
        ours, others = zip(*pairs)
        whole = all(float(value).is_integer() for pair in pairs for value in pair)
        steps = metric.high - metric.low
        plain = weighted = None
        if whole and steps <= MOST_STEPS and float(metric.low).is_integer() and float(steps).is_integer():
            labels = range(int(metric.low), int(metric.high) + 1)
            plain = kappa(ours, others, labels=labels)
            weighted = kappa(ours, others, weights="quadratic", labels=labels) if steps > 1 else None
        means = (sum(ours) / len(pairs), sum(others) / len(pairs))
        found.append(
            {
                "metric": name,
                "n": len(pairs),
                "kappa": plain,
                "weighted": weighted,
                "spearman": spearman(ours, others),
                "means": means,
            }
        )
    return found


def differences(one: Results, other: Results, seed: int = 0) -> list[dict[str, Any]]:
    """Two models on the requests that both answered: the mean of (other - one) for each metric, with its interval."""
    theirs = {case.id: case for case in other.cases}
    found = []
    for name, metric in _on_one_scale(one, other).items():
        cases = []
        for case in one.cases:
            mine, its = case.values.get(name), theirs[case.id].values.get(name) if case.id in theirs else None
            if mine is not None and its is not None:
                cases.append(Case(case.id, "", {name: its - mine}, {}, case.detail))
        figure = mean_of(cases, name, seed=seed)
        if figure.value is not None:
            found.append({"metric": name, "figure": figure, "lower": metric.lower})
    return found


# ------------------------------------------------------------ published figures


@lru_cache(maxsize=1)
def published() -> tuple[dict[str, Any], ...]:
    """What papers and pages say: {"benchmark", "of", "model", "metric", "value", "high", "source"}."""
    import yaml

    value = yaml.safe_load(PUBLISHED.read_text("utf-8"))
    return tuple({"of": "", **one, "source": value["sources"][one["source"]]} for one in value["figures"])


def beside(name: str, labels: Sequence[str], figures: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The published figures of a benchmark, and under each group ours of the same name, on the published scale."""
    ours = {row["name"].casefold(): row["cells"] for row in figures}
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for one in published():
        if one["benchmark"] == name:
            groups.setdefault((one["of"], one["metric"], one["high"]), []).append({**one, "ours": False})
    for (of, metric, high), rows in groups.items():
        cells = ours.get(str(rows[0].get("figure", metric)).casefold(), ())
        for label, cell in zip(labels, cells):
            if cell.value is not None and (cell.scale[0] == 0 or cell.scale[1] == high):
                value = cell.value * high / cell.scale[1]
                source = "measured here, on other requests than those" if of else "measured here"
                row = {"model": label, "of": "", "metric": metric, "value": value, "high": high, "source": source}
                rows.append({"benchmark": name, **row, "ours": True})
    return [row for rows in groups.values() for row in rows]


# ------------------------------------------------------------ the gallery


def worth(case: Case, metrics: Mapping[str, Metric]) -> float | None:
    """How good an answer is, from 0 to 1: the mean of its metrics on their scales, those of the judge if it has any."""
    judged = {name: one for name, one in metrics.items() if one.by == "judge" and case.values.get(name) is not None}
    found = []
    for name, metric in (judged or metrics).items():
        value = case.values.get(name)
        if value is not None:
            share = (value - metric.low) / (metric.high - metric.low)
            found.append(1 - share if metric.lower else share)
    return sum(found) / len(found) if found else None


def chosen(results: Results, count: int, seed: int = 0) -> dict[str, list[Case]]:
    """The worst, the best and some by chance; no answer stands in two of them."""
    metrics = metrics_of(results)
    scored = [(worth(case, metrics), case.id, case) for case in results.cases]
    order = [case for value, _, case in sorted((one for one in scored if one[0] is not None), key=lambda one: one[:2])]
    worst = order[: min(count, len(order) // 2)]
    best = order[::-1][: min(count, len(order) - len(worst))]
    taken = {case.id for case in (*worst, *best)}
    rest = [case for case in results.cases if case.id not in taken]
    by_chance = Random(f"gallery-{seed}").sample(rest, min(count, len(rest)))
    return {"Best": best, "Worst": worst, "By chance": by_chance}


def tile(results: Results, case: Case) -> dict[str, Any]:
    """What the gallery shows of an answer; one that is not at hand says so."""
    entry = {"case": case, "asked": "", "parts": [], "more": 0, "missing": ""}
    try:
        document = results.document(case)
    except DuoGenError as error:
        return {**entry, "missing": str(error)}
    asked = next(
        (number for number, turn in enumerate(document.turns) if turn.role == "assistant"), len(document.turns)
    )
    words = " ".join(turn.text for turn in document.turns[:asked] if turn.role == "user")
    shown = [{"image": thumbnail(one)} for turn in document.turns[:asked] for one in turn.pictures[:MOST_IMAGES]]
    parts, images, left = [], 0, MOST_WORDS
    for part in _answer_parts(document, asked):
        if isinstance(part, Picture):
            images += 1
            if images <= MOST_IMAGES:
                parts.append({"image": thumbnail(part)})
        elif part.text.strip() and left > 0:
            text = part.text.strip()
            parts.append({"text": text[:left] + (" …" if len(text) > left else "")})
            left -= len(text)
    return {**entry, "asked": words[:MOST_WORDS], "shown": shown, "parts": parts, "more": max(images - MOST_IMAGES, 0)}


def _answer_parts(document: Document, asked: int):
    return [part for turn in document.turns[asked:] for part in turn.parts]


def thumbnail(picture: Picture, side: int = THUMBNAIL) -> str:
    from PIL import Image

    image = Image.fromarray(picture.pixels)
    image.thumbnail((side, side))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


# ------------------------------------------------------------ the page


def sections(
    files: Sequence[Results], gallery: int = 4, seed: int = 0, step: Callable[[str], None] = lambda what: None
) -> list[dict[str, Any]]:
    """What the page shows, a part for each benchmark."""
    found = []
    for name in dict.fromkeys(one.benchmark for one in files):
        here = [one for one in files if one.benchmark == name]
        labels = _labels(here)
        step(name)
        bench = _known(name)
        metrics = {key: metric for one in here for key, metric in metrics_of(one).items()}
        summaries = [official(one, seed) for one in here]
        figures = [
            {"name": key, "cells": [summary.get(key, Figure(None)) for summary in summaries]}
            for key in dict.fromkeys(key for summary in summaries for key in summary)
        ]
        whole = [row for row in figures if ": " not in row["name"]]
        by_group = [row for row in figures if ": " in row["name"]]
        categories = sorted({case.category for one in here for case in one.cases})
        tables = []
        for key, metric in metrics.items():
            rows = []
            for category in categories if len(categories) > 1 else ():
                cells = [
                    mean_of([case for case in one.cases if case.category == category], key, metric, seed)
                    for one in here
                ]
                if any(cell.value is not None for cell in cells):
                    rows.append({"name": category or "(none)", "cells": cells})
            overall = [mean_of(one.cases, key, metric, seed) for one in here]
            if any(cell.value is not None for cell in overall):
                tables.append({"metric": key, "about": metric, "rows": rows, "whole": overall})
        agreement, compared = [], []
        for number, one in enumerate(here):
            for other in range(number + 1, len(here)):
                if same_answers(one, here[other]) and here[other].judge != one.judge:
                    rows = judges_agree(one, here[other])
                    if rows:
                        agreement.append({"model": one.model, "judges": (one.judge, here[other].judge), "rows": rows})
            first = next(k for k in range(len(here)) if here[k].judge == one.judge)
            if number != first and not same_answers(here[first], one):
                rows = differences(here[first], one, seed)
                if rows:
                    compared.append({"of": labels[number], "to": labels[first], "rows": rows})
        step(f"{name}: gallery")
        galleries = []
        for label, one in zip(labels, here):
            groups = {title: [tile(one, case) for case in cases] for title, cases in chosen(one, gallery, seed).items()}
            galleries.append({"label": label, "groups": {title: tiles for title, tiles in groups.items() if tiles}})
        found.append(
            {
                "name": name,
                "title": bench.title if bench is not None else name,
                "source": bench.source if bench is not None else "",
                "columns": [
                    {
                        "label": label,
                        "colour": COLOURS[number % len(COLOURS)],
                        "results": one,
                        "unjudged": _without_score(one),
                    }
                    for number, (label, one) in enumerate(zip(labels, here))
                ],
                "figures": whole or by_group,
                # where they are no means of scores, the tables below do not show them
                "by_group": [] if not whole or all(_shown(row, tables) for row in by_group) else by_group,
                "tables": tables,
                "agreement": agreement,
                "compared": compared,
                "published": beside(name, labels, figures),
                "galleries": galleries if gallery else [],
            }
        )
    return found


def _without_score(results: Results) -> int | str:
    """How many answers the judge gave none, and requests the model no answer."""
    said = [results.about.get(name) for name in ("unjudged", "failed")]
    counts = [one for one in said if type(one) is int and 0 <= one < 10**9]
    return sum(counts) if counts else "–"


def _shown(row: Mapping[str, Any], tables: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a table by category has the same figures as an official one of a category."""
    category, _, metric = row["name"].rpartition(": ")
    for table in tables:
        for one in table["rows"] if table["metric"] == metric else ():
            if one["name"] == category:
                return all(a.value is None or _is(b, a.value) for a, b in zip(row["cells"], one["cells"]))
    return False


def _labels(here: Sequence[Results]) -> list[str]:
    """The model; with its judge where it comes more than once, then with its folder, then with a number."""
    models = [one.model for one in here]
    labels = [one.model if models.count(one.model) == 1 else f"{one.model}, {one.judge or 'no judge'}" for one in here]
    folders = ["" if one.folder is None else one.folder.resolve().name for one in here]
    for names in (folders, [str(number) for number in range(1, len(here) + 1)]):
        labels = [
            f"{label} ({name})" if labels.count(label) > 1 and name else label for label, name in zip(labels, names)
        ]
    return labels


def page(parts: Sequence[Mapping[str, Any]]) -> str:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = number
    template = environment.from_string(Path(__file__).with_name("benchmark_report.html").read_text("utf-8"))
    return template.render(parts=parts, bar_width=BAR)


def number(value: float | None, scale: tuple[float, float] = (0.0, 10.0)) -> str:
    """A figure with as many digits as its scale bears."""
    if value is None:
        return "–"
    width = scale[1] - scale[0]
    return f"{value:.{3 if width <= 1 else 2 if width <= 20 else 1}f}"


def figures_json(parts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The figures of the page, without its answers."""
    found = []
    for part in parts:
        labels = [column["label"] for column in part["columns"]]

        def row(cells: Sequence[Figure], labels: Sequence[str] = labels) -> dict[str, Any]:
            return {label: cell.to_json() for label, cell in zip(labels, cells) if cell.value is not None}

        found.append(
            {
                "benchmark": part["name"],
                "figures": {one["name"]: row(one["cells"]) for one in (*part["figures"], *part["by_group"])},
                "metrics": {
                    table["metric"]: {"all": row(table["whole"])}
                    | {"categories": {one["name"]: row(one["cells"]) for one in table["rows"]}}
                    for table in part["tables"]
                },
                "agreement": part["agreement"],
                "differences": [
                    {**one, "rows": [{**each, "figure": each["figure"].to_json()} for each in one["rows"]]}
                    for one in part["compared"]
                ],
                "published": part["published"],
            }
        )
    return found
