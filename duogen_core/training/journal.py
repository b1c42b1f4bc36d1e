"""What a run writes down beside its weights: config.json (settings, seed, versions), metrics.jsonl, TensorBoard.

metrics.jsonl has one JSON object a line, each with `step` and `seconds`: means of the figures, evaluations, settings
that changed on resume.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from duogen_core import __version__
from duogen_core.training.board import Board
from duogen_core.training.checkpoints import write_text
from duogen_core.training.curve import read_lines

PACKAGES = ("torch", "transformers", "diffusers", "accelerate", "peft", "tokenizers", "safetensors", "numpy")
UNTOLD = {"out", "versions"}  # a run folder may be moved, and every session writes its own versions
CHANGES = {"changed", "changed_data"}  # lines about a session; all others are about the weights of their step


class Journal:
    def __init__(self, folder: Path, tensorboard: bool = False, quiet: bool = False) -> None:
        """quiet: not the main process; nothing is written."""
        self.folder, self.tensorboard, self.quiet = folder, tensorboard and not quiet, quiet
        self.board: Board | None = None
        self.begun = 0  # the step from which this session went on

    def begin(self, step: int) -> None:
        """Lines after `step` belong to a session that was killed, and will be written again."""
        self.begun = step
        path = self.folder / "metrics.jsonl"
        if path.exists() and not self.quiet:
            self._write(line for line in read_lines(path) if line["step"] <= step)
        if self.tensorboard:
            self.board = Board(self.folder, step)

    def _write(self, lines: Iterable[Mapping[str, Any]]) -> None:
        write_text(self.folder / "metrics.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines))

    def changes(self, record: Mapping[str, Any]) -> dict[str, list[Any]]:
        """What is other than in the session before, {name: [old, new]}."""
        path = self.folder / "config.json"
        try:
            before = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return changes(before, json.loads(json.dumps(record, default=str)))

    def settings(self, record: Mapping[str, Any]) -> None:
        if not self.quiet:
            record = {**record, "versions": versions()}
            write_text(self.folder / "config.json", json.dumps(record, indent=2, default=str) + "\n")

    def add(self, step: int, seconds: float, values: Mapping[str, Any]) -> None:
        if self.quiet:
            return
        path = self.folder / "metrics.jsonl"
        entry = {"step": step, "seconds": round(seconds, 1), **values}
        if step == self.begun and path.exists() and not CHANGES & entry.keys():
            # A session that was killed after the last checkpoint may have measured the same of the same weights.
            lines = read_lines(path)
            others = [line for line in lines if line["step"] != step or line.keys() != entry.keys()]
            if len(others) < len(lines):
                self._write(others)
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        if self.board is not None:
            self.board.add(step, values)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[Any]]:
    """{name: [old, new]} of two records; settings in sections by their path, "families.guide"."""
    old, new = (flat({**record, **record.get("config", {})}) for record in (before, now))
    names = [name for name in [*new, *(old.keys() - new.keys())] if name.split(".")[0] not in {*UNTOLD, "config"}]
    return {name: [old.get(name), new.get(name)] for name in names if old.get(name) != new.get(name)}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def sentence(changed: Mapping[str, list[Any]]) -> str:
    """ "lr: 0.003 -> 0.001, steps: 12 -> 8" """
    return ", ".join(f"{name}: {old} -> {new}" for name, (old, new) in changed.items())


def versions() -> dict[str, str]:
    found = {"duogen": __version__, "python": platform.python_version()}
    found["machine"] = f"{platform.system()} {platform.machine()}"
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
