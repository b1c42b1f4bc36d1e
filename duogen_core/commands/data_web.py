"""data web: pages (WARC files, folders of HTML, saved pages) -> Documents, by the rules of a preset.

Out: a folder with webdataset shards, a log with the rule and the value for every page and picture, and run.json. The
same command goes on where it stopped, after Ctrl-C or a kill, and ends with the same bytes. Nothing is fetched but
with --fetch.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from duogen_core.commands.run_options import (
    add_engine_options,
    add_workers,
    check_workers,
    done_before,
    nothing_kept,
    write_json,
)
from duogen_core.commands.run_progress import RunProgress
from duogen_core.errors import DuoGenError

NO_PAGE = "The inputs hold no page: expected HTML answers with status 200 in WARC files, or .html or .mhtml files."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="WARC files, folders of pages, .html files; lists of addresses (.txt)",
    )
    add_engine_options(parser, ("howto", "obelics"), "page.min_words=50", "pages", 64)
    add("--fetch", action="store_true", help="fetch listed pages, and pictures that are missing, from the web")
    add(
        "--max-unreachable",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="with --fetch: the share of addresses that may be left because the network or a host failed; with more "
        "the run stops before its plan, and the same command asks for them again; default: 0.1",
    )
    add_workers(parser, "processes")
    add("--backend", choices=("local", "ray"), default="local", help="ray: on the cluster of RAY_ADDRESS, or here")


def run(args: argparse.Namespace) -> int:
    check_workers(args)
    from duogen_core.data.net.client import HttpClient
    from duogen_core.data.runs.log import kept_parts, rule_of
    from duogen_core.data.web.plan import begin
    from duogen_core.data.web.preset import load_preset
    from duogen_core.data.web.run import work

    if not 0 <= args.max_unreachable <= 1:
        raise DuoGenError(f"--max-unreachable is {args.max_unreachable:g}; expected a share from 0 to 1.")
    preset = load_preset(args.preset, args.set)
    progress = RunProgress(args.quiet, "pages")
    network = HttpClient() if args.fetch else None
    folder = Path(args.out)
    this = begin(
        folder, args.inputs, preset, args.shard_pages, progress.line, network, progress.fetched, args.max_unreachable
    )
    done = [shard.number for shard in this.plan() if this.is_done(shard.number)]
    found = Counter(pages=0, kept=0, pictures=0)
    for entry in this.entries_of(done):
        found.update(pages=1, kept=int(not rule_of(entry)), pictures=kept_parts(entry, "pictures"))
    before = found["pages"]
    progress.go_on(this.pages, before)
    with progress.stopping():
        for result in work(this, min(args.workers, max(this.shards - len(done), 1)), args.backend):
            found.update({name: result[name] for name in found})
            progress.step(result["pages"], found["kept"])
    now, seconds = found["pages"] - before, progress.elapsed()
    figures = {**found, "pages_before": before, "pages_in_all": this.pages, "seconds": round(seconds, 2)}
    figures["notes"] = this.notes
    if write_json(args.json, figures):
        return 0
    some = done_before(before, found["pages"])
    rate = f", {now / max(seconds, 1e-6):,.0f} pages a second" if now else ""
    print(f"{found['kept']:,} documents with {found['pictures']:,} pictures from {found['pages']:,} pages{some}{rate}:")
    for note in this.notes:
        print(note)
    if not this.pages:
        print(NO_PAGE)
    elif not found["kept"]:
        print(nothing_kept(this.folder))
    print(this.folder / "shards")
    return 0
