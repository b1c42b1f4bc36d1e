"""data stats: what a run of `data web` kept, and which rule refused the rest, as a table, a plot and JSON."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", metavar="DIR", help="the --out of `data web`")
    add("--plot", metavar="FILE", help="write a plot of what is left after each rule (PNG)")
    add("--json", metavar="FILE", help="write the figures as JSON")


def run(args: argparse.Namespace) -> int:
    from duogen_core.data.web import stats
    from duogen_core.data.web.plan import open_run
    from duogen_core.store import write_atomically

    found = stats.survey(open_run(Path(args.folder)))
    print(stats.text(found))
    if args.json:
        write_atomically(Path(args.json), (json.dumps(found.to_json(), indent=2) + "\n").encode())
    if args.plot:
        stats.plot(found, Path(args.plot))
        print(args.plot)
    return 0
