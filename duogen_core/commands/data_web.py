"""data web: pages (WARC files, folders of HTML, saved pages) -> Documents, by the rules of a preset.

Out: a folder with webdataset shards, a log with the rule and the value for every page and picture, and run.json. The
same command goes on where it stopped, after Ctrl-C or a kill, and ends with the same bytes. Nothing is fetched but
with --fetch.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from duogen_core.commands.progress import BAR
from duogen_core.errors import DuoGenError

EVERY = 10.0  # seconds between two lines where there is no terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="WARC files, folders of pages, .html files; lists of addresses (.txt)",
    )
    add("--out", required=True, metavar="DIR", help="the run's folder: made, or gone on with")
    add("--preset", default="howto", metavar="NAME", help="howto, obelics, or a YAML file; default: howto")
    add("--set", action="append", default=[], metavar="RULE=VALUE", help="one threshold, as page.min_words=50")
    add("--fetch", action="store_true", help="fetch listed pages, and pictures that are missing, from the web")
    add("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes; default: one a core")
    add("--backend", choices=("local", "ray"), default="local", help="ray: on the cluster of RAY_ADDRESS, or here")
    add("--shard-pages", type=int, default=64, metavar="N", help="pages in a shard; default: 64")
    add("--json", metavar="FILE", help="write the figures as JSON")
    add("--quiet", action="store_true", help="no progress on stderr")


def run(args: argparse.Namespace) -> int:
    if args.workers < 1:
        raise DuoGenError(f"--workers is {args.workers}; expected at least 1.")
    from duogen_core.data.fetch.network import Network
    from duogen_core.data.web.plan import begin
    from duogen_core.data.web.preset import load_preset
    from duogen_core.data.web.run import work
    from duogen_core.store import write_atomically

    preset = load_preset(args.preset, args.set)
    progress = Progress(args.quiet)
    network = Network() if args.fetch else None
    this = begin(Path(args.out), args.inputs, preset, args.shard_pages, progress.line, network, progress.fetched)
    for note in this.notes:
        progress.line(note)
    done = [shard for shard in this.plan() if this.is_done(shard.number)]
    progress.begin(this.pages, sum(len(shard.pages) for shard in done))
    if done:
        progress.line(f"{progress.done:,} of {this.pages:,} pages were done before.")
    found = {"pages": 0, "kept": 0, "pictures": 0}
    try:
        for result in work(this, min(args.workers, max(this.shards - len(done), 1)), args.backend):
            for name in found:
                found[name] += result[name]
            progress.step(result["pages"], found["kept"])
    except KeyboardInterrupt:
        progress.end()
        progress.line(f"Stopped: {progress.done:,} of {this.pages:,} pages are done. The same command goes on.")
        raise
    progress.end()
    figures = {**found, "seconds": round(progress.elapsed(), 2), "pages_in_all": this.pages}
    if args.json:
        write_atomically(Path(args.json), (json.dumps(figures, indent=2) + "\n").encode())
    rate = f", {found['pages'] / max(progress.elapsed(), 1e-6):,.0f} pages a second" if found["pages"] else ""
    print(f"{found['kept']:,} documents with {found['pictures']:,} pictures from {found['pages']:,} pages{rate}:")
    print(this.folder / "shards")
    return 0


class Progress:
    """Pages done, pages a second, time left: redrawn on a terminal, a line now and then elsewhere."""

    def __init__(self, quiet: bool, stream: TextIO | None = None) -> None:
        self.quiet, self.stream = quiet, stream or sys.stderr
        self.live = not quiet and self.stream.isatty()
        self.total = self.done = self.before = self.kept = 0
        self.started = self.shown = time.monotonic()

    def begin(self, total: int, done: int) -> None:
        self.total, self.done, self.before = total, done, done
        self.started = self.shown = time.monotonic()

    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def line(self, text: str) -> None:
        self._put(("\r\x1b[K" if self.live else "") + text + "\n")

    def step(self, pages: int, kept: int) -> None:
        self.done, self.kept = self.done + pages, kept
        if self.live or time.monotonic() - self.shown >= EVERY:
            self.shown = time.monotonic()
            self._show()

    def fetched(self, what: str, done: int, total: int, kept: int) -> None:
        if not (self.live or time.monotonic() - self.shown >= EVERY or done == total):
            return
        self.shown = time.monotonic()
        rate = done / max(self.elapsed(), 1e-6)
        text = f"fetching {what}: {done:,}/{total:,}, {kept:,} came, {rate:.1f} a second"
        self._put(f"\r\x1b[K{text}" + ("\n" if done == total else "") if self.live else text + "\n")

    def end(self) -> None:
        if self.live:
            self._put("\n")

    def _show(self) -> None:
        rate = (self.done - self.before) / max(self.elapsed(), 1e-6)
        text = f"{self.done:,}/{self.total:,} pages, {self.kept:,} kept, {rate:.1f} a second, {left(self, rate)} left"
        filled = int(BAR * self.done / max(self.total, 1))
        self._put(f"\r\x1b[K{'█' * filled}{'░' * (BAR - filled)} {text}" if self.live else text + "\n")

    def _put(self, text: str) -> None:
        if not self.quiet:
            self.stream.write(text)
            self.stream.flush()


def left(progress: Any, rate: float) -> str:
    seconds = int((progress.total - progress.done) / max(rate, 1e-6))
    if seconds < 60:
        return f"{seconds} s"
    return f"{seconds // 60} min" if seconds < 3600 else f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
