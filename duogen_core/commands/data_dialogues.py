"""data dialogues: Documents of `data web` -> user-assistant dialogues, by language models, checked by rules.

Out: a folder with webdataset shards, a log with the rule and the values for every document, every answer, and run.json.
The same command goes on where it stopped, after Ctrl-C or a kill; --replay repeats a run without an endpoint.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from duogen_core.commands.endpoint_options import add_endpoint_options, client_of, spent
from duogen_core.commands.run_options import (
    add_engine_options,
    done_before,
    nothing_kept,
    write_json,
)
from duogen_core.commands.run_progress import RunProgress
from duogen_core.errors import DuoGenError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("input", metavar="IN", help="the --out of `data web`, or a source such as webdataset:FILES or documents:DIR")
    add_engine_options(parser, ("howto",), "rewrite.min_overlap=0.6", "documents", 64)
    add("--record", metavar="FILE", help="where the answers are kept; default: answers.jsonl in the run's folder")
    add("--eyes-base-url", metavar="URL", help="another endpoint, for describing pictures")
    add("--eyes-model", metavar="NAME", help="another model, for describing pictures")
    add(
        "--give-up",
        type=int,
        default=8,
        metavar="N",
        help="stop when so many in a row fail at the endpoint; default: 8",
    )
    add_endpoint_options(parser)


def run(args: argparse.Namespace) -> int:
    if args.give_up < 1:
        raise DuoGenError(f"--give-up is {args.give_up}; expected at least 1.")
    from duogen_core.data.dialogues.engine import Engine, asks_a_model, begin, load_preset, no_model, open_input, work
    from duogen_core.data.runs.log import kept_parts, rule_of

    preset, source, out = load_preset(args.preset, args.set), open_input(args.input), Path(args.out)
    if asks_a_model(preset) or args.llm or args.mllm:
        writer, eyes = _clients(args, Path(args.record) if args.record else out / "answers.jsonl")
    else:
        writer = eyes = no_model()
    engine = Engine(preset, writer, eyes)
    this = begin(out, source, engine, args.shard_documents)
    found, refused = Counter(), Counter()
    for entry in this.entries_of(shard for shard in range(this.shards) if this.is_done(shard)):
        found.update(documents=1, kept=int(not rule_of(entry)), pictures=kept_parts(entry, "pictures"))
        refused[rule_of(entry)] += 1
    before = found["documents"]
    progress = RunProgress(args.quiet, "documents")
    progress.go_on(this.documents, before)
    with progress.stopping():
        for outcome in work(this, source, engine, args.parallel, args.give_up):
            found.update(documents=1, kept=int(outcome.document is not None))
            found["pictures"] += len(outcome.document.pictures) if outcome.document else 0
            refused[outcome.rule] += 1
            progress.step(1, found["kept"])
    usage = {"writer": writer.usage.to_json()} | ({"eyes": eyes.usage.to_json()} if eyes is not writer else {})
    rules = {rule: count for rule, count in refused.most_common() if rule}
    figures = {**{name: found[name] for name in ("documents", "kept", "pictures")}, "refused": rules, "usage": usage}
    figures |= {"documents_before": before}
    if write_json(args.json, {**figures, "seconds": round(progress.elapsed(), 2), "documents_in_all": this.documents}):
        return 0
    some = done_before(before, found["documents"])
    print(
        f"{found['kept']:,} dialogues with {found['pictures']:,} pictures from {found['documents']:,} documents{some}."
    )
    if rules:
        print("Refused: " + ", ".join(f"{count:,} {rule}" for rule, count in rules.items()) + ".")
    if found["documents"] and not found["kept"]:
        print(nothing_kept(this.folder))
    print(f"Asked: {spent(writer.usage)}." if writer.endpoint.model else "No model was asked.")
    if eyes is not writer:
        print(f"Asked for descriptions: {spent(eyes.usage)}.")
    print(this.folder / "shards")
    return 0


def _clients(args: argparse.Namespace, record: Path):
    """The writer, and the model that sees pictures: the same one unless another is named."""
    writer = client_of(args, record)
    if not (args.eyes_base_url or args.eyes_model):
        return writer, writer
    other = argparse.Namespace(**vars(args))
    other.mllm = None
    other.endpoint, other.llm = args.eyes_base_url or args.endpoint, args.eyes_model or args.llm
    eyes = client_of(other, record)
    eyes.recording = writer.recording  # one file, one lock
    return writer, eyes
