"""evaluate sketchbook: the model answers new cases of every task, the exact checker judges, a JSON report is written.

`--samples N` cases in all, spread evenly over eight groups (draw is measured with training's pairs and with held-out
ones). Cases come from Random("evaluation-<seed>-<group>-<index>"); training draws from other names, so a case is never
a replay of a training sample (a simple request may still happen to be worded alike).
Report: {"figures": check -> mean in [0, 1], "counts", "intervals" (95%), "extra": other measures, "cases": […]}.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from duogen_core import interrupt
from duogen_core.checkpoint import DEFAULT_MODEL
from duogen_core.data.sketchbook.cases import Case
from duogen_core.document import Document
from duogen_core.errors import DuoGenError
from duogen_core.evaluation import report as reports

GROUPS = ("guide", "draw", "draw held out", "edit", "continue", "plan", "draft", "describe")
Answer = Callable[[Document, int], Document]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", required=True, metavar="FILE", help="the JSON report to write")
    add(
        "--samples",
        type=int,
        default=200,
        metavar="N",
        help="cases in all, spread over the tasks; default: %(default)s",
    )
    add("--seed", type=int, default=0, metavar="N", help="which cases, and the noise of the pictures; default: 0")
    add("--model", default=DEFAULT_MODEL, metavar="NAME_OR_PATH", help="default: %(default)s")
    add("--only", action="append", choices=GROUPS, metavar="TASK", help=f"only this task, of {', '.join(GROUPS)}")
    add("--steps", type=int, metavar="N", help="sampling steps a picture; default: the model's own")
    add("--guidance", type=float, metavar="G", help="default: the model's own")
    add("--documents", metavar="DIR", help="save every answer there, and an overview as overview.png")
    add("--json", action="store_true", help="print the report's figures as JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    interrupt.at_once()
    if args.samples < 1:
        raise DuoGenError(f"--samples must be at least 1, not {args.samples}.")
    target = reports.checked_target(args.out)
    folder = checked_folder(args.documents)
    from duogen_core.checkpoint import check_checkpoint, load_checkpoint, resolve_model
    from duogen_core.pipeline import Settings, generate

    model = resolve_model(args.model)
    check_checkpoint(model)
    settings = Settings(steps=args.steps, guidance=args.guidance)
    print(f"Loading {args.model} …", file=sys.stderr, flush=True)
    components = load_checkpoint(model)
    settings = settings.resolved(components.config)
    interrupt.raising()

    result = evaluate(
        lambda prompt, seed: generate(components, prompt, replace(settings, seed=seed)),
        cases(args.samples, args.seed, args.only or GROUPS),
        seed=args.seed,
        folder=folder,
        progress=True,
    )
    header = {
        "format": reports.FORMAT,
        "version": 1,
        "benchmark": "sketchbook",
        "model": components.name,
        "samples": args.samples,
        "seed": args.seed,
        "settings": {"steps": settings.steps, "guidance": settings.guidance, "shift": settings.shift},
    }
    result = {**header, **result}
    reports.write(result, target)
    if args.json:
        shown = {key: value for key, value in result.items() if key != "cases"}
        print(json.dumps({**shown, "report": str(target)}, indent=1))
    else:
        print(reports.table(result))
        print(target)
    return 0


def cases(samples: int, seed: int, groups: Sequence[str] = GROUPS) -> list[tuple[str, Case]]:
    """(group, case), `samples` in all, taking turns, so that any first part of them is a balanced one."""
    from duogen_core.data.sketchbook.tasks import evaluation_case

    chosen = []
    for number in range(samples):
        group = groups[number % len(groups)]
        rng = Random(f"evaluation-{seed}-{group}-{number // len(groups)}")
        family, _, held_out = group.partition(" ")
        chosen.append((group, evaluation_case(family, rng, held_out=bool(held_out))))
    return chosen


def evaluate(
    answer: Answer,
    chosen: Iterable[tuple[str, Case]],
    *,
    seed: int = 0,
    folder: Path | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Lets `answer(prompt, seed)` answer every case; returns the report without its header."""
    from tqdm import tqdm

    from duogen_core.evaluation.scores import CHECKS, score

    chosen = list(chosen)
    records, rows, scores = [], [], []
    started = time.perf_counter()
    bar = tqdm(chosen, unit="case", disable=not progress, dynamic_ncols=True)
    for number, (group, case) in enumerate(bar):
        bar.set_description(group)
        picture_seed = seed * 100_000 + number * 10  # pictures of one answer count up from here
        begun = time.perf_counter()
        document = answer(case.prompt, picture_seed)
        seconds = time.perf_counter() - begun
        found = score(case, document)
        given = len(case.prompt.turns)
        scores.append((found, {f"{case.family}.seconds": seconds}))
        records.append(
            {
                "group": group,
                "request": case.prompt.last_turn.text,
                "answer": "".join(turn.text for turn in document.turns[given:]),
                "ideal": case.document.text,
                "checks": {name: round(value, 4) for name, value in found.checks.items()},
                "measures": {name: round(value, 4) for name, value in found.measures.items()},
                "stop_reason": document.generation.get("stop_reason"),
                "seed": picture_seed,
                "seconds": round(seconds, 2),
            }
        )
        if folder is not None:
            from duogen_core.store import save_document

            save_document(document, folder / f"{number:04d} {group}".replace(" ", "-"), overwrite=True)
            rows.append((f"{number:04d} {group}", document, given, found.checks))
    if folder is not None:
        from duogen_core.evaluation.sheet import contact_sheet

        contact_sheet(sorted(rows, key=lambda row: GROUPS.index(row[0][5:])), folder / "overview.png", most=200)
    return {
        **reports.figures([found.checks for found, _ in scores], CHECKS),
        "extra": reports.means([{**found.measures, **timing} for found, timing in scores]),
        "seconds": round(time.perf_counter() - started, 1),
        "cases": records,
    }


def checked_folder(name: str | None) -> Path | None:
    if name is None:
        return None
    folder = Path(name)
    if not name.strip() or (folder.exists() and not folder.is_dir()):
        raise DuoGenError(f"--documents {name!r} must be the name of a folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DuoGenError(f"The folder {name} cannot be made ({error.strerror}); choose another --documents.") from None
    return folder
