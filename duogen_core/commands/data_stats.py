"""data stats: what a run of a data engine kept, and which rule refused the rest, as a table, a plot and JSON."""

from __future__ import annotations

import argparse
from pathlib import Path

from duogen_core.commands.run_options import Command, add_json, write_json


def add_stats(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", metavar="DIR", help="the --out of `data web` or of another engine")
    add("--plot", metavar="FILE", help="write a plot of what is left after each rule (PNG)")
    add_json(parser)


def run_stats(args: argparse.Namespace) -> int:
    from duogen_core.data.runs import log
    from duogen_core.data.runs.log import open_logs

    logs = open_logs(Path(args.folder))
    found, empty = log.surveys(logs)
    figures = {each.log.folder.name: each.to_json() for each in found} if len(logs) > 1 else found[0].to_json()
    if args.plot:
        log.plot(found, Path(args.plot))
    if write_json(args.json, figures):
        return 0
    for each in found:
        print((f"{each.log.folder}\n" if len(logs) > 1 else "") + log.text(each))
    for each in empty:
        print(f"{each.folder}\nbegun, and nothing is finished yet")
    if args.plot:
        print(args.plot)
    return 0


stats = Command(add_stats, run_stats)
