"""What the commands of all data engines have: options, progress on stderr, and what --json writes."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from duogen_core.commands.progress import StatusLine
from duogen_core.errors import DuoGenError


@dataclass(frozen=True)
class Command:
    """A command of a module that has several (see `cli`)."""

    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def plain(args: argparse.Namespace) -> argparse.Namespace:
    """The options alone, which can be sent to another process."""
    kinds = (str, int, float, bool, list, type(None))
    return argparse.Namespace(**{name: value for name, value in vars(args).items() if isinstance(value, kinds)})


def add_engine_options(
    parser: argparse.ArgumentParser, presets: tuple[str, ...], threshold: str, things: str, size: int
) -> None:
    """presets: their names, the default first. threshold: an example. things: what a shard has `size` of."""
    add = parser.add_argument
    add("--out", required=True, metavar="DIR", help="the run's folder; a run that was begun there is continued")
    parser.set_defaults(locks=lambda args: [args.out])
    known = ", ".join(presets)
    add("--preset", default=presets[0], metavar="NAME", help=f"{known}, or a YAML file; default: {presets[0]}")
    add("--set", action="append", default=[], metavar="RULE=VALUE", help=f"set one threshold, such as {threshold}")
    add(f"--shard-{things}", type=int, default=size, metavar="N", help=f"{things} per shard; default: {size}")
    add_json(parser)
    add("--quiet", action="store_true", help="no progress on stderr")


def add_workers(parser: argparse.ArgumentParser, what: str, default: int = 0) -> None:
    cores = default or os.cpu_count() or 1
    said = default or "one per core"
    parser.add_argument("--workers", type=int, default=cores, metavar="N", help=f"{what}; default: {said}")
    about = "ray: on the cluster of RAY_ADDRESS, or here; the same bytes"
    parser.add_argument("--backend", choices=("local", "ray"), default="local", help=about)


def check_workers(args: argparse.Namespace) -> None:
    if args.workers < 1:
        raise DuoGenError(f"--workers is {args.workers}; expected at least 1.")


STDOUT = "-"  # the value of --json without a file


def add_json(parser: argparse.ArgumentParser) -> None:
    """--json means the same in every command: figures as JSON on stdout. Commands of `data` take a file as well."""
    about = "print the figures as JSON instead of text; with FILE, print text and write the JSON there"
    parser.add_argument("--json", nargs="?", const=STDOUT, metavar="FILE", help=about)


def done_before(before: int, total: int) -> str:
    """What a summary says of what an earlier start has done."""
    return f" ({'all' if before == total else f'{before:,}'} done before)" if before else ""


def nothing_kept(folder: Path) -> str:
    """Why a run has kept nothing, and how to look."""
    from duogen_core.data.runs.log import open_logs, refused_most, survey

    most = refused_most(survey(*open_logs(folder)))
    return (
        f"Nothing was kept: {most}. `data stats {folder}` counts every rule, `data view {folder}` shows what each "
        "refused, and --set RULE=VALUE changes a threshold."
    )


def write_json(name: str | None, figures: Any) -> bool:
    """Writes the figures where --json says, if it was given; whether that was stdout, where no text may follow."""
    from duogen_core.files import write_atomically

    text = json.dumps(figures, indent=2, ensure_ascii=name == STDOUT) + "\n"
    if name == STDOUT:
        print(text, end="")
    elif name:
        write_atomically(Path(name), text.encode("utf-8", "replace"))
    return name == STDOUT


class RunProgress(StatusLine):
    """unit: what is counted, such as pages."""

    def __init__(self, quiet: bool, unit: str, stream: TextIO | None = None) -> None:
        super().__init__(quiet, stream)
        self.unit = unit
        self.total = self.done = self.before = self.kept = 0
        self.started = self.shown = time.monotonic()

    def begin(self, total: int, done: int = 0) -> None:
        self.total, self.done, self.before = total, done, done
        self.started = self.shown = time.monotonic()

    def go_on(self, total: int, done: int) -> None:
        """Begins, and says how much an earlier start has done."""
        self.begin(total, done)
        if done:
            self.line(f"{done:,} of {total:,} {self.unit} were done before.")

    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def step(self, count: int, kept: int) -> None:
        """So many more are done; so many are kept in all."""
        self.done, self.kept = self.done + count, kept
        if self.due():
            rate = (self.done - self.before) / max(self.elapsed(), 1e-6)
            pace = f"{rate:.1f} a second" if rate >= 1 else f"{rate * 60:.1f} a minute"
            rest = f"{_left(int((self.total - self.done) / rate))} left" if rate else "…"
            text = f"{self.done:,}/{self.total:,} {self.unit}, {self.kept:,} kept, {pace}, {rest}"
            self.show(text, self.done / max(self.total, 1))

    def prepared(self, what: str, done: int, total: int) -> None:
        """What is done before there is a plan."""
        if self.due(last=done == total):
            self.show(f"{what}: {done:,}/{total:,}", done / max(total, 1))
            if done == total:
                self.end()

    def fetched(self, what: str, done: int, total: int, kept: int) -> None:
        if self.due(last=done == total):
            rate = done / max(self.elapsed(), 1e-6)
            self.show(f"fetching {what}: {done:,}/{total:,}, {kept:,} came, {rate:.1f} a second")
            if done == total:
                self.end()

    @contextlib.contextmanager
    def stopping(self) -> Iterator[None]:
        """Ends the line however the loop ends, and says after Ctrl-C that the command goes on."""
        try:
            yield
        except KeyboardInterrupt:
            self.end()
            self.line(f"Stopped after {self.done:,} of {self.total:,} {self.unit}; the same command goes on.")
            raise
        self.end()


def _left(seconds: int) -> str:
    if seconds < 60:
        return f"{seconds} s"
    return f"{seconds // 60} min" if seconds < 3600 else f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
