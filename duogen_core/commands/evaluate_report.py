"""evaluate report: files of results -> a page with figures, intervals, published figures and answers to look at.

In: what `evaluate judge` wrote, of any number of models, judges and benchmarks. Out: one HTML file that needs nothing
else; --json prints its figures.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from duogen_core.commands.run_options import add_json, write_json
from duogen_core.errors import DuoGenError, shown

MOST_GALLERY = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "results", nargs="+", metavar="RESULTS", help="files of results, or runs: of a run, every file of results in it"
    )
    add("--out", required=True, metavar="FILE", help="the page, such as report.html")
    add("--gallery", type=int, default=4, metavar="N", help="best, worst and random answers, N of each; default: 4")
    add("--seed", type=int, default=0, metavar="N", help="of the intervals and of the random answers; default: 0")
    add_json(parser)
    add("--quiet", action="store_true", help="no progress on stderr")
    parser.set_defaults(locks=lambda args: [args.out] if args.out.strip() else [])


def run(args: argparse.Namespace) -> int:
    from duogen_core.evaluation.benchmark_report import figures_json, number, page, sections
    from duogen_core.evaluation.results import read_results
    from duogen_core.files import write_atomically, write_errors

    if not 0 <= args.gallery <= MOST_GALLERY:
        raise DuoGenError(f"--gallery is {args.gallery}; expected a number from 0 to {MOST_GALLERY}.")
    if args.seed < 0:
        raise DuoGenError(f"--seed must be at least 0, not {args.seed}.")
    out = Path(args.out)
    if not args.out.strip() or out.is_dir() or out.suffix.lower() not in (".html", ".htm"):
        raise DuoGenError(f"--out {shown(args.out)!r} must be the name of an HTML file, for example report.html.")
    read = [read_results(file) for file in _files(args.results)]
    for one in read:
        if not one.cases:
            raise DuoGenError(f"The results of {one.model} have no answers; there is nothing to report.")

    def step(what: str) -> None:
        if not args.quiet:
            print(f"{shown(what)} …", file=sys.stderr, flush=True)

    parts = sections(read, args.gallery, args.seed, step)
    with write_errors(out):
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, page(parts).encode("utf-8", "replace"))
    if write_json(args.json, {"report": str(out), "benchmarks": figures_json(parts)}):
        return 0
    for part in parts:
        print(shown(part["title"]))
        for column_number, column in enumerate(part["columns"]):
            print(f"  {shown(column['label'])}, {len(column['results'].cases):,} answers")
            for row in part["figures"]:
                cell = row["cells"][column_number]
                if cell.value is not None:
                    said = partial(number, scale=cell.scale)
                    ends = f"  ({said(cell.interval[0])} to {said(cell.interval[1])})" if cell.interval else ""
                    print(f"    {shown(row['name'])}: {said(cell.value)}{ends}")
    print(out)
    return 0


def _files(names: list[str]) -> list[Path]:
    found: list[Path] = []
    for name in names:
        place = Path(name)
        if place.is_dir():
            inside = sorted(place.glob("results-*.json"))
            if not inside:
                raise DuoGenError(
                    f"{place} has no file of results; `evaluate judge` and `evaluate check` write one into it."
                )
            found += inside
        else:
            found.append(place)
    if len({file.resolve() for file in found}) < len(found):
        raise DuoGenError("A file of results is given twice; give each once.")
    return found
