"""data view: one HTML file that shows what a run of a data engine kept and refused, rule by rule."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from duogen_core.commands.run_options import Command
from duogen_core.errors import DuoGenError


def add_view(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", metavar="DIR", help="the --out of `data web` or of another engine")
    add("--out", metavar="FILE", help="the HTML file; default: DIR/report.html")
    add("--samples", type=int, default=50, metavar="N", help="kept and refused ones for each rule; default: 50")
    add("--pages", type=int, default=10, metavar="N", help="data web: pages shown before and after; default: 10")
    add("--quiet", action="store_true", help="no progress on stderr")
    parser.set_defaults(locks=lambda args: [_view_file(args)])


def _view_file(args: argparse.Namespace) -> Path:
    return Path(args.out or Path(args.folder, "report.html"))


def run_view(args: argparse.Namespace) -> int:
    if args.samples < 1 or args.pages < 0:
        raise DuoGenError(f"--samples is {args.samples} and --pages {args.pages}; expected at least 1 and 0.")
    from duogen_core.data.runs import report as run_report
    from duogen_core.data.runs.log import open_logs

    folder, file = Path(args.folder), _view_file(args)
    live = not args.quiet and sys.stderr.isatty()
    kinds = [log.kind for log in open_logs(folder)]

    def step(done: int, total: int) -> None:
        if live:
            sys.stderr.write(f"\r\x1b[K{done:,}/{total:,} looked at again" + ("\n" if done == total else ""))
            sys.stderr.flush()

    if kinds == ["web"]:
        from duogen_core.data.runs.run import open_run
        from duogen_core.data.web.report import write_report

        write_report(open_run(folder, "web"), file, args.samples, args.pages, step)
    elif kinds in (["video"], ["editing"]):
        from duogen_core.data.pairs import report

        report.write_report(folder, file, args.samples, step)
    else:
        run_report.write_report(folder, file, args.samples)
    print(file)
    return 0


view = Command(add_view, run_view)
