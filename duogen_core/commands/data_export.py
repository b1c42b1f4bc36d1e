"""data export: any source of documents -> interleaved Parquet files (NeMo Curator's rows) or tars."""

from __future__ import annotations

import argparse
from pathlib import Path

from duogen_core.commands.run_options import Command
from duogen_core.errors import DuoGenError


def add_export(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="SPEC", help="webdataset:FILES, documents:DIR, jsonl:FILES, parquet:FILES or hf:NAME")
    add("--out", required=True, metavar="DIR", help="the folder of the shards: made, or gone on with")
    add("--to", choices=("parquet", "webdataset", "mint1t"), default="parquet", help="mint1t: tars that Curator reads")
    add("--shard-samples", type=int, default=1000, metavar="N", help="samples in a shard; default: 1000")
    add("--photo-quality", type=int, metavar="Q", help="photographs as JPEG of this quality; default: PNG, exact")
    add("--quiet", action="store_true", help="no progress on stderr")
    parser.set_defaults(locks=lambda args: [args.out])


def run_export(args: argparse.Namespace) -> int:
    from duogen_core.data.export import ENDINGS
    from duogen_core.data.export import export as write
    from duogen_core.data.sources import open_source

    source = open_source(args.source)
    folder = Path(args.out)
    if folder.exists() and not folder.is_dir():
        raise DuoGenError(f"--out {folder} is a file; give a folder.")
    bar = Bar(source.name, 0 if source.endless else len(source), args.quiet)
    written = bad = 0
    for result in write(source, folder, args.to, args.shard_samples, args.photo_quality):
        written, bad = written + result["samples"], bad + result["bad"]
        bar.advance(result["samples"] + result["bad"], bad)
    bar.end(bad)
    left_out = f", {bad:,} bad ones left out and named in {folder / 'bad_samples.jsonl'}" if bad else ""
    there = len(source) - written - bad
    print(f"{written:,} documents written{left_out}{f'; {there:,} were done before' if there else ''}.")
    print(f"{'parquet' if args.to == 'parquet' else 'webdataset'}:{folder}/*.{ENDINGS[args.to]}")
    return 0


export = Command(add_export, run_export)
