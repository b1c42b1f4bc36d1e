"""evaluate sketchbook: the model answers new cases of every task, the exact checker scores them into a JSON report.

`--samples N` cases in all, spread evenly over ten groups: draw is measured with training's pairs and with held-out
ones; the undrafted cases are the draft ones, asked not to draw, and `draft.gain` is what drawing wins. Cases come from
Random("evaluation-<seed>-<group>-<index>"); training draws from other names, so a case is never a replay of a training
sample (a simple request may still happen to be worded alike).
Report: {"figures": check -> mean in [0, 1] (a gain: in [-1, 1]), "counts", "intervals" (95%), "extra": other measures,
"cases": […]}.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from duogen_core import interrupt
from duogen_core.checkpoint import DEFAULT_MODEL
from duogen_core.device_options import add_device_options, placement_of
from duogen_core.errors import DuoGenError
from duogen_core.evaluation import report as reports
from duogen_core.review import MAX_REDRAWS
from duogen_core.sketchbook.tasks import OF_THINGS, evaluation_case
from duogen_core.sketchbook.tasks.common import Case

if TYPE_CHECKING:
    from duogen_core.evaluation.answering import Answer

GROUPS = ("guide", "draw", "draw held out", "edit", "edit_chain", "continue", "plan", "draft", "undrafted", "describe")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", required=True, metavar="FILE", help="the JSON report to write, for example scores.json")
    add(
        "--samples",
        type=int,
        default=200,
        metavar="N",
        help="number of cases, spread evenly over the tasks; default: %(default)s",
    )
    add("--seed", type=int, default=0, metavar="N", help="which cases, and the noise of the images; default: 0")
    add(
        "--model",
        default=DEFAULT_MODEL,
        metavar="NAME_OR_PATH",
        help="the model to measure: a name or a folder; default: %(default)s",
    )
    add(
        "--only",
        action="append",
        choices=GROUPS,
        metavar="TASK",
        help=f"only this task; may be repeated; one of {', '.join(GROUPS)}",
    )
    add("--thing", metavar="NAME", help="only guides of this thing, such as house, and drawings of it to continue")
    add("--steps", type=int, metavar="N", help="sampling steps of each image; default: the model's own")
    add("--guidance", type=float, metavar="G", help="how closely an image follows its text; default: the model's own")
    add(
        "--jobs",
        type=int,
        metavar="N",
        help="processes that answer at the same time, each with a copy of the model; default: one per card, else 1",
    )
    add("--threads", type=int, default=1, metavar="N", help="CPU threads of each process; default: 1")
    add(
        "--batch",
        type=int,
        default=1,
        metavar="N",
        help="answers that are written together, as one batch; the last digits of an image may differ; default: 1",
    )
    add(
        "--redraws",
        type=int,
        metavar="N",
        help="let the exact checker look at every image, which knows the request and the images as a user does and no "
        "solution, and draw those that it refuses again, up to N times; default: nobody looks",
    )
    add("--documents", metavar="DIR", help="also save every answer there, and an overview as overview.png")
    add("--json", action="store_true", help="print the figures as JSON instead of a table")
    add_device_options(parser)
    parser.set_defaults(locks=_written)


def _written(args: argparse.Namespace) -> list[str]:
    """Returns what no other run may write meanwhile; a report whose folder is missing is refused later."""
    report = [args.out] if Path(args.out).absolute().parent.is_dir() else []
    return report + ([args.documents] if args.documents else [])


def run(args: argparse.Namespace) -> int:
    interrupt.at_once()
    for name in ("samples", "jobs", "threads", "batch"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise DuoGenError(f"--{name} must be at least 1, not {getattr(args, name)}.")
    if args.redraws is not None and not 0 <= args.redraws <= MAX_REDRAWS:
        raise DuoGenError(f"--redraws must be between 0 and {MAX_REDRAWS}, not {args.redraws}.")
    groups = args.only or (OF_THINGS if args.thing else GROUPS)
    chosen = cases(args.samples, args.seed, groups, args.thing)
    target = reports.checked_target(args.out)
    folder = checked_folder(args.documents)
    import torch

    from duogen_core.checkpoint import check_checkpoint, resolve_model
    from duogen_core.devices import devices_of
    from duogen_core.evaluation.answering import ModelAnswer
    from duogen_core.settings import Settings

    model, placement = resolve_model(args.model), placement_of(args)
    jobs = min(args.jobs or len(devices_of(placement.device)), args.samples)
    config = check_checkpoint(model)
    settings = Settings(steps=args.steps, guidance=args.guidance).resolved(config)
    critic = None
    if args.redraws is not None:
        from duogen_core.sketchbook.critic import SketchbookCritic

        critic = SketchbookCritic()
    answer = ModelAnswer(model, settings, placement=placement, critic=critic, redraws=args.redraws or 0)
    print(f"Loading {args.model} …", file=sys.stderr, flush=True)
    torch.set_num_threads(args.threads)
    if jobs == 1:  # else every process loads it, and none needs it here
        answer.load()
    interrupt.raising()

    result = evaluate(
        answer, chosen, seed=args.seed, folder=folder, progress=True, jobs=jobs, threads=args.threads, batch=args.batch
    )
    header = {
        "format": reports.FORMAT,
        "version": 1,
        "benchmark": "sketchbook",
        "model": config.name,
        "samples": args.samples,
        "seed": args.seed,
        **({"thing": args.thing} if args.thing else {}),
        "settings": {"steps": settings.steps, "guidance": settings.guidance, "shift": settings.shift},
        **({} if critic is None else {"redraws": args.redraws}),
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


def cases(samples: int, seed: int, groups: Sequence[str] = GROUPS, thing: str | None = None) -> list[tuple[str, Case]]:
    """Returns `samples` of (group, case), the groups taking turns, so that any first part is balanced."""
    chosen = []
    for number in range(samples):
        group = groups[number % len(groups)]
        # The same random numbers make the same case, so that drawing and not drawing can be compared pair by pair.
        same = "draft" if group == "undrafted" else group
        rng = Random(f"evaluation-{seed}-{f'{thing}-' if thing else ''}{same}-{number // len(groups)}")
        family, _, held_out = group.partition(" ")
        chosen.append((group, evaluation_case(family, rng, held_out=bool(held_out), thing=thing)))
    return chosen


def evaluate(
    answer: Answer,
    chosen: Iterable[tuple[str, Case]],
    *,
    seed: int = 0,
    folder: Path | None = None,
    progress: bool = False,
    jobs: int = 1,
    threads: int = 1,
    batch: int = 1,
) -> dict[str, Any]:
    """Answers every case with `answer(prompt, seed)`; returns the report without its header."""
    from duogen_core.evaluation.answering import answers
    from duogen_core.sketchbook.scores import CHECKS, score

    chosen = list(chosen)
    seeds = [seed * 100_000 + number * 10 for number in range(len(chosen))]  # pictures of one answer count up from here
    questions = [(case.prompt, one) for (_, case), one in zip(chosen, seeds)]
    records, rows, scores = [], [], []
    started = time.perf_counter()
    with closing(Bar(len(chosen), progress)) as bar:  # its line ends before a message follows
        for number, (document, seconds) in enumerate(answers(answer, questions, jobs, threads, batch)):
            group, case = chosen[number]
            found = score(case, document)
            asked = len(case.prompt.turns)
            scores.append((found, {f"{case.family}.seconds": seconds}))
            bar.step(found.checks)  # answers come in the order of the cases, however many processes there are
            records.append(
                {
                    "group": group,
                    "request": case.prompt.last_turn.text,
                    "answer": "".join(turn.text for turn in document.turns[asked:]),
                    "ideal": case.document.text,
                    "checks": {name: round(value, 4) for name, value in found.checks.items()},
                    "measures": {name: round(value, 4) for name, value in found.measures.items()},
                    "stop_reason": document.generation.get("stop_reason"),
                    "seed": seeds[number],
                    "seconds": round(seconds, 2),
                }
            )
            if folder is not None:
                from duogen_core.document.store import save_document

                save_document(document, folder / f"{number:04d} {group}".replace(" ", "-"), overwrite=True)
                rows.append((f"{number:04d} {group}", document, asked, found.checks))
        if folder is not None:
            from duogen_core.evaluation.report import contact_sheet

            contact_sheet(sorted(rows, key=lambda row: GROUPS.index(row[0][5:])), folder / "overview.png", most=200)
    checks = [found.checks for found, _ in scores]
    return {
        **with_gain(reports.figures(checks, CHECKS), checks),
        "extra": reports.means([{**found.measures, **timing} for found, timing in scores]),
        "seconds": round(time.perf_counter() - started, 1),
        "cases": records,
    }


def with_gain(found: dict[str, dict[str, Any]], checks: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Adds draft.gain to the figures: how often drawing made the answer right, less how often it made it wrong."""
    with_drawing, without = (
        [one[name] for one in checks if name in one] for name in ("draft.answer", "undrafted.answer")
    )
    pairs = list(zip(with_drawing, without))  # the k-th of both are the same case
    if pairs:
        found["figures"]["draft.gain"], found["intervals"]["draft.gain"] = reports.gain(pairs)
        found["counts"]["draft.gain"] = len(pairs)
    return found


class Bar:
    """A progress bar with the figures so far: the first check of each task."""

    def __init__(self, total: int, shown: bool) -> None:
        from tqdm import tqdm

        pause = 0.2 if sys.stderr.isatty() else 20.0  # in a log file every redrawing is a line
        self.bar = tqdm(total=total, unit="case", disable=not shown, dynamic_ncols=True, mininterval=pause)
        self.sums: dict[str, list[float]] = {}

    def step(self, checks: Mapping[str, float]) -> None:
        name = next((name for name in checks if name.endswith(("step_right", "right_heldout"))), next(iter(checks)))
        self.sums.setdefault(name, []).append(checks[name])
        figures = (f"{name} {sum(values) / len(values):.2f}" for name, values in self.sums.items())
        self.bar.set_postfix_str(", ".join(figures), refresh=False)
        self.bar.update()

    def close(self) -> None:
        self.bar.close()


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
