"""data video: videos -> shots -> clips -> first and last frame with the change between them in words, as Documents.

Out: a folder with webdataset shards, a log with the rule and the values of every clip, and run.json. The same command
goes on where it stopped, after Ctrl-C or a kill, and ends with the same bytes. Nothing is fetched.
"""

from __future__ import annotations

import argparse
import threading
from pathlib import Path

from duogen_core.commands.endpoint_options import add_endpoint_options, client_of, spent
from duogen_core.commands.run_options import (
    add_engine_options,
    add_workers,
    check_workers,
    done_before,
    nothing_kept,
    write_json,
)
from duogen_core.commands.run_progress import RunProgress
from duogen_core.errors import DuoGenError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="video files, or folders of them at any depth")
    add_engine_options(parser, ("clips",), "clip.seconds=3", "videos", 4)
    add_workers(parser, "videos at once")
    add("--undescribed", action="store_true", help="keep pairs without a description, and ask no model for one")
    add_endpoint_options(parser)


def run(args: argparse.Namespace) -> int:
    check_workers(args)
    asked = bool(args.endpoint or args.replay or args.llm or args.mllm)
    if args.undescribed == asked:
        raise DuoGenError(
            "Give a vision-language model that describes the pairs (--endpoint URL --llm NAME, or --mllm FOLDER), or "
            "--undescribed to keep them without descriptions; one of the two."
        )
    from duogen_core.data.pairs.sharded import begin, work
    from duogen_core.data.pairs.video.engine import Describer, Engine, do_shard, load_preset
    from duogen_core.data.pairs.video.reading import check_installed, items, open_inputs
    from duogen_core.data.runs.log import kept_parts

    check_installed()
    preset, inputs, folder = load_preset(args.preset, args.set), open_inputs(args.inputs), Path(args.out)
    for each in inputs:
        if not each.only and each.root.resolve() in (folder.resolve(), *folder.resolve().parents):
            raise DuoGenError(f"{folder} lies in the input {each.root}; choose another --out.")
    describer = Describer(client_of(args, folder / "answers.jsonl")) if asked else None
    identity = {
        "inputs": [each.identity() for each in inputs],
        "preset": preset,
        "describer": describer.identity() if describer else None,
    }
    details = {"paths": args.inputs, "preset": preset}
    this = begin(folder, "video", identity, items(inputs), args.shard_videos, details)
    engine = Engine(preset, describer, max(args.parallel // args.workers, 1) if describer else 1)
    progress = RunProgress(args.quiet, "videos")
    total = {"videos": 0, "clips": 0, "kept": 0, "seconds": 0.0}
    for entry in this.entries_of(shard.number for shard in this.plan() if this.is_done(shard.number)):
        total["videos"] += 1
        total["clips"] += len(entry["clips"])
        total["kept"] += kept_parts(entry, "clips")
        total["seconds"] += entry.get("seconds", 0)
    before, pairs, lock = dict(total), total["kept"], threading.Lock()
    progress.go_on(this.items, total["videos"])

    def tell(kept: int) -> None:
        nonlocal pairs
        with lock:
            pairs += kept
            progress.step(1, pairs)

    with progress.stopping():
        for found in work(this, lambda shard: do_shard(this, shard, engine, inputs, tell), args.workers):
            for name in total:
                total[name] += found.get(name, 0)
    elapsed = progress.elapsed()
    usage = describer.client.usage if describer else None
    figures = {**total, "videos_before": before["videos"], "elapsed": round(elapsed, 2)}
    if write_json(args.json, {**figures, "usage": usage.to_json() if usage else None}):
        return 0
    if usage:
        print(f"{spent(usage)}.")
    now = total["seconds"] - before["seconds"]
    some = done_before(before["videos"], total["videos"])
    rate = f", {now / max(elapsed, 1e-6):.1f} times real time" if now else ""
    minutes = f"{total['seconds'] / 60:,.1f} minutes of video"
    print(f"{total['kept']:,} pairs of {total['clips']:,} clips, {minutes}{some}{rate}:")
    if total["videos"] and not total["kept"]:
        print(nothing_kept(this.folder))
    print(this.folder / "shards")
    return 0
