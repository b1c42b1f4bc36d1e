"""data synthetic answer: a DuoGen model answers the requests itself, text and pictures in one go.

Out: a run of shards in DIR/answer, as `data synthetic draw` makes it. Without DIR/requests.jsonl the seeds are
answered.
"""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import replace
from pathlib import Path

from duogen_core.commands.run_progress import RunProgress
from duogen_core.commands.synthetic import part_of, preset_of, taxonomy_of
from duogen_core.commands.synthetic_make import add_make_options, make_documents
from duogen_core.commands.synthetic_model import (
    add_model_options,
    load_model,
    model_name,
    settings_of,
)
from duogen_core.errors import DuoGenError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_make_options(parser, "answer")
    add = parser.add_argument
    add("--limit", type=int, metavar="N", help="only N requests, spread over all of them")
    add("--max-images", type=int, default=8, metavar="N", help="most pictures in an answer; default: 8")
    add("--max-tokens", type=int, default=1024, metavar="N", help="most tokens of text; default: 1024")
    add("--temperature", type=float, default=0.0, metavar="T", help="0: always the likeliest text; default: 0")
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    if args.limit is not None and args.limit < 1:
        raise DuoGenError(f"--limit is {args.limit}; expected at least 1.")
    from duogen_core.data.synthetic import drawing
    from duogen_core.data.synthetic.drawing import Answering
    from duogen_core.data.synthetic.requests import request_lines, requests_of, spread

    preset, part = preset_of(args), part_of(args.part)
    requests, seeds = requests_of(Path(args.folder), taxonomy_of(args))
    requests = spread(requests, args.limit)
    progress = RunProgress(args.quiet, "documents")
    if seeds:
        progress.line(f"{args.folder} has no requests.jsonl; the taxonomy's seeds are answered.")
    settings = replace(
        settings_of(args), max_images=args.max_images, max_new_tokens=args.max_tokens, temperature=args.temperature
    )
    answering = Answering(load_model(args, progress), settings, model_name(args), preset)
    identity = {"requests": hashlib.sha256(request_lines(requests)).hexdigest()[:16], **answering.identity()}
    out = Path(args.out) if args.out else Path(args.folder) / "answer"
    run = drawing.begin(out, len(requests), args.shard, identity)
    return make_documents(run, requests, answering.document, lambda _: None, part, progress, args)
