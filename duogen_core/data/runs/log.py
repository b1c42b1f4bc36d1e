"""The logs of a run, whichever engine made it: read (`RunLog`), and counted (`survey`) for `data stats`.

A line of DIR/logs/*.jsonl is an entry: a page, a clip, a request. `kept` says whether it stayed; if not, `rule` is the
first rule that refused it and `value` what that rule measured. A list of objects in it, such as `pictures`, is a stage
below: one of them is kept if it has no `rule` (or its `kept` is true), and `class` says what sort it is.

    for log in open_logs(folder): found = survey(log); text(found), plot([found], file), found.to_json()

A folder without run.json whose folders have one is a run of several steps, one log each, in the order they were begun.
Something is counted under the first rule that refused it, in the order in which the engine asks its rules.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from duogen_core.errors import DuoGenError, MissingPackage
from duogen_core.files import check_depth, read_json

MAX_RUN_BYTES = 2**28  # of run.json, which may name every input
STAGES = {"web": "pages", "video": "videos", "editing": "samples", "synthetic": "documents", "dialogues": "documents",
          "dedup": "documents"}  # fmt: skip
LATER = "of those refused as a whole"  # parts of an entry that were judged before a rule refused the entry


def json_lines(file: Path) -> Iterator[dict[str, Any]]:
    """The entries of a log. Only a line feed ends a line: U+2028 and its like may stand in a title.

    A last line that is cut off is left out: the log is being written, or a kill or a loss of power left it so, and the
    engine makes it anew (see `is_whole`).
    """
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:  # a measured value may be NaN, which `parse_json` would refuse
                entry = json.loads(line)
            except (ValueError, RecursionError):
                entry = None
            if isinstance(entry, dict):
                check_depth(entry, f"{file}, line {number}")
                yield entry
            elif line.endswith(b"\n") and line.strip(b"\0\n"):
                raise DuoGenError(f"{file}, line {number}: expected a JSON object, an entry of a run's log.")


def is_whole(file: Path) -> bool:
    """Whether a log is there to the end of its last line."""
    try:
        with file.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(size - 1, 0))
            return stream.read() == b"\n"
    except FileNotFoundError:
        return False


@dataclass(frozen=True)
class RunLog:
    folder: Path
    kind: str  # the engine: web, video, …
    planned: int | None  # entries in all, as far as run.json says
    notes: tuple[str, ...] = ()  # what the engine said of its inputs

    @property
    def stage(self) -> str:
        """What its entries are called, unless they say so themselves."""
        return STAGES.get(self.kind, "entries")

    def lines(self, fetched: bool = False) -> Iterator[dict[str, Any]]:
        """Every entry, in the order of the run; before them, if asked for, those of its inputs and what was fetched."""
        inputs = [file for file in (self.folder / "inputs.jsonl",) if file.is_file()]
        before = [*inputs, *sorted((self.folder / "fetched").glob("*.jsonl"))] if fetched else []
        for file in [*before, *sorted((self.folder / "logs").glob("*.jsonl"))]:
            yield from json_lines(file)

    def seconds(self) -> Iterator[dict[str, float]]:
        """Of every finished shard, the seconds by stage."""
        for file in sorted((self.folder / "times").glob("*.json")):
            times = read_json(file)
            stages = times.get("stages") if isinstance(times, dict) else None
            if isinstance(stages, dict):
                yield {name: value for name, value in stages.items() if isinstance(value, (int, float))}


def rule_of(entry: dict[str, Any]) -> str:
    """The first rule that refused an entry or a part of one; "" for what was kept."""
    rule = entry.get("rule")
    if isinstance(rule, str) and rule and entry.get("kept") is not True:
        return rule
    return "refused" if entry.get("kept") is False else ""


def parts_of(entry: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The lists of objects in an entry, by their names."""
    return {
        name: value
        for name, value in entry.items()
        if isinstance(value, list) and value and all(isinstance(part, dict) for part in value)
    }


def kept_parts(entry: dict[str, Any], name: str) -> int:
    """How many of the list `name` of an entry were kept; none where the entry was refused as a whole."""
    return 0 if rule_of(entry) else sum(not rule_of(part) for part in parts_of(entry).get(name, ()))


def open_logs(folder: Path) -> list[RunLog]:
    """The logs of a run, or of every step of one that has several."""
    if (folder / "run.json").is_file():
        return [_open(folder)]
    steps = [file for file in folder.glob("*/run.json") if (file.parent / "logs").is_dir()]
    if not steps:
        raise DuoGenError(f"{folder} holds no run.json; expected a folder that `data web` or another engine made.")
    return [_open(file.parent) for file in sorted(steps, key=lambda file: (file.stat().st_mtime_ns, file))]


def _open(folder: Path) -> RunLog:
    value = read_json(folder / "run.json", limit=MAX_RUN_BYTES)
    if not isinstance(value, dict) or not isinstance(value.get("format"), str):
        raise DuoGenError(f"{folder / 'run.json'} names no format; was it made by a data engine?")
    kind = value["format"].removeprefix("duogen-").removesuffix("-run")
    planned = next((value[name] for name in ("pages", "items", "entries") if isinstance(value.get(name), int)), None)
    notes = value.get("notes")
    return RunLog(folder, kind, planned, tuple(map(str, notes)) if isinstance(notes, list) else ())


# ------------------------------------------------------------ what was kept, and which rule refused the rest

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
