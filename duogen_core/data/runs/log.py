"""Reads the logs of a run, whichever engine made it: DIR/run.json, DIR/logs/*.jsonl and DIR/times/*.json.

A line of a log is an entry: a page, a clip, a request. `kept` says whether it stayed; if not, `rule` is the first rule
that refused it and `value` what that rule measured. A list of objects in it, such as `pictures`, is a stage below:
one of them is kept if it has no `rule` (or its `kept` is true), and `class` says what sort it is.

    for log in open_logs(folder): log.name, log.stage, log.lines()

A folder without run.json whose folders have one is a run of several steps, one log each, in the order they were begun.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duogen_core.errors import DuoGenError
from duogen_core.files import check_depth, read_json

MAX_RUN_BYTES = 2**28  # of run.json, which may name every input
STAGES = {"web": "pages", "video": "videos", "editing": "samples", "synthetic": "documents", "dialogues": "documents"}
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
