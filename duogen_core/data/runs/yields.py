"""What the logs of a run say: how much came in and stayed at every stage, and which rule refused the rest first.

    found = survey(log)          # log: duogen_core.data.runs.log.RunLog
    text(found), plot([found], file), found.to_json()

Something is counted under the first rule that refused it, in the order in which the engine asks its rules.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from duogen_core.data.runs.log import (
    LATER,
    RunLog,
    parts_of,
    rule_of,
)
from duogen_core.errors import DuoGenError, MissingPackage

ORDERS = {  # of the rules of each stage; others follow in the order in which they were first met
    "pages": (
        "unreadable", "too_many_bytes", "too_many_nodes", "too_deep", "robots", "garbled",
        "text_only", "too_short", "too_long", "linked", "repeated", "language", "too_many_images", "too_slow",
        "no_picture_left", "too_many_pictures",
    ),
    "pictures": (
        "svg", "region", "advert", "refused_link", "missing", "unreadable", "too_many_bytes", "icon", "small",
        "unknown_format", "too_many_pixels", "animated", "too_much_memory", "too_slow", "crashed", "broken", "blank",
        "code", "narrow", "low", "aspect", "nsfw", "duplicate",
    ),
}  # fmt: skip


class NothingYet(DuoGenError):
    """A run, or a step of one, that was begun and has finished nothing."""


@dataclass
class Stage:
    """One kind of thing that rules look at. rules: how many each refused; "" are the kept ones."""

    rules: Counter[str] = field(default_factory=Counter)
    classes: Counter[str] = field(default_factory=Counter)  # of kept ones
    judged: bool = False  # whether anything in the log says that rules were asked

    def add(self, entry: dict[str, Any], rule: str) -> None:
        self.rules[rule] += 1
        self.judged |= any(name in entry for name in ("rule", "kept", "class"))
        if not rule and isinstance(entry.get("class"), str):
            self.classes[entry["class"]] += 1

    @property
    def total(self) -> int:
        return sum(self.rules.values())

    def order(self, name: str) -> list[str]:
        known = [rule for rule in ORDERS.get(name, ()) if self.rules[rule]]
        return known + [rule for rule in self.rules if rule and rule not in known]


@dataclass
class Yield:
    """What one run, or one step of it, let through."""

    log: RunLog
    stages: dict[str, Stage]
    removed: Counter[str]  # personal data
    words: int  # of kept entries
    seconds: Counter[str]

    def to_json(self) -> dict[str, Any]:
        def figures(name: str, stage: Stage) -> dict[str, Any]:
            refused = {rule: stage.rules[rule] for rule in stage.order(name)}
            classes = {"classes": dict(sorted(stage.classes.items()))} if stage.classes else {}
            return {"in": stage.total, "kept": stage.rules[""], "refused": refused, **classes}

        return {
            "run": self.log.kind,
            "planned": self.log.planned,
            **{name: figures(name, stage) for name, stage in self.stages.items()},
            "personal_data_removed": dict(sorted(self.removed.items())),
            "words": self.words,
            **({"notes": list(self.log.notes)} if self.log.notes else {}),
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
        }


def surveys(logs: Sequence[RunLog]) -> tuple[list[Yield], list[RunLog]]:
    """Of the steps of a run those that finished something, and those that did not: one of them must have."""
    found, empty = [], []
    for log in logs:
        try:
            found.append(survey(log))
        except NothingYet:
            if len(logs) == 1:
                raise
            empty.append(log)
    if not found:
        names = ", ".join(log.folder.name for log in empty)
        raise NothingYet(f"No step of {logs[0].folder.parent} has finished anything yet ({names}); run one again.")
    return found, empty


def survey(log: RunLog) -> Yield:
    stages: dict[str, Stage] = defaultdict(Stage)
    removed, seconds, words = Counter(), Counter(), 0
    for entry in log.lines(fetched=True):
        name, rule = str(entry.get("stage") or log.stage), rule_of(entry)
        stages[name].add(entry, rule)
        for part_name, parts in parts_of(entry).items():
            for part in parts:
                stages[part_name].add(part, rule_of(part) or (LATER if rule else ""))
        if not rule:
            words += entry["words"] if isinstance(entry.get("words"), int) else 0
            removed.update(entry["removed"] if isinstance(entry.get("removed"), dict) else {})
    for each in log.seconds():
        seconds.update(each)
    if not stages:
        raise NothingYet(f"{log.folder} has no finished shard yet; run the command that made it again.")
    return Yield(log, {name: stage for name, stage in stages.items() if stage.judged}, removed, words, seconds)


def refused_most(found: Yield) -> str:
    """Which rule refused most at every stage, where nothing was kept."""
    told = []
    for name, stage in found.stages.items():
        rules = [(count, rule) for rule, count in stage.rules.items() if rule and rule != LATER]
        if rules:
            count, rule = max(rules)
            told.append(f"of {stage.total:,} {name} {rule} refused {count:,}")
    return "; ".join(told)


def text(found: Yield) -> str:
    """The table, to be printed."""
    rows: list[tuple[str, str, str]] = []
    for name, stage in found.stages.items():
        rows.append((name, f"{stage.total:,}", "100.0%"))
        rows += [(f"  {r}", f"-{stage.rules[r]:,}", _share(stage.rules[r], stage.total)) for r in stage.order(name)]
        rows.append(("  kept", f"{stage.rules['']:,}", _share(stage.rules[""], stage.total)))
        rows += [(f"    {k}", f"{n:,}", _share(n, stage.rules[""])) for k, n in sorted(stage.classes.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{a.ljust(widths[0])}  {b.rjust(widths[1])}  {c.rjust(widths[2])}" for a, b, c in rows]
    lines += found.log.notes
    if found.removed:
        lines.append(
            "personal data removed: " + ", ".join(f"{n:,} {kind}" for kind, n in sorted(found.removed.items()))
        )
    if found.seconds:
        spent = ", ".join(f"{name} {value:,.1f}" for name, value in found.seconds.most_common())
        lines.append(f"seconds, all workers together: {spent}")
    return "\n".join(lines)


def _share(part: int, total: int) -> str:
    return f"{part / total:.1%}" if total else "-"


def plot(yields: Sequence[Yield], file: Path) -> None:
    """What is left after each rule, a chart for every stage, as a PNG."""
    try:
        import matplotlib
    except ImportError:
        raise MissingPackage("The plot", "matplotlib", "train") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    charts = [
        (f"{found.log.folder.name}: {name}" if len(yields) > 1 else name, name, stage)
        for found in yields
        for name, stage in found.stages.items()
    ]
    rows = -(-len(charts) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(12, 5 * rows), layout="constrained", squeeze=False)
    for axis in axes.flat[len(charts) :]:
        axis.set_visible(False)
    for axis, (title, name, stage) in zip(axes.flat, charts):
        rules, left = stage.order(name), [stage.total]
        for rule in rules:
            left.append(left[-1] - stage.rules[rule])
        axis.barh(range(len(left)), left, color=["#9aa7b5", *["#3b6ea5"] * len(rules)])
        axis.set_yticks(range(len(left)), ["in", *(f"after {rule}" for rule in rules)])
        axis.bar_label(axis.containers[0], [f"{value:,}" for value in left], padding=3)
        axis.invert_yaxis()
        axis.set_xlim(0, max(left[0], 1) * 1.15)
        axis.set_title(title)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110)
    plt.close(figure)
