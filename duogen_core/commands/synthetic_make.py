"""What `draw` and `answer` of `data synthetic` share: options of a run of shards, and the loop that makes documents."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duogen_core.commands.run_options import done_before, nothing_kept, write_json
from duogen_core.commands.run_progress import RunProgress
from duogen_core.commands.synthetic import add_run_options
from duogen_core.errors import DuoGenError

if TYPE_CHECKING:
    from duogen_core.data.synthetic.drawing import Outcome, Run


def add_make_options(parser: argparse.ArgumentParser, name: str) -> None:
    add_run_options(parser)
    add = parser.add_argument
    add("--out", metavar="DIR", help=f"the run's folder; default: DIR/{name}")
    add("--shard", type=int, default=16, metavar="N", help="documents in a shard; default: 16")
    add("--part", default="1/1", metavar="K/N", help="only every Nth shard from the Kth on: one of several machines")
    add("--give-up", type=int, default=3, metavar="N", help="stop when so many documents in a row fail; default: 3")
    add("--size", metavar="WxH", help="size of the pictures; default: the model's or the workflow's own")
    parser.set_defaults(locks=lambda args: [_own_part(Path(args.out or Path(args.folder, name)), args.part)])


def _own_part(out: Path, part: str) -> Path:
    """What a process has for itself: the run's folder, or its part where several share the folder."""
    return out if part == "1/1" else out / f"part {part.replace('/', ' of ')}"


def make_documents(
    run: Run,
    items: Sequence[Any],
    make: Callable[[Any], Outcome],
    whole: Callable[[Sequence[Any]], None],
    part: tuple[int, int],
    progress: RunProgress,
    args: argparse.Namespace,
) -> int:
    if args.give_up < 1:
        raise DuoGenError(f"--give-up is {args.give_up}; expected at least 1.")
    from duogen_core.data.runs.log import kept_parts, rule_of
    from duogen_core.data.synthetic.drawing import work

    mine = [len(run.entries(shard)) for shard in range(part[0] - 1, run.shards, part[1])]
    todo = sum(len(run.entries(shard)) for shard in run.chosen(part))
    progress.go_on(sum(mine), sum(mine) - todo)
    rules: Counter[str] = Counter()
    pictures = 0
    for entry in run.entries_of(shard for shard in range(part[0] - 1, run.shards, part[1]) if run.is_done(shard)):
        rules[rule_of(entry)] += 1
        pictures += kept_parts(entry, "pictures")
    begun = time.monotonic()
    with progress.stopping():
        for outcome in work(run, items, make, whole, part, args.give_up):
            rules[outcome.verdict.rule] += 1
            pictures += len(outcome.document.pictures) if outcome.document else 0
            progress.step(1, rules[""])
    seconds = time.monotonic() - begun
    refused = {rule: count for rule, count in rules.most_common() if rule}
    figures = {"documents": rules[""], "pictures": pictures, "refused": refused, "seconds": round(seconds, 1)}
    if write_json(args.json, {**figures, "in_all": progress.total}):
        return 0
    named = ", ".join(f"{count:,} {rule}" for rule, count in refused.items())
    some = done_before(sum(mine) - todo, sum(mine))
    took = f" in {seconds:,.0f} s" if todo else ""
    print(f"{rules['']:,} documents with {pictures:,} pictures{some}{took}; refused: {named or 'none'}:")
    if mine and not rules[""]:
        print(nothing_kept(run.folder))
    print(run.folder / "shards")
    return 0
