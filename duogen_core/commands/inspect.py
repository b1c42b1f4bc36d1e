"""inspect: says what a model file or folder is, what else it needs and how much memory; reads headers only."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from duogen_core.commands.progress import harmless
from duogen_core.errors import DuoGenError

if TYPE_CHECKING:
    from duogen_core.identify import Found
    from duogen_core.memory import Need, Term


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "paths",
        nargs="+",
        metavar="FILE_OR_FOLDER",
        help="a model file or folder; several are added up as the parts of one model",
    )
    add(
        "--memory",
        type=float,
        metavar="GIB",
        help="say whether it fits into this much memory, for example 12; the exit code is 1 if it cannot run",
    )
    add("--size", default="1024x1024", metavar="WxH", help="size of the image to draw; default: 1024x1024")
    add("--references", type=int, default=2, metavar="N", help="earlier images it looks at; default: 2")
    add("--tokens", type=int, default=4096, metavar="N", help="length of the conversation in tokens; default: 4096")
    add("--json", action="store_true", help="print everything as JSON")


def run(args: argparse.Namespace) -> int:
    from duogen_core.identify import identify
    from duogen_core.memory import (
        GIB,
        Need,
        terms,
        verdict,
    )

    size = re.fullmatch(r"(\d{2,5})x(\d{2,5})", args.size)
    if size is None:
        raise DuoGenError(f"--size is {args.size!r}; expected WIDTHxHEIGHT, such as 1024x768.")
    for name, value, low in (
        ("memory", args.memory, 0.1),
        ("references", args.references, 0),
        ("tokens", args.tokens, 1),
    ):
        if value is not None and not low <= value <= 1e9:
            raise DuoGenError(f"--{name} is {value:g}; expected at least {low:g}.")
    need = Need(int(size[1]), int(size[2]), args.references, args.tokens)
    found = [each for path in args.paths for each in identify(path)]
    counted = terms(found, need)
    fits = verdict(counted, int(args.memory * GIB)) if args.memory is not None else None
    # Like grep: 1 is an answer, 2 a fault.
    code = 1 if fits is not None and fits[0] == "no" else 0
    if args.json:
        value = {
            "found": [asdict(each) for each in found],
            "need": asdict(need),
            "memory": [asdict(term) for term in counted],
            "memory_total": sum(term.bytes for term in counted),
            "fits": None if fits is None else {"memory": args.memory, "answer": fits[0], "sentence": fits[1]},
        }
        json.dump(value, sys.stdout, indent=2)
        print()
        return code
    for each in found:
        print(_describe(each))
    print(_sum(counted, need))
    if fits is not None:
        print(fits[1])
    return code


def _describe(found: Found) -> str:
    from duogen_core.weights.writing import readable

    types = ", ".join(f"{kind} {readable(size)}" for kind, size in sorted(found.dtypes.items(), key=lambda x: -x[1]))
    lines = [
        found.path,
        f"  {found.kind}: {found.family}" + (f", {found.layout} layout" if found.layout else ""),
        f"  {found.parameters:,} parameters, {readable(found.bytes)} ({types})",
    ]
    if found.quantised:
        lines.append("  quantised: " + ", ".join(f"{n} layers {kind}" for kind, n in sorted(found.quantised.items())))
    lines += [f"  {note}" for note in found.notes]
    lines += [f"  needs {need}" for need in found.needs]
    return "\n".join(harmless(line) for line in lines)


def _sum(counted: Sequence[Term], need: Need) -> str:
    from duogen_core.weights.writing import readable

    total = sum(term.bytes for term in counted)
    head = f"Estimated memory for {need.width}x{need.height} with {need.references} earlier images:"
    names = [f"{term.part}, {term.what}" for term in counted]
    wide = max(map(len, names), default=0)
    lines = [
        f"  {name.ljust(wide)}  {readable(term.bytes):>10}  = {term.arithmetic}" for name, term in zip(names, counted)
    ]
    return "\n".join([head, *lines, f"  {'together'.ljust(wide)}  {readable(total):>10}"])
