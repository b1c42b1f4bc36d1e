"""evaluate judge: a model that sees scores the answers of a run; or the official scorer's file is read back.

In: a benchmark, its official requests, a run of `evaluate run` or `evaluate import`, and a judge: an endpoint, a model
run here, the recorded answers of one (--replay), for GenEval a detector of objects, or what the official scorer wrote
(--official). Out: RUN/results-JUDGE.json, which `evaluate report` reads, and RUN/judged-JUDGE/, the judging itself:
stopped or killed, the same command goes on, and no answer is asked, or paid, for twice.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duogen_core.commands.data_engines import do_run, named
from duogen_core.commands.drawing_options import plain_name
from duogen_core.commands.endpoint_options import add_endpoint_options, client_of, spent
from duogen_core.commands.evaluate_benchmarks import add_benchmark, benchmark_of, check_name
from duogen_core.commands.run_options import Command, RunProgress, add_json, write_json
from duogen_core.commands.run_options import plain as plain_options
from duogen_core.errors import DuoGenError, shown

if TYPE_CHECKING:
    from duogen_core.data.runs import Engine
    from duogen_core.evaluation.benchmarks import Benchmark, Score
    from duogen_core.evaluation.detector import Detector
    from duogen_core.llm.client import Client

OFFICIAL = "official"
NO_JUDGES = (OFFICIAL, "checks")  # whose files of results no judge of that name replaces
# The replies that fitted nothing are kept as well, and would only be read again.
AGAIN = "the same command asks again, where no reply fitted its schema with a larger --answers."
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def add_judge(parser: argparse.ArgumentParser) -> None:
    add_benchmark(parser)
    add = parser.add_argument
    add("folder", metavar="RUN", help="the folder of `evaluate run` or `evaluate import`")
    add("--out", metavar="DIR", help="the folder of the judging; default: RUN/judged-JUDGE")
    add("--official", metavar="FILE", help="in place of a judge: what the official scorer wrote, a file or its folder")
    add(
        "--detector",
        metavar="DIR",
        help="in place of a judge, for geneval: a detector of objects, a folder of transformers",
    )
    add("--colours", metavar="DIR", help="with --detector: a CLIP that tells colours; default: the nearest named ones")
    add(
        "--sure",
        metavar="A,B",
        help="with --detector: from which score on an object counts, and where a number is asked "
        "for; default: 0.3,0.9, GenEval's for its own detector",
    )
    add("--give-up", type=int, default=3, metavar="N", help="stop when so many answers in a row fail; default: 3")
    add("--shard", type=int, default=8, metavar="N", help="answers per shard; default: 8")
    parser.set_defaults(locks=lambda args: [args.folder], backend="local")
    add_json(parser)
    add("--quiet", action="store_true", help="no progress on stderr")
    add_endpoint_options(parser)


def run_judge(args: argparse.Namespace) -> int:
    from duogen_core.evaluation.running import is_run

    bench, file = benchmark_of(args)
    place = Path(args.folder)
    if not is_run(place):
        raise DuoGenError(
            f"{shown(str(place))} is no run; expected the folder of `evaluate run`, or of `evaluate import`."
        )
    if args.official:
        if args.llm or args.endpoint or args.mllm or args.detector:
            raise DuoGenError(
                "--official takes the place of a judge; leave out --endpoint, --llm, --mllm and --detector."
            )
        scores = official_scores(bench, file, Path(args.official))
        return _finish(args, bench, place, OFFICIAL, OFFICIAL, scores, {"scorer": bench.source})
    return _judged(args, bench, file, place)


def official_scores(bench: Benchmark, file: Path, results: Path) -> list[Score]:
    from duogen_core.document import Document
    from duogen_core.evaluation.running import checked_items

    if not results.exists():
        raise DuoGenError(f"--official {shown(str(results))} does not exist; check the path.")
    # What a score is of, and not what was asked: thousands of requests with their images are gigabytes.
    items = [replace(item, prompt=Document(), later=()) for item in checked_items(bench, file)]
    return bench.results(results, items)


def _judged(args: argparse.Namespace, bench: Benchmark, file: Path, place: Path) -> int:
    from duogen_core.data.runs.log import rule_of
    from duogen_core.evaluation.judging import JudgeEngine, score_of

    if args.detector:
        _check_detector(args, bench)
    elif args.colours or args.sure:
        raise DuoGenError("--colours and --sure are about a detector; name it with --detector.")
    elif not (args.llm or args.mllm):
        raise DuoGenError(
            "Name a judge: --endpoint with --llm, --mllm for a model run here, or --official for what the official "
            "scorer wrote."
        )
    check_one_judge(args)
    judge = judge_name(args)
    out = Path(args.out) if args.out else place / f"judged-{_plain(judge)}"
    if args.detector:
        detect = partial(_open_detector, plain_options(args))
        engine = JudgeEngine(args.benchmark, file, place, None, uses_gpu=True, detect=detect)
    else:
        connect = partial(open_judge, plain_options(args), out / "answers.jsonl")
        engine = JudgeEngine(args.benchmark, file, place, connect, bool(args.mllm), about=judge_about(args))

    about: dict[str, Any] = {}

    def count(entry: Mapping[str, Any]) -> dict[str, int]:
        return {"all": 1, "kept": int(not rule_of(dict(entry)))}

    with engine:
        workers = 1 if args.detector else args.parallel
        clear(args, out, engine)
        done = do_run(args, engine, out, args.shard, count, workers=workers, give_up=args.give_up)
        if engine.detector is not None:
            about |= {"detector": judge, **engine.detector.about}
    usage = done.usages.get("judge")
    entries = list(done.run.entries_of(range(done.run.shards)))
    scores = [score_of(entry) for entry in entries if not rule_of(entry)]
    about["unjudged"] = len(entries) - len(scores)
    if usage is not None:
        about |= {"spent": usage.to_json(), "tokens": tokens_of(entries)}
    cost = spent(usage) if usage else ""
    return _finish(args, bench, place, judge, _plain(judge), scores, about, cost, named(done.refused))


def tokens_of(entries: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """What all that was judged has taken, however often the command was stopped (what is spent is this start's)."""
    total: Counter[str] = Counter(prompt=0, completion=0)
    for entry in entries:
        total.update(entry.get("tokens") or {})
    return dict(total)


def check_one_judge(args: argparse.Namespace) -> None:
    if args.mllm and (args.llm or args.endpoint):
        raise DuoGenError("--mllm is a judge run here, --endpoint with --llm one at a server; name one of the two.")
    check_name(args.llm or None, "--llm")


def judge_name(args: argparse.Namespace) -> str:
    return args.llm or plain_name(args.mllm or args.detector)


def clear(args: argparse.Namespace, out: Path, engine: Engine, *made: str) -> None:
    from duogen_core.evaluation.judging import make_way

    if make_way(out, engine, args.shard, made):
        progress = RunProgress(args.quiet, engine.things)
        progress.line(f"{out} is of other {engine.things}: judged anew, and what was asked is not asked again.")


def judge_about(args: argparse.Namespace) -> dict[str, Any]:
    """What the replies of a judge that is run here depend on besides its name."""
    return {"dtype": args.dtype} if args.mllm else {}


def open_judge(args: argparse.Namespace, recording: Path) -> Client:
    from duogen_core.evaluation.judging import check_sees

    client = client_of(args, recording)
    check_sees(client)
    return client


def _check_detector(args: argparse.Namespace, bench: Benchmark) -> None:
    if args.llm or args.endpoint or args.mllm:
        raise DuoGenError("--detector takes the place of a judge; leave out --endpoint, --llm and --mllm.")
    if bench.name != "geneval":
        raise DuoGenError(f"--detector finds the objects of geneval; {bench.title} asks for none.")


def _open_detector(args: argparse.Namespace) -> Detector:
    from duogen_core.devices import choose_device
    from duogen_core.evaluation.benchmarks.geneval import SURE, SURE_COUNTING
    from duogen_core.evaluation.checks import Clip
    from duogen_core.evaluation.detector import Detector

    sure = (SURE, SURE_COUNTING)
    if args.sure:
        try:
            one, other = map(float, args.sure.split(","))
        except ValueError:
            raise DuoGenError(f"--sure is {args.sure!r}; expected two numbers, such as 0.3,0.9.") from None
        sure = (one, other)
    device = str(choose_device(args.device))
    clip = Clip(Path(args.colours), device) if args.colours else None
    return Detector(Path(args.detector), clip, sure, device)


def _finish(
    args: argparse.Namespace,
    bench: Benchmark,
    place: Path,
    judge: str,
    called: str,
    scores: Iterable[Score],
    about: Mapping[str, Any],
    cost: str = "",
    refused: str = "",
) -> int:
    from duogen_core.evaluation.answer_sets import about_run, without_answer
    from duogen_core.evaluation.results import Results

    scores = list(scores)
    if not scores:
        raise DuoGenError(f"No answer has a score ({refused or 'the file has none'}).")
    model, _, documents, _ = about_run(place)
    failed = without_answer(place)
    about = {**about, "failed": failed}
    found = Results.of(bench, scores, model=model, judge=judge, documents=documents, about=about)
    file = place / f"results-{called}.json"
    found.write(file)
    figures = {"benchmark": bench.name, "model": model, "judge": judge, "answers": len(scores), **about}
    if write_json(args.json, {**figures, "summary": dict(found.summary), "results": str(file)}):
        return 0
    print(summary_table(found.summary))
    if failed:
        print(f"Without an answer, and in no mean: {failed:,} request{'s' if failed > 1 else ''}.")
    if refused:
        print(f"Without a score: {refused}; {AGAIN}")
    if cost:
        print(f"Asked: {cost}.")
    print(file)
    return 0


def summary_table(summary: Mapping[str, float]) -> str:
    width = max(map(len, summary), default=0)
    return "\n".join(f"{name:<{width}}  {value:8.3f}" for name, value in summary.items())


def _plain(name: str) -> str:
    """A judge's name as part of a file's."""
    found = _UNSAFE.sub("-", name).strip("-.")[:60] or "judge"
    return f"{found}-judge" if found.lower() in NO_JUDGES else found


judge = Command(add_judge, run_judge)
