"""data web: pages (WARC files, folders of HTML, saved pages) -> Documents, by the rules of a preset.

Out: a folder with webdataset shards, a log with the rule and the value for every page and picture, and run.json. The
same command goes on where it stopped, after Ctrl-C or a kill, and ends with the same bytes. Nothing is fetched but
with --fetch.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from duogen_core.commands.run_options import add_engine_options, add_workers, check_workers, write_json
from duogen_core.commands.run_progress import RunProgress


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
    add_workers(parser, "processes")
    add("--backend", choices=("local", "ray"), default="local", help="ray: on the cluster of RAY_ADDRESS, or here")


def run(args: argparse.Namespace) -> int:
    check_workers(args)
    from duogen_core.data.fetch.network import Network
    from duogen_core.data.web.plan import begin
    from duogen_core.data.web.preset import load_preset
    from duogen_core.data.web.run import work

    preset = load_preset(args.preset, args.set)
    progress = RunProgress(args.quiet, "pages")
    network = Network() if args.fetch else None
    this = begin(Path(args.out), args.inputs, preset, args.shard_pages, progress.line, network, progress.fetched)
    for note in this.notes:
        progress.line(note)
    done = [shard for shard in this.plan() if this.is_done(shard.number)]
    progress.go_on(this.pages, sum(len(shard.pages) for shard in done))
    found = {"pages": 0, "kept": 0, "pictures": 0}
    with progress.stopping():
        for result in work(this, min(args.workers, max(this.shards - len(done), 1)), args.backend):
            for name in found:
                found[name] += result[name]
            progress.step(result["pages"], found["kept"])
    if write_json(args.json, {**found, "seconds": round(progress.elapsed(), 2), "pages_in_all": this.pages}):
        return 0
    rate = f", {found['pages'] / max(progress.elapsed(), 1e-6):,.0f} pages a second" if found["pages"] else ""
    print(f"{found['kept']:,} documents with {found['pictures']:,} pictures from {found['pages']:,} pages{rate}:")
    print(this.folder / "shards")
    return 0
