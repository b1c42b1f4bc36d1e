"""What a run writes down beside its weights, and what it prints.

config.json      settings, seed, versions; compared when the run goes on
metrics.jsonl    one JSON object a line, each with `step` and `seconds`: means of the figures, scores, changed settings
tensorboard/     the same figures, and at Weights & Biases if asked for (trackers.py)
loss.png         plotted from metrics.jsonl by matplotlib, an optional extra; scores.png where the run was scored

metrics.jsonl is ours and not a tracker's: a run that was killed goes on from its last checkpoint, and the lines after
that must go, or a step would stand there twice. Trackers only append; TensorBoard is told where to purge, Weights &
Biases itself ignores steps that it has. The progress line is not tqdm's: a run ends at a share of steps *or* minutes,
which tqdm cannot count, and in a log file tqdm overwrites one endless line with carriage returns.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from duogen_core import __version__
from duogen_core.errors import MissingPackage
from duogen_core.files import atomic_path
from duogen_core.training.checkpoints import write_text
from duogen_core.training.configuration import by_todays_names
from duogen_core.training.trackers import Trackers, scalars, without_secrets

PACKAGES = ("torch", "transformers", "diffusers", "accelerate", "peft", "tokenizers", "safetensors", "numpy")
# A run folder may be moved, every session writes its own versions, and other families are refused (Run.made_of).
UNCOMPARED = {"out", "versions", "families"}
CHANGES = {"changed", "changed_data"}  # lines about a session; all others are about the weights of their step


class Metrics:
    """config.json, metrics.jsonl and the trackers of a run folder."""

    def __init__(
        self, folder: Path, tensorboard: bool = False, wandb: str | None = None, *, writes: bool = True
    ) -> None:
        """tensorboard, wandb: as of `Trackers`. writes: False on all processes but the main one."""
        self.folder, self.writes = folder, writes
        self.trackers = Trackers(folder, tensorboard, wandb)
        self.begun = 0  # the step from which this session went on

    @property
    def file(self) -> Path:
        return self.folder / "metrics.jsonl"

    def begin(self, step: int, record: Mapping[str, Any]) -> Iterator[str]:
        """Drops the lines after `step`, of a session that was killed: they will be written again. Yields what is amiss
        with a tracker, which the run then does without. record: the run's settings."""
        self.begun = step
        if not self.writes:
            return
        if self.file.exists():
            self._write(line for line in read_lines(self.file) if line["step"] <= step)
        yield from self.trackers.begin(step, record)

    def _write(self, lines: Iterable[Mapping[str, Any]]) -> None:
        write_text(self.file, "".join(f"{json.dumps(line)}\n" for line in lines))

    def changes(self, record: Mapping[str, Any]) -> dict[str, list[Any]]:
        """What is other than in the session before, {name: [old, new]}."""
        before = self.before()
        return changes(before, json.loads(json.dumps(without_secrets(record), default=str))) if before else {}

    def before(self) -> dict[str, Any]:
        """The record of the session before; {} if there is none."""
        try:
            found = json.loads((self.folder / "config.json").read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def settings(self, record: Mapping[str, Any]) -> None:
        if self.writes:
            record = {**without_secrets(record), "versions": versions()}
            write_text(self.folder / "config.json", json.dumps(record, indent=2, default=str) + "\n")

    def add(self, step: int, seconds: float, values: Mapping[str, Any]) -> None:
        if not self.writes:
            return
        entry = {"step": step, "seconds": round(seconds, 1), **values}
        again = False
        if step == self.begun and self.file.exists() and not CHANGES & entry.keys():
            # A session that was killed after the last checkpoint may have measured the same of the same weights.
            lines = read_lines(self.file)
            others = [line for line in lines if line["step"] != step or line.keys() != entry.keys()]
            again = len(others) < len(lines)
            if again:
                self._write(others)
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        if not again:  # they have the first one
            self.trackers.log(step, values)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[Any]]:
    """{name: [old, new]} of two records; settings in sections by their path, "families.guide"."""
    old, new = (flat({**record, **by_todays_names(record.get("config", {}))}) for record in (before, now))
    names = [name for name in [*new, *(old.keys() - new.keys())] if name.split(".")[0] not in {*UNCOMPARED, "config"}]
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


def plot_metrics(folder: str | Path) -> None:
    plot_losses(folder)
    plot_scores(folder)


def plot_losses(folder: str | Path) -> Path | None:
    """loss.png (log scale, thin: every line, thick: running mean; dots: what is not learnt from)."""
    figure_of, lines = _matplotlib(), _lines(folder)
    scored = [(line["step"], mean_loss(line["eval"])) for line in lines if isinstance(line.get("eval"), dict)]
    scored = [(step, loss) for step, loss in scored if loss is not None]
    points = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    if not points:
        return None
    steps, losses = zip(*points, strict=True)
    smooth, mean = [], losses[0]
    for loss in losses:
        mean = 0.9 * mean + 0.1 * loss
        smooth.append(mean)
    figure = figure_of(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(steps, losses, color="#9bb8d3", linewidth=0.8)
    axes.plot(steps, smooth, color="#1f4e79", linewidth=1.8)
    if scored:
        axes.plot(*zip(*scored, strict=True), color="#c0504d", marker=".", linewidth=1.2, label="held out")
        axes.legend()
    if min(losses) > 0:
        axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3, which="both")
    return _save(figure, Path(folder) / "loss.png")


