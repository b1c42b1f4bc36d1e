"""evaluate plan: a writer plans answers to 100 requests, rules score the plans into a report and a page of the worst.

In: a writer (any that `plan` takes), or plans that are there already; 100 requests of ours, or a file. Out, in a
folder: plans.jsonl, line by line while it runs, so that a run which was stopped goes on; report.json; worst.html.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duogen_core import interrupt
from duogen_core.commands.endpoint_options import add_model_options, model_of
from duogen_core.errors import DuoGenError, shown

if TYPE_CHECKING:
    from duogen_core.evaluation.plans import Request, Written
    from duogen_core.llm.client import Client

PLANS, REPORT, WORST = "plans.jsonl", "report.json", "worst.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--out",
        required=True,
        metavar="DIR",
        help="the folder for plans, report and page; a run that was stopped goes on",
    )
    add("--plans", metavar="FILE", help="score the plans in this file (JSON lines) in place of asking a writer")
    add("--requests", metavar="FILE", help="ask these in place of our 100 requests: one a line, as words or as JSON")
    add("--count", type=int, metavar="N", help="only N of the requests, the kinds taking turns; default: all")
    add("--seed", type=int, default=0, metavar="N", help="which requests, and the writer's seed; default: 0")
    add(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="of the writer; 0, the default, is the likeliest word",
    )
    add("--batch", type=int, default=8, metavar="N", help="plans that are written at the same time; default: 8")
    add("--json", action="store_true", help="print the scores as JSON instead of a table")
    add_model_options(parser, "writer", "plans the answers")
    parser.set_defaults(locks=lambda args: [args.out] if args.out.strip() else [])


def run(args: argparse.Namespace) -> int:
    from duogen_core.evaluation import plans, report

    for name, least in (("batch", 1), ("count", 1), ("seed", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise DuoGenError(f"--{name} must be at least {least}, not {value}.")
    if not 0 <= args.temperature <= 10:
        raise DuoGenError(f"--temperature is {args.temperature}; expected a number from 0 to 10.")
    if bool(args.writer) == bool(args.plans):
        raise DuoGenError("Give --writer, the model to measure, or --plans, a file of plans to score; one of the two.")
    out = checked_folder(args.out)
    if args.plans:
        if args.requests:
            raise DuoGenError("--plans has its requests with it; leave --requests out.")
        written = plans.read_plans(Path(args.plans))
        order = plans.chosen([one.request for one in written], args.count, args.seed)
        kept = {id(one) for one in order}
        written = [one for one in written if id(one.request) in kept]
        writer, spent = Path(args.plans).name, {}
    else:
        requests = plans.read_requests(Path(args.requests)) if args.requests else plans.our_requests()
        requests = list({one.text: one for one in requests}.values())  # a request asked twice would be one line
        writer = f"{args.writer} {args.writer_model}".strip()
        written, spent = _write(args, plans.chosen(requests, args.count, args.seed), writer, out)

    header = {
        "format": report.FORMAT,
        "version": 1,
        "benchmark": "plan",
        "writer": writer,
        "requests": len(written),
        "seed": args.seed,
        **({} if args.plans else {"temperature": args.temperature, "spent": spent}),
    }
    result = {**header, **plans.evaluate(written, instructions())}
    report.write(result, out / REPORT)
    from duogen_core.files import write_atomically

    write_atomically(out / WORST, plans.page(result).encode("utf-8", "surrogatepass"))
    if args.json:
        shown_ = {key: value for key, value in result.items() if key != "cases"}
        print(json.dumps({**shown_, "report": str(out / REPORT), "worst": str(out / WORST)}, indent=1))
    else:
        print(plans.table(result))
        print(out / WORST)
        print(out / REPORT)
    return 0


def instructions() -> list[str]:
    """What writers are told: a caption with words of it is copied."""
    from duogen_core.llm.messages import load_prompt
    from duogen_core.planning.writing import PROMPTS

    return [load_prompt(PROMPTS / name) for name in ("illustrated.txt", "plain.txt", "caption.txt")]


def checked_folder(name: str) -> Path:
    folder = Path(name)
    if not name.strip() or "\0" in name or (folder.exists() and not folder.is_dir()):
        raise DuoGenError(f"--out {shown(name)!r} must be the name of a folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DuoGenError(f"The folder {name} cannot be made ({error.strerror}); choose another --out.") from None
    return folder


def _write(
    args: argparse.Namespace, requests: Sequence[Request], writer: str, out: Path
) -> tuple[list[Written], dict[str, Any]]:
    from duogen_core.evaluation.plans import kept

    file = out / PLANS
    done = kept(file, writer, args.seed, args.temperature)
    waiting = [one for one in requests if one.text not in done]
    if len(waiting) < len(requests):
        print(f"{len(requests) - len(waiting)} of {len(requests)} are planned already.", file=sys.stderr, flush=True)
    spent: dict[str, Any] = {}
    if waiting:
        print(f"Loading {args.writer} …", file=sys.stderr, flush=True)
        client = model_of(args, "writer")
        interrupt.raising()
        _ask(client, waiting, args, writer, file)
        spent = client.usage.to_json()
    done = kept(file, writer, args.seed, args.temperature)
    return [replace(done[one.text], request=one) for one in requests], spent  # as asked now, should labels have changed


def _ask(client: Client, waiting: Sequence[Request], args: argparse.Namespace, writer: str, file: Path) -> None:
    """Has the requests planned, a batch at a time, and writes each batch down as soon as it is there."""
    from tqdm import tqdm

    from duogen_core.document import Document, Text
    from duogen_core.evaluation.plans import Written, line_of, score
    from duogen_core.files import write_errors
    from duogen_core.net.client import EndpointError
    from duogen_core.planning.plan import Plan
    from duogen_core.planning.writing import write_plans

    pause = 0.2 if sys.stderr.isatty() else 20.0  # in a log file every redrawing is a line
    sums: dict[str, list[float]] = {}
    unanswered: list[EndpointError] = []
    parts = 0
    with tqdm(total=len(waiting), unit="plan", dynamic_ncols=True, mininterval=pause) as bar:

        def show(refresh: bool = False) -> None:
            figures = (f"{name} {sum(values) / len(values):.2f}" for name, values in sums.items())
            bar.set_postfix_str(", ".join([f"{parts} parts", *figures]), refresh=refresh)

        def told(*_: Any) -> None:  # a batch takes minutes: its parts show that it goes on
            nonlocal parts
            parts += 1
            show(refresh=sys.stderr.isatty())

        for start in range(0, len(waiting), args.batch):
            group = waiting[start : start + args.batch]
            documents = [Document().begin_turn("user", [Text(one.text)]) for one in group]
            started = time.perf_counter()
            found = write_plans(
                client, documents, seeds=[args.seed] * len(group), temperature=args.temperature, batch=args.batch,
                on_part=told,
            )  # fmt: skip
            seconds = (time.perf_counter() - started) / len(group)  # an equal share
            failed = [one for one in found if isinstance(one, EndpointError)]
            if start == 0 and len(failed) == len(group):
                raise failed[0]  # a wrong address or key, and no fault of the writer
            lines = b""
            for request, plan in zip(group, found):
                if isinstance(plan, EndpointError) and plan.again:
                    unanswered.append(plan)
                    continue
                there = isinstance(plan, Plan)
                one = Written(request, plan if there else None, "" if there else str(plan)[:2000], seconds)
                lines += line_of(one, writer, args.seed, args.temperature)
                for name, value in score(one)[1].items():
                    sums.setdefault(name, []).append(value)
            with write_errors(file), file.open("ab") as opened:
                opened.write(lines)
            show()
            bar.update(len(group))
    if unanswered:
        raise DuoGenError(
            f"{len(unanswered)} of {len(waiting)} requests got no answer ({unanswered[0]}) The others are kept; give "
            "the same command again."
        )
