"""data stats: what a run of a data engine kept, and which rule refused the rest, as a table, a plot and JSON."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", metavar="DIR", help="the --out of `data web` or of another engine")
    add("--plot", metavar="FILE", help="write a plot of what is left after each rule (PNG)")
    add("--json", metavar="FILE", help="write the figures as JSON")


def run(args: argparse.Namespace) -> int:
    from duogen_core.data import yields
    from duogen_core.data.run_log import open_logs
    from duogen_core.store import write_atomically

    logs = open_logs(Path(args.folder))
    found = [yields.survey(log) for log in logs]
    for each in found:
        print((f"{each.log.folder}\n" if len(found) > 1 else "") + yields.text(each))
    if args.json:
        figures = {each.log.folder.name: each.to_json() for each in found} if len(found) > 1 else found[0].to_json()
        write_atomically(Path(args.json), (json.dumps(figures, indent=2) + "\n").encode())
    if args.plot:
        yields.plot(found, Path(args.plot))
        print(args.plot)
    return 0
