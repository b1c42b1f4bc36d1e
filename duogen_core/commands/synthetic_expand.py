"""data synthetic expand: a language model writes requests like the taxonomy's seeds; near-duplicates are left out.

Out: DIR/requests.jsonl, with the seeds in it, and DIR/expand/ with what was refused and the recorded answers.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from duogen_core.commands.endpoint_options import add_endpoint_options, client_of, spent
from duogen_core.commands.run_options import write_json
from duogen_core.commands.run_progress import RunProgress
from duogen_core.commands.synthetic import add_run_options, preset_of, taxonomy_of
from duogen_core.errors import DuoGenError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_options(parser)
    add = parser.add_argument
    add("--count", type=int, default=100, metavar="N", help="requests a subcategory, seeds included; default: 100")
    add_endpoint_options(parser)
    parser.set_defaults(locks=lambda args: [Path(args.folder, "expand")])


def run(args: argparse.Namespace) -> int:
    if args.count < 1:
        raise DuoGenError(f"--count is {args.count}; expected at least 1.")
    from duogen_core.data.runs.folder import begin_run
    from duogen_core.data.synthetic import balance
    from duogen_core.data.synthetic.expand import Expansion

    folder, taxonomy, preset = Path(args.folder), taxonomy_of(args), preset_of(args)
    client = client_of(args, folder / "expand" / "answers.jsonl")
    expansion = Expansion(folder, taxonomy, preset, client, args.count, args.seed, args.parallel)
    begin_run(folder / "expand", "synthetic-expand", expansion.identity())
    progress = RunProgress(args.quiet, "requests")
    progress.begin(sum(max(args.count, len(one.seeds)) for one in taxonomy.subcategories), len(expansion.requests))
    with progress.stopping():
        for total in expansion.run():
            progress.step(total - progress.done, total)
    requests = expansion.requests
    found = balance.survey(requests, taxonomy)
    if write_json(args.json, {**found.to_json(), "refused": expansion.refused, "usage": client.usage.to_json()}):
        return 0
    refused = ", ".join(f"{count:,} {rule}" for rule, count in expansion.refused.items())
    print(f"{len(requests):,} requests; refused: {refused or 'none'}.")
    print(f"{spent(client.usage)}.")
    seeds = min(len(one.seeds) for one in taxonomy.subcategories)
    if args.count <= seeds:
        print(f"Nothing was asked for: --count counts the seeds too, and every subcategory has {seeds} or more.")
    short = sum(count < args.count for count in found.counts.values())
    if short:
        print(
            f"{short} of {len(found.counts)} subcategories have fewer than {args.count}; see `data synthetic balance`."
        )
    print(folder / "requests.jsonl")
    return 0
