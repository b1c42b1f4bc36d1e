"""What the logs of a run say: how many pages and pictures came in and stayed, and which rule refused the others first.

    table = survey(run)          # reads OUT/logs and OUT/times
    text(table), plot(table, file), table.to_json()

A page or picture is counted under the first rule that refused it, in the order in which the rules are asked.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from duogen_core.data.web.plan import Run
from duogen_core.errors import DuoGenError

PAGE_ORDER = (
    "unreadable", "too_many_bytes", "too_many_nodes", "too_deep", "robots", "garbled", "text_only", "too_short",
    "too_long", "linked", "repeated", "language", "too_many_images", "too_slow", "no_picture_left", "too_many_pictures",
)  # fmt: skip
PICTURE_ORDER = (
    "svg", "region", "advert", "refused_link", "missing", "unreadable", "too_many_bytes", "icon", "small",
    "unknown_format", "too_many_pixels", "animated", "too_much_memory", "too_slow", "crashed", "broken", "blank",
    "code", "narrow", "low", "aspect", "duplicate",
)  # fmt: skip
UNMEASURED = "of pages that were refused"  # a page's later rules come after its pictures were judged


@dataclass
class Survey:
    pages: Counter[str] = field(default_factory=Counter)  # by the rule that refused them; "" for kept ones
    pictures: Counter[str] = field(default_factory=Counter)
    classes: Counter[str] = field(default_factory=Counter)  # of kept pictures
    removed: Counter[str] = field(default_factory=Counter)  # personal data
    words: int = 0  # of kept pages
    seconds: Counter[str] = field(default_factory=Counter)
    planned: int = 0

    def to_json(self) -> dict[str, Any]:
        def stage(counts: Counter[str], order: tuple[str, ...]) -> dict[str, Any]:
            refused = {rule: counts[rule] for rule in _ordered(counts, order)}
            return {"in": sum(counts.values()), "kept": counts[""], "refused": refused}

        return {
            "planned_pages": self.planned,
            "pages": stage(self.pages, PAGE_ORDER),
            "pictures": stage(self.pictures, PICTURE_ORDER),
            "classes": dict(sorted(self.classes.items())),
            "personal_data_removed": dict(sorted(self.removed.items())),
            "words": self.words,
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
        }


def log_lines(run: Run) -> Iterator[dict[str, Any]]:
    """Every page's entry, in the order of the run."""
    for shard in range(run.shards):
        if run.is_done(shard):
            with run.log(shard).open(encoding="utf-8") as lines:
                yield from map(json.loads, lines)


def survey(run: Run) -> Survey:
    found = Survey(planned=run.pages)
    for entry in log_lines(run):
        found.pages[entry.get("rule", "")] += 1
        for picture in entry["pictures"]:
            rule = picture.get("rule", "" if entry["kept"] else UNMEASURED)
            found.pictures[rule] += 1
            if not rule:
                found.classes[picture["class"]] += 1
        if entry["kept"]:
            found.words += entry["words"]
            found.removed.update(entry["removed"])
    for shard in range(run.shards):
        if run.times(shard).is_file():
            found.seconds.update(json.loads(run.times(shard).read_text("utf-8"))["stages"])
    if not found.pages:
        raise DuoGenError(f"{run.folder} has no finished shard yet; run `data web` with the same --out first.")
    return found


def _ordered(counts: Counter[str], order: tuple[str, ...]) -> list[str]:
    known = [rule for rule in order if counts[rule]]
    return known + sorted(rule for rule in counts if rule and rule not in order)


def text(found: Survey) -> str:
    """The table, to be printed."""
    rows: list[tuple[str, str, str]] = []
    for name, counts, order in (("pages", found.pages, PAGE_ORDER), ("pictures", found.pictures, PICTURE_ORDER)):
        total = sum(counts.values())
        rows.append((name, f"{total:,}", "100.0%"))
        rows += [(f"  {rule}", f"-{counts[rule]:,}", _share(counts[rule], total)) for rule in _ordered(counts, order)]
        rows.append(("  kept", f"{counts['']:,}", _share(counts[""], total)))
    rows += [
        (f"    {kind}", f"{count:,}", _share(count, found.pictures[""]))
        for kind, count in sorted(found.classes.items())
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{a.ljust(widths[0])}  {b.rjust(widths[1])}  {c.rjust(widths[2])}" for a, b, c in rows]
    if found.removed:
        lines.append(
            "personal data removed: " + ", ".join(f"{count:,} {kind}" for kind, count in sorted(found.removed.items()))
        )
    spent = ", ".join(f"{name} {value:,.1f}" for name, value in found.seconds.most_common())
    return "\n".join([*lines, f"seconds, all workers together: {spent}"])


def _share(part: int, total: int) -> str:
    return f"{part / total:.1%}" if total else "-"


def plot(found: Survey, file: Path) -> None:
    """What is left after each rule, for pages and for pictures, as a PNG."""
    try:
        import matplotlib
    except ImportError:
        raise DuoGenError("The plot needs matplotlib; install it with: pip install 'duogen[train]'.") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    stages = [("pages", found.pages, PAGE_ORDER), ("pictures", found.pictures, PICTURE_ORDER)]
    figure, axes = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    for axis, (name, counts, order) in zip(axes, stages):
        rules, left = _ordered(counts, order), [sum(counts.values())]
        for rule in rules:
            left.append(left[-1] - counts[rule])
        axis.barh(range(len(left)), left, color=["#9aa7b5", *["#3b6ea5"] * len(rules)])
        axis.set_yticks(range(len(left)), ["in", *(f"after {rule}" for rule in rules)])
        axis.bar_label(axis.containers[0], [f"{value:,}" for value in left], padding=3)
        axis.invert_yaxis()
        axis.set_xlim(0, left[0] * 1.15)
        axis.set_title(name)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110)
    plt.close(figure)
