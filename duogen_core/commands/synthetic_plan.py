"""data synthetic plan: a language model writes the answer to every request, with a prompt for each picture.

Out: DIR/plans.jsonl, and DIR/plan/ with the recorded answers. Without DIR/requests.jsonl the seeds are answered.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from duogen_core.commands.endpoint_options import add_endpoint_options, client_of, spent
from duogen_core.commands.run_options import nothing_kept, write_json
from duogen_core.commands.run_progress import RunProgress
from duogen_core.commands.synthetic import add_run_options, preset_of, taxonomy_of
from duogen_core.errors import DuoGenError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_options(parser)
    parser.add_argument("--limit", type=int, metavar="N", help="only N requests, spread over all of them")
    add_endpoint_options(parser)
    parser.set_defaults(locks=lambda args: [Path(args.folder, "plan")])


def run(args: argparse.Namespace) -> int:
    if args.limit is not None and args.limit < 1:
        raise DuoGenError(f"--limit is {args.limit}; expected at least 1.")
    from duogen_core.data.runs.folder import begin_run
    from duogen_core.data.synthetic.planning import Planning
    from duogen_core.data.synthetic.requests import requests_of, spread

    folder, taxonomy, preset = Path(args.folder), taxonomy_of(args), preset_of(args)
    requests, seeds = requests_of(folder, taxonomy)
    requests = spread(requests, args.limit)
    client = client_of(args, folder / "plan" / "answers.jsonl")
    planning = Planning(folder, requests, preset, client, args.seed, args.parallel)
    begin_run(folder / "plan", "synthetic-plan", planning.identity())
    progress = RunProgress(args.quiet, "requests")
    progress.begin(len(requests))
    if seeds:
        progress.line(f"{folder} has no requests.jsonl; the taxonomy's seeds are answered.")
    with progress.stopping():
        for _ in planning.run():
            progress.step(1, planning.rules[""])
    kept, refused = planning.rules[""], {rule: n for rule, n in planning.rules.most_common() if rule}
    figures = {"requests": len(requests), "kept": kept, "pictures": planning.pictures, "refused": refused}
    if write_json(args.json, {**figures, "usage": client.usage.to_json()}):
        return 0
    named = ", ".join(f"{count:,} {rule}" for rule, count in refused.items())
    print(
        f"{kept:,} of {len(requests):,} answers kept, with {planning.pictures:,} pictures; refused: {named or 'none'}."
    )
    print(f"{spent(client.usage)}.")
    if not kept:
        print(nothing_kept(folder / "plan"))
    print(folder / "plans.jsonl")
    return 0
