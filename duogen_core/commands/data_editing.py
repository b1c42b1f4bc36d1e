"""data editing: an open set of edits, in the layout it is published in, -> Documents: picture and request, picture.

Out: a folder with webdataset shards, a log with the rule and the value of every sample, and run.json. The same command
goes on where it stopped and ends with the same bytes. Nothing is downloaded: the set must be on this machine.
"""

from __future__ import annotations

import argparse
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
from duogen_core.data.pairs.editing.layouts import LAYOUTS
from duogen_core.errors import DuoGenError, MissingPackage


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("layout", metavar="LAYOUT", choices=sorted(LAYOUTS), help=", ".join(sorted(LAYOUTS)))
    add("path", metavar="PATH", help="a .parquet, .arrow, .json or .jsonl file, or the set's folder")
    add_engine_options(parser, ("edits",), "picture.min_side=256", "samples", 100)
    add_workers(parser, "samples at once")
    add("--split", default="", metavar="NAME", help="which split of a folder that holds several; may be a pattern")
    add("--inverse", action="store_true", help="the way back too, where the set says how to ask for it (hq-edit)")
    add("--both-stages", action="store_true", help="do not mark the documents as alignment data: stage 1 takes them")
    add("--licence", default="", metavar="TEXT", help="kept with every document; default: what the set's page says")


def run(args: argparse.Namespace) -> int:
    check_workers(args)
    if args.inverse and not LAYOUTS[args.layout].inverse:
        having = ", ".join(name for name, layout in LAYOUTS.items() if layout.inverse)
        raise DuoGenError(f"--inverse: the layout {args.layout} has no request for the way back; {having} has.")
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise MissingPackage("Sets of edits", "pyarrow", "hf") from None
    from duogen_core.data.pairs.editing.engine import engine_of, load_preset, work
    from duogen_core.data.pairs.sharded import begin

    preset, folder = load_preset(args.preset, args.set), Path(args.out)
    options = {"inverse": args.inverse, "both_stages": args.both_stages, "licence": args.licence}
    details = {"layout": args.layout, "path": args.path, "split": args.split, "preset": preset, **options}
    engine = engine_of(details)
    if Path(args.path).is_dir() and Path(args.path).resolve() in (folder.resolve(), *folder.resolve().parents):
        raise DuoGenError(f"{folder} lies in the set {args.path}; choose another --out.")
    identity = {"layout": args.layout, **engine.rows.identity(), "preset": preset, **options}
    this = begin(folder, "editing", identity, engine.items(args.inverse), args.shard_samples, details)
    progress = RunProgress(args.quiet, "samples")
    total = {"samples": 0, "kept": 0, "turns": 0}
    for entry in this.entries_of(shard.number for shard in this.plan() if this.is_done(shard.number)):
        total["samples"] += 1
        total["kept"] += entry["kept"]
        total["turns"] += entry["turns"]
    before = total["samples"]
    progress.go_on(this.items, before)
    with progress.stopping():
        for found in work(this, engine, args.workers):
            for name in total:
                total[name] += found.get(name, 0)
            progress.step(found["samples"], total["kept"])
    elapsed = progress.elapsed()
    if write_json(args.json, {**total, "samples_before": before, "elapsed": round(elapsed, 2)}):
        return 0
    now, some = total["samples"] - before, done_before(before, total["samples"])
    rate = f", {now / max(elapsed, 1e-6):.0f} a second" if now else ""
    print(f"{total['kept']:,} documents with {total['turns']:,} edits of {total['samples']:,} samples{some}{rate}:")
    if total["samples"] and not total["kept"]:
        print(nothing_kept(this.folder))
    print(this.folder / "shards")
    return 0
