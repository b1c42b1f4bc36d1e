"""data make sketchbook: a folder of Document folders, drawn by Sketchbook, to look at or to train on.

With --thing every document is about that one, which may be a thing that no training of the bundled model shows. The
documents are a pure function of the options; the names of their random generators are not those of the evaluation.
Out: DIR/000000, DIR/000001, …, and an overview of the first ones as DIR/overview.png. The folder appears when all of
them are written.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from duogen_core.commands.run_options import Command
from duogen_core.errors import DuoGenError

if TYPE_CHECKING:
    from duogen_core.sketchbook.tasks.common import Case

SHOWN = 40  # documents in the overview


def add_make(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", required=True, metavar="DIR", help="the folder to make; it must not exist, or be empty")
    add("--count", type=int, default=200, metavar="N", help="how many documents; default: 200")
    add("--thing", metavar="NAME", help="only guides of this thing, and drawings of it to continue")
    add("--families", metavar="A,B", help="only these tasks, each as often; default: all, as in training")
    add("--seed", type=int, default=0, metavar="N", help="other documents; default: 0")
    parser.set_defaults(locks=lambda args: [args.out])


def run_make(args: argparse.Namespace) -> int:
    from duogen_core.errors import unknown
    from duogen_core.sketchbook.tasks import FAMILIES, OF_THINGS, WEIGHTS
    from duogen_core.sketchbook.things import thing_named

    if args.count < 1:
        raise DuoGenError(f"--count must be at least 1, not {args.count}.")
    families = [name.strip() for name in args.families.split(",")] if args.families is not None else []
    for name in families:
        if name not in FAMILIES:
            raise DuoGenError(unknown("--families: the task", name, FAMILIES))
        if args.thing and name not in OF_THINGS:
            raise DuoGenError(f"--families {name} is not about one thing; with --thing give {' or '.join(OF_THINGS)}.")
    weights = dict.fromkeys(families, 1.0) or ({"guide": 0.75, "continue": 0.25} if args.thing else WEIGHTS)
    if args.thing:
        thing_named(args.thing)
    folder = checked_folder(args.out)
    temporary = folder.with_name(f".{folder.name}.making")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        made = make_documents(temporary, args.count, args.seed, weights, args.thing)
        overview(made[:SHOWN], temporary / "overview.png")
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    except OSError as error:
        raise DuoGenError(f"The documents cannot be written to {folder}: {error.strerror or error}.") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    counts = {name: sum(case.family == name for case in made) for name in weights}
    print(f"{len(made)} documents ({', '.join(f'{n} {name}' for name, n in counts.items() if n)}):")
    print(folder)
    return 0


def make_documents(folder: Path, count: int, seed: int, weights: dict[str, float], thing: str | None) -> list[Case]:
    from duogen_core.document.store import save_document
    from duogen_core.sketchbook.tasks import evaluation_case, training_case

    made = []
    for number in range(count):
        rng = Random(f"make-{seed}-{f'{thing}-' if thing else ''}{number}")
        if thing:
            case = evaluation_case(rng.choices(list(weights), list(weights.values()))[0], rng, thing=thing)
        else:
            case = training_case(rng, weights)
        meta = {"source": "sketchbook", "family": case.family, "truth": dict(case.truth)}
        save_document(replace(case.document, meta=meta), folder / f"{number:06d}")
        made.append(case)
    return made


def overview(made: Sequence[Case], file: Path) -> None:
    from duogen_core.evaluation.report import contact_sheet

    rows = [
        (f"{number:06d} {case.family}", case.document, len(case.prompt.turns), {}) for number, case in enumerate(made)
    ]
    contact_sheet(rows, file)


def checked_folder(name: str) -> Path:
    folder = Path(name)
    if not name.strip() or (folder.exists() and not folder.is_dir()):
        raise DuoGenError(f"--out {name!r} must be the name of a folder.")
    if folder.is_dir() and any(folder.iterdir()):
        raise DuoGenError(f"The folder {name} has something in it; choose another --out, or empty it first.")
    try:
        folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DuoGenError(f"The folder {name} cannot be made ({error.strerror}); choose another --out.") from None
    return folder


sketchbook = Command(add_make, run_make)
