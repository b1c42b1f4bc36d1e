"""evaluate check: what can be said of the answers of a run without any judge.

In: a benchmark, its official requests, a run of `evaluate run` or `evaluate import` (or a folder of documents). Out: a
file of results which `evaluate report` reads like those of a judge: the benchmark's own checks (puzzles, options,
structure), and of any answer its structure; SSIM with --likeness, the fit of text and images with --clip.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from duogen_core.commands.drawing_options import plain_name
from duogen_core.commands.evaluate_benchmarks import add_benchmark, benchmark_of
from duogen_core.commands.run_options import RunProgress, add_json, write_json
from duogen_core.errors import DuoGenError, shown

FILE = "results-checks.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_benchmark(parser)
    add = parser.add_argument
    add("folder", metavar="RUN", help="the folder of `evaluate run` or `evaluate import`, or a folder of documents")
    add("--out", metavar="FILE", help=f"the file of results; default: RUN/{FILE}")
    add("--likeness", action="store_true", help="SSIM of images with the given one and with one another (kornia)")
    add("--clip", metavar="DIR", help="a local CLIP or SigLIP model: how well images fit the text that leads to them")
    add("--device", default="cpu", help="where that model computes, such as cuda; default: cpu")
    add_json(parser)
    add("--quiet", action="store_true", help="no progress on stderr")
    parser.set_defaults(locks=lambda args: [str(Path(args.out).parent)] if args.out else [args.folder])


def run(args: argparse.Namespace) -> int:
    from duogen_core.commands.evaluate_judge import summary_table
    from duogen_core.evaluation import checks
    from duogen_core.evaluation.answer_sets import about_run, without_answer
    from duogen_core.evaluation.benchmarks import Metric, Score
    from duogen_core.evaluation.results import Case, Results
    from duogen_core.evaluation.running import answered, checked_items, is_run

    bench, file = benchmark_of(args)
    place = Path(args.folder)
    if not place.exists():
        raise DuoGenError(f"{shown(str(place))} does not exist; expected a run of `evaluate run`, or documents.")
    clip = checks.Clip(Path(args.clip), args.device) if args.clip else None
    # Where the answers lie is known of a run, and said to the report if the results stay in its folder.
    model, _, documents, _ = about_run(place) if is_run(place) else (plain_name(args.folder), "", {}, {})
    out = Path(args.out) if args.out else (place if place.is_dir() else place.parent) / FILE
    if not out.name or out.is_dir():
        raise DuoGenError(f"--out {shown(str(args.out))} is a folder; expected the name of a file, such as {FILE}.")
    own = {name: metric for name, metric in bench.metrics.items() if metric.by == "check"}

    scores, unjudged, found, stops = [], [], [], Counter()
    progress = RunProgress(args.quiet, "answers")
    progress.begin(len(documents))
    for item, document in answered(place, bench, checked_items(bench, file)):
        due = [item.due(turn) for turn in range(1 + len(item.later))]
        wanted = None if None in due else sum(due)
        one = checks.check(document, len(item.prompt.turns), wanted, likeness=args.likeness, clip=clip)
        score = bench.score(item, document, {})
        unjudged.append(score)
        values = {name: value for name, value in score.values.items() if name in own}
        detail = {**score.detail, "checks": dict(one.detail)}
        scores.append(Score(item.id, item.category, {**values, **one.values}, score.reasons, detail))
        found.append(one)
        stops[str(one.detail["stop"])] += 1
        progress.step(1, len(scores))
    progress.end()
    if not scores:
        raise DuoGenError(f"{place} has no answers; expected a run of `evaluate run`, or documents.")

    measured = {name for one in found for name in one.values}
    metrics = dict(own)
    for name, (low, high, says) in checks.MEASURES.items():
        if name in measured:
            # Whoever reads the table must know by which model: only two runs by the same one can be compared.
            by = f" ({clip.name})" if clip is not None and name == checks.BY_CLIP else ""
            metrics[name] = Metric(low, high, says + by, "check")
    places = documents if out.parent == place else {}
    cases = tuple(Case(**vars(score), document=places.get(score.id)) for score in scores)
    summary = {**bench.summary(unjudged), **checks.means(found)}
    failed = {"failed": without_answer(place)} if is_run(place) else {}
    about = {"stops": dict(stops), **failed, **({"clip": clip.name} if clip else {})}
    results = Results(bench.name, model, "", summary, cases, metrics, about)
    results.write(out)
    figures = {"benchmark": bench.name, "model": model, "answers": len(scores), **about}
    if write_json(args.json, {**figures, "summary": dict(results.summary), "results": str(out)}):
        return 0
    print(summary_table(results.summary))
    print(out)
    return 0
