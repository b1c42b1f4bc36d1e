"""data synthetic balance: how evenly requests are spread over domains and subcategories; table, plot and JSON."""

from __future__ import annotations

import argparse
from pathlib import Path

from duogen_core.commands.run_options import write_json
from duogen_core.commands.synthetic import add_run_options, taxonomy_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_options(parser, preset=False)
    parser.add_argument("--plot", metavar="FILE", help="write a plot with a bar for every subcategory (PNG)")


def run(args: argparse.Namespace) -> int:
    from duogen_core.data.synthetic import balance
    from duogen_core.data.synthetic.requests import requests_of

    taxonomy = taxonomy_of(args)
    requests, seeds = requests_of(Path(args.folder), taxonomy)
    found = balance.survey(requests, taxonomy)
    if args.plot:
        balance.plot(found, Path(args.plot))
    if write_json(args.json, found.to_json()):
        return 0
    if seeds:
        print(f"{args.folder} has no requests.jsonl yet; these are the taxonomy's seeds.")
    print(balance.text(found))
    if args.plot:
        print(args.plot)
    return 0
