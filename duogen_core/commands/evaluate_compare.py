"""evaluate compare, rate, ratings: which of two models' answers is better, by a judge and by people.

compare    two sets of answers, and a judge -> OUT: a run that goes on, OUT/ratings.json, and how far the judge follows
           the position
rate       answers of two or more models -> OUT/rate.html, for people who do not know whose they are, and OUT/key.json
ratings    files of ratings, by judges and by people -> win rates and Elo, each with its interval
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duogen_core.commands.data_engines import do_run, named
from duogen_core.commands.endpoint_options import add_endpoint_options, spent
from duogen_core.commands.evaluate_benchmarks import check_name, out_of
from duogen_core.commands.evaluate_judge import (
    AGAIN,
    check_one_judge,
    clear,
    judge_about,
    judge_name,
    open_judge,
    tokens_of,
)
from duogen_core.commands.run_options import Command, add_json, write_json
from duogen_core.commands.run_options import plain as plain_options
from duogen_core.errors import DuoGenError

if TYPE_CHECKING:
    from duogen_core.evaluation.ratings import Standing

RATINGS = "ratings.json"
ANSWERS = "a run of `evaluate run` or `evaluate import`, a file of results, or a folder of documents"


def add_answers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", metavar="ANSWERS", help=f"one model's answers: {ANSWERS}")
    parser.add_argument("second", metavar="ANSWERS", help="the other model's")
    parser.add_argument(
        "--names", nargs=2, default=["", ""], metavar="NAME", help="what the two models are called; default: their own"
    )


# ------------------------------------------------------------ compare


def add_compare(parser: argparse.ArgumentParser) -> None:
    add_answers(parser)
    add = parser.add_argument
    add("--out", required=True, metavar="DIR", help="the folder of the comparing; one that was stopped goes on")
    add("--give-up", type=int, default=3, metavar="N", help="stop when so many pairs in a row fail; default: 3")
    add("--shard", type=int, default=8, metavar="N", help="pairs per shard; default: 8")
    parser.set_defaults(locks=lambda args: [args.out] if args.out.strip() else [], backend="local")
    add_json(parser)
    add("--quiet", action="store_true", help="no progress on stderr")
    add_endpoint_options(parser)


def run_compare(args: argparse.Namespace) -> int:
    from duogen_core.data.runs.log import rule_of
    from duogen_core.evaluation.pairwise import PairEngine, position_bias, rated
    from duogen_core.evaluation.ratings import ratings_json, write_ratings

    if not (args.llm or args.mllm):
        raise DuoGenError("Name a judge: --endpoint with --llm, or --mllm for a model run here.")
    check_one_judge(args)
    for name in args.names:
        check_name(name or None, "A name of --names")
    judge, out = judge_name(args), out_of(args)
    connect = partial(open_judge, plain_options(args), out / "answers.jsonl")
    engine = PairEngine(
        Path(args.first), Path(args.second), connect, tuple(args.names), bool(args.mllm), judge_about(args)
    )

    def count(entry: Mapping[str, Any]) -> dict[str, int]:
        return {"all": 1, "kept": int(not rule_of(dict(entry)))}

    with engine:
        clear(args, out, engine, RATINGS)
        done = do_run(args, engine, out, args.shard, count, workers=args.parallel, give_up=args.give_up)
        first, second = (side.name for side in engine.sides)
        alone = len(set(engine.sides[0].ids) ^ set(engine.sides[1].ids))
    entries = [entry for entry in done.run.entries_of(range(done.run.shards)) if not rule_of(entry)]
    if not entries:
        raise DuoGenError(f"No pair was judged ({named(done.refused)}).")
    bias = position_bias(entries)
    usage = done.usages.get("judge")
    about = {"position_bias": bias, "unjudged": done.total - len(entries), "answered_by_one": alone}
    if usage is not None:
        about |= {"spent": usage.to_json(), "tokens": tokens_of(entries)}
    found = rated(entries, first, second, judge)
    benchmark = str((done.run.details or {}).get("benchmark") or "")
    write_ratings(out / RATINGS, ratings_json(benchmark, judge, found, **about))
    figures = {**_figures(found), **about, "ratings": str(out / RATINGS)}
    if write_json(args.json, figures):
        return 0
    print_standings(found)
    print(bias_sentence(bias))
    if alone:
        print(f"Left out: {alone:,} requests that only one of the two has answered.")
    if done.refused:
        print(f"Without a verdict: {named(done.refused)}; {AGAIN}")
    if usage is not None:
        print(f"Asked: {spent(usage)}.")
    print(out / RATINGS)
    return 0


def bias_sentence(bias: Mapping[str, Mapping[str, float]]) -> str:
    if "all" not in bias:
        return "All pairs are the same answer twice: nothing was asked."
    found = bias["all"]
    return (
        f"Position: of {found['pairs']:,.0f} verdicts {found['same']:.0%} held when the answers changed places; "
        f"{found['first']:.0%} went to whichever came first, {found['second']:.0%} to whichever came second, and "
        f"{found['half']:.0%} became a tie or stopped being one. Only what held counts; the rest are ties."
    )


compare = Command(add_compare, run_compare)


# ------------------------------------------------------------ rate


def add_rate(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("answers", nargs="+", metavar="ANSWERS", help=f"the answers of each model: {ANSWERS}")
    add("--names", nargs="+", metavar="NAME", help="what the models are called, one name each; default: their own")
    add("--out", required=True, metavar="DIR", help="the folder for the page and its key")
    add("--count", type=int, default=50, metavar="N", help="how many pairs, chosen by chance; default: 50")
    add(
        "--metric",
        action="append",
        metavar="NAME",
        help="what is asked of each pair: overall (the default), text completeness, image completeness, image "
        "consistency, image quality or image-text consistency; several are asked one after the other",
    )
    add("--seed", type=int, default=0, metavar="N", help="which pairs, their order and their sides; default: 0")
    add_json(parser)
    parser.set_defaults(locks=lambda args: [args.out] if args.out.strip() else [])


def run_rate(args: argparse.Namespace) -> int:
    from duogen_core.commands.evaluate_plan import checked_folder
    from duogen_core.evaluation.answer_sets import open_answers
    from duogen_core.evaluation.rating_page import OVERALL, make_page

    if len(args.answers) < 2:
        raise DuoGenError("A comparison needs the answers of two models or more.")
    if args.names is not None and len(args.names) != len(args.answers):
        raise DuoGenError(f"--names has {len(args.names)} names for {len(args.answers)} models; give one each.")
    for name in args.names or ():
        check_name(name, "A name of --names")
    if args.count < 1:
        raise DuoGenError(f"--count must be at least 1, not {args.count}.")
    out = checked_folder(args.out)
    names = args.names or [""] * len(args.answers)
    sets = [open_answers(Path(place), name) for place, name in zip(args.answers, names)]
    metrics = list(dict.fromkeys(args.metric or [OVERALL]))
    page, key, count = make_page(sets, out, count=args.count, metrics=metrics, seed=args.seed)
    if write_json(args.json, {"page": str(page), "key": str(key), "pairs": count, "metrics": metrics}):
        return 0
    print(f"{count:,} pairs. Send this page to whoever rates:")
    print(page)
    print("Keep this key, which says whose answers they are, for `evaluate ratings`:")
    print(key)
    return 0


rate = Command(add_rate, run_rate)


# ------------------------------------------------------------ ratings


def add_ratings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="what pages of `evaluate rate` saved, with the key.json of each page, and what `evaluate compare` wrote",
    )
    parser.add_argument("--metric", metavar="NAME", help="only this metric")
    add_json(parser)


def run_ratings(args: argparse.Namespace) -> int:
    from duogen_core.evaluation.ratings import agreement, read_ratings

    found = read_ratings([Path(name) for name in args.files])
    if args.metric is not None:
        known = list(dict.fromkeys(one.metric for one in found))
        found = [one for one in found if one.metric == args.metric]
        if not found:
            raise DuoGenError(f"No rating is of {args.metric[:80]!r}; they are of {', '.join(known)}.")
    together = agreement(found)
    figures = _figures(found)
    figures["agreement"] = [{"raters": list(pair), "kappa": value, "pairs": n} for pair, (value, n) in together.items()]
    if write_json(args.json, figures):
        return 0
    print_standings(found)
    for (one, other), (value, n) in together.items():
        said = "cannot be told (both say the same of all)" if value is None else f"{value:.2f}"
        print(f"{one} and {other} agree on {n:,} pairs with a kappa of {said}.")
    return 0


def _figures(found: Sequence[Any]) -> dict[str, Any]:
    from duogen_core.evaluation.ratings import summary

    return {
        "metrics": {
            one.metric: {
                "elo": {
                    name: {"rating": round(rating.elo, 1), "interval": _rounded(rating.interval, 1)}
                    for name, rating in one.ratings.items()
                },
                "wins": [
                    {"first": a, "second": b, "share": round(rate, 4), "interval": _rounded(interval, 4), "ratings": n}
                    for (a, b), (rate, interval, n) in one.pairs.items()
                ],
                "ties": round(one.ties, 4),
            }
            for one in summary(found)
        }
    }


def _rounded(interval: tuple[float, float] | None, digits: int) -> list[float] | None:
    return None if interval is None else [round(end, digits) for end in interval]


def print_standings(found: Sequence[Any]) -> None:
    from duogen_core.errors import shown
    from duogen_core.evaluation.ratings import summary

    for standing in summary(found):
        print(shown(standing.metric))
        for line in standing_lines(standing):
            print(f"  {shown(line)}")


def standing_lines(standing: Standing) -> list[str]:
    width = max(map(len, standing.ratings))
    lines = []
    for name, rating in standing.ratings.items():
        lines.append(f"{name:<{width}}  Elo {rating.elo:6.0f}{_ends(rating.interval, '.0f')}")
    for (one, other), (rate, interval, n) in standing.pairs.items():
        lines.append(f"{one} against {other}: {rate:.2f} of {n:,} won{_ends(interval, '.2f')}")
    lines.append(f"ties: {standing.ties:.2f}")
    return lines


def _ends(interval: tuple[float, float] | None, form: str) -> str:
    return "" if interval is None else f" ({interval[0]:{form}} to {interval[1]:{form}})"


ratings = Command(add_ratings, run_ratings)
