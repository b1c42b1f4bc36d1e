"""Options that the commands of all data engines have, and what is written when --json asks for it."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from duogen_core.errors import DuoGenError


def add_engine_options(
    parser: argparse.ArgumentParser, presets: tuple[str, ...], threshold: str, things: str, size: int
) -> None:
    """presets: their names, the default first. threshold: an example. things: what a shard has `size` of."""
    add = parser.add_argument
    add("--out", required=True, metavar="DIR", help="the run's folder: made, or gone on with")
    parser.set_defaults(locks=lambda args: [args.out])
    known = ", ".join(presets)
    add("--preset", default=presets[0], metavar="NAME", help=f"{known}, or a YAML file; default: {presets[0]}")
    add("--set", action="append", default=[], metavar="RULE=VALUE", help=f"one threshold, as {threshold}")
    add(f"--shard-{things}", type=int, default=size, metavar="N", help=f"{things} in a shard; default: {size}")
    add_json(parser)
    add("--quiet", action="store_true", help="no progress on stderr")


def add_workers(parser: argparse.ArgumentParser, what: str) -> None:
    cores = os.cpu_count() or 1
    parser.add_argument("--workers", type=int, default=cores, metavar="N", help=f"{what}; default: one a core")


def check_workers(args: argparse.Namespace) -> None:
    if args.workers < 1:
        raise DuoGenError(f"--workers is {args.workers}; expected at least 1.")


STDOUT = "-"  # the value of --json without a file


def add_json(parser: argparse.ArgumentParser) -> None:
    """--json means the same in every command: figures as JSON on stdout. Commands of `data` take a file as well."""
    about = "the figures as JSON on stdout in place of the text, or with a name in a file beside it"
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
    from duogen_core.document.store import write_atomically

    text = json.dumps(figures, indent=2, ensure_ascii=name == STDOUT) + "\n"
    if name == STDOUT:
        print(text, end="")
    elif name:
        write_atomically(Path(name), text.encode("utf-8", "replace"))
    return name == STDOUT
