"""data synthetic: what comes before there is a picture. `synthetic_documents` has the two commands that make Documents.

    expand   seeds -> DIR/requests.jsonl (a language model), with the seeds in it; near-duplicates are left out
    balance  how evenly requests are spread over domains and subcategories; table, plot and JSON
    plan     requests -> DIR/plans.jsonl: answers with a prompt for each picture (a language model)

DIR/expand/ and DIR/plan/ have what was refused and the recorded answers. Without DIR/requests.jsonl the seeds are used.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duogen_core.commands.endpoint_options import add_endpoint_options, client_of, spent
from duogen_core.commands.run_options import (
    Command,
    RunProgress,
    add_json,
    add_workers,
    check_workers,
    nothing_kept,
    plain,
    write_json,
)
from duogen_core.errors import DuoGenError

if TYPE_CHECKING:
    from duogen_core.data.synthetic.requests import Taxonomy


def add_run_options(parser: argparse.ArgumentParser, preset: bool = True) -> None:
    add = parser.add_argument
    add("folder", metavar="DIR", help="the folder of all steps; the same command goes on where it stopped")
    add(
        "--taxonomy",
        metavar="DIR",
        help="a folder of domain files instead of the 151 subcategories that come with DuoGen",
    )
    if preset:
        add("--preset", metavar="FILE", help="a YAML file with the thresholds that differ from the defaults")
        add(
            "--set",
            action="append",
            default=[],
            metavar="RULE=VALUE",
            help="set one threshold, such as answer.max_pictures=5",
        )
        add(
            "--seed",
            type=int,
            default=0,
            metavar="N",
            help="another seed gives other examples, answers and images; default: 0",
        )
        add("--quiet", action="store_true", help="no progress on stderr")
    add_json(parser)


def taxonomy_of(args: argparse.Namespace) -> Taxonomy:
    from duogen_core.data.synthetic.requests import FOLDER, load_taxonomy

    return load_taxonomy(Path(args.taxonomy) if args.taxonomy else FOLDER)


def check_count(args: argparse.Namespace, name: str) -> None:
    value = getattr(args, name)
    if value is not None and value < 1:
        raise DuoGenError(f"--{name} is {value}; expected at least 1.")


def _asking(args: argparse.Namespace, step: str) -> dict[str, Any]:
    """How a step asks its language model: the recording is DIR/step/answers.jsonl."""
    check_workers(args)
    return {
        "connect": partial(client_of, plain(args), Path(args.folder, step, "answers.jsonl")),
        "seed": args.seed,
        "threads": args.parallel,
        "workers": args.workers,
        "backend": args.backend,
        "uses_gpu": bool(args.mllm),
    }


# ------------------------------------------------------------ expand


def add_expand(parser: argparse.ArgumentParser) -> None:
    add_run_options(parser)
    add = parser.add_argument
    add("--count", type=int, default=100, metavar="N", help="requests per subcategory, seeds included; default: 100")
    add_workers(parser, "with --backend ray: processes that ask")
    add_endpoint_options(parser)
    parser.set_defaults(locks=lambda args: [Path(args.folder, "expand")])


def run_expand(args: argparse.Namespace) -> int:
    check_count(args, "count")
    from duogen_core.data.runs.folder import begin_step
    from duogen_core.data.runs.presets import load_preset
    from duogen_core.data.synthetic import balance
    from duogen_core.data.synthetic.expand import Expansion

    folder, taxonomy = Path(args.folder), taxonomy_of(args)
    preset = load_preset("synthetic", args.preset or "", args.set)
    expansion = Expansion(folder, taxonomy, preset, count=args.count, **_asking(args, "expand"))
    begin_step(folder / "expand", expansion.kind, expansion.identity())
    progress = RunProgress(args.quiet, "requests")
    progress.begin(sum(max(args.count, len(one.seeds)) for one in taxonomy.subcategories), len(expansion.requests))
    with progress.stopping():
        for total in expansion.run():
            progress.step(total - progress.done, total)
    requests, usage = expansion.requests, expansion.client.usage
    found = balance.survey(requests, taxonomy)
    if write_json(args.json, {**found.to_json(), "refused": expansion.refused, "usage": usage.to_json()}):
        return 0
    refused = ", ".join(f"{count:,} {rule}" for rule, count in expansion.refused.items())
    print(f"{len(requests):,} requests; refused: {refused or 'none'}.")
    print(f"{spent(usage)}.")
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


expand = Command(add_expand, run_expand)


# ------------------------------------------------------------ balance


def add_balance(parser: argparse.ArgumentParser) -> None:
    add_run_options(parser, preset=False)
    parser.add_argument("--plot", metavar="FILE", help="write a plot with a bar for every subcategory (PNG)")


def run_balance(args: argparse.Namespace) -> int:
    from duogen_core.data.synthetic import balance as figures
    from duogen_core.data.synthetic.requests import requests_of

    taxonomy = taxonomy_of(args)
    requests, seeds = requests_of(Path(args.folder), taxonomy)
    found = figures.survey(requests, taxonomy)
    if args.plot:
        figures.plot(found, Path(args.plot))
    if write_json(args.json, found.to_json()):
        return 0
    if seeds:
        print(f"{args.folder} has no requests.jsonl yet; these are the taxonomy's seeds.")
    print(figures.text(found))
    if args.plot:
        print(args.plot)
    return 0


balance = Command(add_balance, run_balance)


# ------------------------------------------------------------ plan


def add_plan(parser: argparse.ArgumentParser) -> None:
    add_run_options(parser)
    parser.add_argument("--limit", type=int, metavar="N", help="only N requests, spread over all of them")
    add_workers(parser, "with --backend ray: processes that ask")
    add_endpoint_options(parser)
    parser.set_defaults(locks=lambda args: [Path(args.folder, "plan")])


def run_plan(args: argparse.Namespace) -> int:
    check_count(args, "limit")
    from duogen_core.data.runs.folder import begin_step
    from duogen_core.data.runs.presets import load_preset
    from duogen_core.data.synthetic.planning import Planning
    from duogen_core.data.synthetic.requests import requests_of, spread

    folder, taxonomy = Path(args.folder), taxonomy_of(args)
    preset = load_preset("synthetic", args.preset or "", args.set)
    requests, seeds = requests_of(folder, taxonomy)
    requests = spread(requests, args.limit)
    planning = Planning(folder, requests, preset, **_asking(args, "plan"))
    begin_step(folder / "plan", planning.kind, planning.identity())
    progress = RunProgress(args.quiet, "requests")
    progress.begin(len(requests))
    if seeds:
        progress.line(f"{folder} has no requests.jsonl; the taxonomy's seeds are answered.")
    with progress.stopping():
        for _ in planning.run():
            progress.step(1, planning.rules[""])
    kept, refused = planning.rules[""], {rule: n for rule, n in planning.rules.most_common() if rule}
    figures = {"requests": len(requests), "kept": kept, "pictures": planning.pictures, "refused": refused}
    if write_json(args.json, {**figures, "usage": planning.client.usage.to_json()}):
        return 0
    named = ", ".join(f"{count:,} {rule}" for rule, count in refused.items())
    print(f"{kept:,} of {len(requests):,} answers kept, with {planning.pictures:,} images; refused: {named or 'none'}.")
    print(f"{spent(planning.client.usage)}.")
    if not kept:
        print(nothing_kept(folder / "plan"))
    print(folder / "plans.jsonl")
    return 0


plan = Command(add_plan, run_plan)
