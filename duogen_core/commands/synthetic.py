"""What the commands of `data synthetic` share: options, the folder's requests, progress.

expand   seeds -> requests          (a language model)
balance  how evenly requests are spread
plan     requests -> answers with a prompt for each picture    (a language model)
draw     plans -> documents         (a painter: the core's models or a ComfyUI server)
answer   requests -> documents      (a DuoGen model writes and draws)
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duogen_core.commands.data_web import Progress, left
from duogen_core.commands.progress import BAR
from duogen_core.errors import DuoGenError

if TYPE_CHECKING:
    from duogen_core.data.synthetic.preset import Preset
    from duogen_core.data.synthetic.taxonomy import Taxonomy


def add_run_options(parser: argparse.ArgumentParser, preset: bool = True) -> None:
    add = parser.add_argument
    add("folder", metavar="DIR", help="the folder of all steps; the same command goes on where it stopped")
    add("--taxonomy", metavar="DIR", help="a folder of domain files in place of the own 151 subcategories")
    if preset:
        add("--preset", metavar="FILE", help="a YAML file with thresholds that differ from the own ones")
        add("--set", action="append", default=[], metavar="RULE=VALUE", help="one threshold, as answer.max_pictures=5")
        add("--seed", type=int, default=0, metavar="N", help="other examples, answers and pictures; default: 0")
        add("--quiet", action="store_true", help="no progress on stderr")
    add("--json", metavar="FILE", help="write the figures as JSON")


def taxonomy_of(args: argparse.Namespace) -> Taxonomy:
    from duogen_core.data.synthetic.taxonomy import FOLDER, load_taxonomy

    return load_taxonomy(Path(args.taxonomy) if args.taxonomy else FOLDER)


def preset_of(args: argparse.Namespace) -> Preset:
    from duogen_core.data.synthetic.preset import load_preset

    return load_preset(args.preset, args.set)


def size_of(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d{2,5})[xX×](\d{2,5})", text.strip())
    if not match:
        raise DuoGenError(f"--size is {text!r}; expected WIDTHxHEIGHT, such as 1024x768.")
    return int(match[1]), int(match[2])


def part_of(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,4})/(\d{1,4})", text.strip())
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise DuoGenError(f"--part is {text!r}; expected K/N, such as 2/8 for the second of eight machines.")
    return int(match[1]), int(match[2])


def write_json(name: str | None, figures: Any) -> None:
    from duogen_core.store import write_atomically

    if name:
        write_atomically(Path(name), (json.dumps(figures, indent=2, ensure_ascii=False) + "\n").encode())


class Steps(Progress):
    """Progress in things that may take seconds or minutes each."""

    def __init__(self, quiet: bool, unit: str) -> None:
        super().__init__(quiet)
        self.unit = unit

    def _show(self) -> None:
        rate = (self.done - self.before) / max(self.elapsed(), 1e-6)
        pace = f"{rate:.1f} a second" if rate >= 1 else f"{rate * 60:.1f} a minute"
        rest = f"{left(self, rate)} left" if rate else "…"
        text = f"{self.done:,}/{self.total:,} {self.unit}, {self.kept:,} kept, {pace}, {rest}"
        filled = int(BAR * self.done / max(self.total, 1))
        self._put(f"\r\x1b[K{'█' * filled}{'░' * (BAR - filled)} {text}" if self.live else text + "\n")


@contextlib.contextmanager
def stopping(progress: Steps) -> Iterator[None]:
    """Ends the progress line however the loop ends, and says after Ctrl-C that the command goes on."""
    try:
        yield
    except KeyboardInterrupt:
        progress.end()
        progress.line(
            f"Stopped after {progress.done:,} of {progress.total:,} {progress.unit}; the same command goes on."
        )
        raise
    progress.end()
