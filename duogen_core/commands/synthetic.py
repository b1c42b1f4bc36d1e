"""What the commands of `data synthetic` share: options and what they mean.

expand   seeds -> requests          (a language model)
balance  how evenly requests are spread
plan     requests -> answers with a prompt for each picture    (a language model)
draw     plans -> documents         (a painter: the core's models or a ComfyUI server)
answer   requests -> documents      (a DuoGen model writes and draws)
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from duogen_core.commands.run_options import add_json
from duogen_core.errors import DuoGenError

if TYPE_CHECKING:
    from duogen_core.data.synthetic.requests import Preset
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
    add_json(parser)


def taxonomy_of(args: argparse.Namespace) -> Taxonomy:
    from duogen_core.data.synthetic.taxonomy import FOLDER, load_taxonomy

    return load_taxonomy(Path(args.taxonomy) if args.taxonomy else FOLDER)


def preset_of(args: argparse.Namespace) -> Preset:
    from duogen_core.data.synthetic.requests import load_preset

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