def mean_loss(scores: Mapping[str, Any]) -> float | None:
    """Of {"all": {"loss": …}, …}, or the mean of the families or sources; None where none has a loss."""
    found = [each["loss"] for each in scores.values() if isinstance(each, Mapping) and "loss" in each]
    if "loss" in (overall := scores.get("all", {})):
        return overall["loss"]
    return sum(found) / len(found) if found else None


def plot_scores(folder: str | Path) -> Path | None:
    """scores.png: a panel for each kind of score ("token", "psnr"), a line for each family or source."""
    figure_of = _matplotlib()
    curves: dict[str, dict[str, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for line in _lines(folder):
        for name, value in scalars(line) if "loss" not in line else ():
            if name not in ("step", "seconds"):
                of, _, score = name.removeprefix("eval/").rpartition("/")
                curves[score][of].append((line["step"], value))
    if not curves:
        return None
    figure = figure_of(figsize=(8, 3.5 * len(curves)), layout="constrained")
    for axes, (score, lines) in zip(figure.subplots(len(curves), squeeze=False)[:, 0], curves.items(), strict=True):
        for of, points in lines.items():
            axes.plot(*zip(*points, strict=True), marker=".", label=of or None)
        axes.set_xlabel("step")
        axes.set_ylabel(score)
        axes.grid(alpha=0.3)
        if any(lines):
            axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return _save(figure, Path(folder) / "scores.png")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; one that a kill or a full disk cut short is left out."""
    found = []
    for line in path.read_bytes().split(b"\n"):  # str.splitlines would also split at U+2028, which JSON may hold
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict) and "step" in entry:
            found.append(entry)
    return found


def _lines(folder: str | Path) -> list[dict[str, Any]]:
    path = Path(folder) / "metrics.jsonl"
    return read_lines(path) if path.exists() else []


def _matplotlib() -> Any:
    """The class of figures, which draw into files alone."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackage("The curves (everything else was saved)", "matplotlib", "train") from error
    return Figure


def _save(figure: Any, target: Path) -> Path:
    with atomic_path(target) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    return target


PAUSE = 0.3  # seconds between two lines that overwrite each other on a terminal


class Progress:
    """Prints at most every `pause` seconds (on a terminal more often, in place); on the main process only."""

    def __init__(self, pause: float, quiet: bool = False) -> None:
        self.pause, self.quiet = pause, quiet
        self.means: dict[str, float] = {}
        self.held_out = ""  # the last scores on what is not learnt from
        self.speed = ""  # of the steps (throughput.in_words)
        self.begin(0.0)

    def begin(self, done: float) -> None:
        """The loop starts, with this part of the run (0 to 1) behind it."""
        self._start = self._printed = time.monotonic()
        self._done = done

    def add(self, figures: dict[str, float]) -> None:
        for key, value in figures.items():
            self.means[key] = value if key not in self.means else 0.95 * self.means[key] + 0.05 * value

    def due(self) -> bool:
        return time.monotonic() - self._printed >= (PAUSE if sys.stdout.isatty() else self.pause)

    def show(self, done: float, steps: str, seconds: float) -> str:
        """Prints and returns the line. done: 0 to 1; steps: "120/4000"; seconds of training so far."""
        self._printed = time.monotonic()
        figures = " ".join(f"{k} {v:.4g}" for k, v in self.means.items())
        parts = [f"step {steps}", figures, *filter(None, (self.held_out, self.speed))]
        parts.append(f"{clock(seconds)} gone, {clock(self.left(done))} left")
        return self._state(done, " | ".join(parts))

    def left(self, done: float) -> float:
        """Seconds that the rest will take, if it goes on as since `begin`."""
        gone = time.monotonic() - self._start
        return round(max(0.0, (1 - done) * gone / max(done - self._done, 1e-9)), 1)

    def task(self, what: str, done: float) -> None:
        """The line of something that comes before the first step: what, how far (0 to 1), time gone and left."""
        if not self.due() and done < 1:
            return
        self._printed = time.monotonic()
        gone = self._printed - self._start
        self._state(done, f"{what} | {clock(gone)} gone, {clock(self.left(done))} left")

    def _state(self, done: float, text: str) -> str:
        line = f"[{'#' * int(20 * min(1, done)):<20}] {100 * min(1, done):3.0f}% {text}"
        if sys.stdout.isatty():
            self._print(f"\r\x1b[K{line}", end="\n" if done >= 1 else "")
        else:
            self._print(line)
        return line

    def say(self, text: str) -> None:
        """A line of its own, above the progress line."""
        self._print(("\r\x1b[K" if sys.stdout.isatty() else "") + text)

    def _print(self, text: str, end: str = "\n") -> None:
        if not self.quiet:
            print(text, end=end, flush=True)


def clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
