"""The engines of `data`: web, dedup, dialogues, video, editing. Each turns its inputs into a folder of Documents.

Out: webdataset shards, a log with the rule and the value of every item, and run.json. The same command goes on where it
stopped, after Ctrl-C or a kill, and ends with the same bytes. Nothing is fetched but with `data web --fetch`.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duogen_core.commands.endpoint_options import add_endpoint_options, client_of, spent
from duogen_core.commands.run_options import (
    Command,
    RunProgress,
    add_engine_options,
    add_workers,
    check_workers,
    done_before,
    nothing_kept,
    plain,
    write_json,
)
from duogen_core.data.pairs.editing.layouts import LAYOUTS
from duogen_core.errors import DuoGenError, MissingPackage

if TYPE_CHECKING:
    from duogen_core.data.runs import Engine
    from duogen_core.data.runs.run import Run
    from duogen_core.llm.client import Client, Usage

NO_PAGE = "The inputs hold no page: expected HTML answers with status 200 in WARC files, or .html or .mhtml files."


# ------------------------------------------------------------ what all of them do


@dataclass
class Done:
    """A run after the loop. found and refused count all that it holds; before, what an earlier start had done."""

    run: Run
    found: Counter[str] = field(default_factory=Counter)
    before: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)  # by rule; "" is not among them
    total: int = 0  # items in all
    usages: Mapping[str, Usage] = field(default_factory=dict)
    seconds: float = 0.0


def do_run(
    args: argparse.Namespace,
    engine: Engine,
    folder: Path,
    size: int,
    count: Callable[[Mapping[str, Any]], Mapping[str, float]],
    progress: RunProgress | None = None,
    **how: Any,
) -> Done:
    """Begins the run in the folder, or goes on with it. count: what an entry of the log adds to the figures."""
    from duogen_core.data.runs.log import rule_of
    from duogen_core.data.runs.run import begin, work

    progress = progress or RunProgress(args.quiet, engine.things)
    run = begin(folder, engine, size)
    done = Done(run, usages={name: client.usage for name, client in engine.clients().items()})

    def add(entry: Mapping[str, Any]) -> None:
        done.found.update(count(entry))
        if rule := rule_of(dict(entry)):
            done.refused[rule] += 1

    mine = [shard for _, shard in run.mine(how.get("part", (1, 1)))]
    finished = [shard for shard in mine if run.is_done(shard.number)]
    for entry in run.entries_of(shard.number for shard in finished):
        add(entry)
    done.before, done.total = Counter(done.found), sum(len(shard.items) for shard in mine)
    progress.go_on(done.total, sum(len(shard.items) for shard in finished))
    with progress.stopping():
        for entry in work(run, engine, backend=args.backend, **how):
            add(entry)
            progress.step(1, done.found["kept"])
    done.seconds = progress.elapsed()
    return done


def named(refused: Counter[str]) -> str:
    return ", ".join(f"{count:,} {rule}" for rule, count in refused.most_common())


def check_outside(folder: Path, given: Path, what: str) -> None:
    if given.is_dir() and given.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise DuoGenError(f"{folder} lies in the {what} {given}; choose another --out.")


# ------------------------------------------------------------ data web


def add_web(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    what = "WARC files, folders of pages, .html files; lists of addresses (.txt)"
    add("inputs", nargs="+", metavar="INPUT", help=what)
    add_engine_options(parser, ("howto", "obelics"), "page.min_words=50", "pages", 64)
    add("--fetch", action="store_true", help="fetch listed pages, and images that are missing, from the web")
    add(
        "--max-unreachable",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="with --fetch: the share of addresses that may be left because the network or a host failed; with more "
        "the run stops before its plan, and the same command asks for them again; default: 0.1",
    )
    add_workers(parser, "processes")


def run_web(args: argparse.Namespace) -> int:
    check_workers(args)
    from duogen_core.data.runs.log import kept_parts, rule_of
    from duogen_core.data.runs.presets import load_preset
    from duogen_core.data.web.engine import Fetching, WebEngine
    from duogen_core.net.client import HttpClient

    if not 0 <= args.max_unreachable <= 1:
        raise DuoGenError(f"--max-unreachable is {args.max_unreachable:g}; expected a share from 0 to 1.")
    progress, folder = RunProgress(args.quiet, "pages"), Path(args.out)
    fetching = Fetching(HttpClient(), progress.fetched, args.max_unreachable) if args.fetch else None
    engine = WebEngine(load_preset("web", args.preset, args.set), args.inputs, folder, fetching, progress.line)

    def count(entry: Mapping[str, Any]) -> dict[str, int]:
        return {"pages": 1, "kept": int(not rule_of(entry)), "pictures": kept_parts(entry, "pictures")}

    done = do_run(args, engine, folder, args.shard_pages, count, progress, workers=args.workers)
    found, run, before = done.found, done.run, done.before["pages"]
    figures = {name: found[name] for name in ("pages", "kept", "pictures")}
    figures |= {"pages_before": before, "pages_in_all": run.items, "seconds": round(done.seconds, 2)}
    if write_json(args.json, {**figures, "notes": list(run.notes)}):
        return 0
    now, some = found["pages"] - before, done_before(before, found["pages"])
    rate = f", {now / max(done.seconds, 1e-6):,.0f} pages a second" if now else ""
    print(f"{found['kept']:,} documents with {found['pictures']:,} images from {found['pages']:,} pages{some}{rate}:")
    for note in run.notes:
        print(note)
    if args.preset == "obelics":
        print(f"OBELICS also compares all pages with each other: data dedup {run.folder} --preset obelics --out DIR")
    if not run.items:
        print(NO_PAGE)
    elif not found["kept"]:
        print(nothing_kept(run.folder))
    print(run.folder / "shards")
    return 0


web = Command(add_web, run_web)


# ------------------------------------------------------------ data dedup


def add_dedup(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="the --out of `data web`, or of another engine; several are one set")
    add_engine_options(parser, ("howto", "obelics"), "address.max_pages=20", "documents", 500)
    add_workers(parser, "processes")


def run_dedup(args: argparse.Namespace) -> int:
    check_workers(args)
    from duogen_core.data.dedup.engine import DedupEngine
    from duogen_core.data.runs.log import kept_parts, rule_of
    from duogen_core.data.runs.presets import load_preset

    progress, preset = RunProgress(args.quiet, "documents"), load_preset("dedup", args.preset, args.set)
    engine = DedupEngine(preset, args.runs, Path(args.out), args.workers, args.backend, progress.prepared)

    def count(entry: Mapping[str, Any]) -> dict[str, int]:
        kept = int(not rule_of(dict(entry)))
        images = entry.get("pictures", ())
        return {
            "documents": 1,
            "kept": kept,
            "pictures": kept_parts(dict(entry), "pictures"),
            "pictures_removed": kept * sum("rule" in image for image in images),
            "lines_removed": kept * len(entry.get("removed_lines", ())),
        }

    done = do_run(args, engine, Path(args.out), args.shard_documents, count, progress, workers=args.workers)
    found, run = done.found, done.run
    names = ("documents", "kept", "pictures", "pictures_removed", "lines_removed")
    figures = {**{name: found[name] for name in names}, "refused": dict(done.refused.most_common())}
    figures |= {"documents_before": done.before["documents"], "seconds": round(done.seconds, 2)}
    if write_json(args.json, {**figures, "notes": list(run.notes)}):
        return 0
    some = done_before(done.before["documents"], found["documents"])
    print(f"{found['kept']:,} of {found['documents']:,} documents stay, with {found['pictures']:,} images{some}.")
    print(f"Taken out of them: {found['pictures_removed']:,} images and {found['lines_removed']:,} lines that repeat.")
    if done.refused:
        print(f"Refused: {named(done.refused)}.")
    for note in run.notes:
        print(note)
    print(run.folder / "shards")
    return 0


dedup = Command(add_dedup, run_dedup)


# ------------------------------------------------------------ data dialogues


def add_dialogues(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("input", metavar="IN", help="the --out of `data web`, or a source such as webdataset:FILES or documents:DIR")
    add_engine_options(parser, ("howto",), "rewrite.min_overlap=0.6", "documents", 64)
    add_workers(parser, "with --backend ray: processes, which share --parallel")
    add("--record", metavar="FILE", help="where the answers are kept; default: answers.jsonl in the run's folder")
    # The second spellings are those of earlier versions, for commands that were written down.
    about = "another endpoint, for describing images"
    add("--describer-base-url", "--eyes-base-url", metavar="URL", help=about)
    about = "another model, for describing images"
    add("--describer-model", "--eyes-model", metavar="NAME", help=about)
    about = "stop when so many in a row fail at the endpoint; default: 8"
    add("--give-up", type=int, default=8, metavar="N", help=about)
    add_endpoint_options(parser)


def run_dialogues(args: argparse.Namespace) -> int:
    check_workers(args)
    if args.give_up < 1:
        raise DuoGenError(f"--give-up is {args.give_up}; expected at least 1.")
    from duogen_core.data.dialogues.engine import DialogueEngine, asks_a_model, no_models
    from duogen_core.data.runs.log import kept_parts, rule_of
    from duogen_core.data.runs.presets import load_preset

    preset, out = load_preset("dialogues", args.preset, args.set), Path(args.out)
    connect = no_models
    if asks_a_model(preset) or args.llm or args.mllm:
        connect = partial(_models, plain(args), Path(args.record) if args.record else out / "answers.jsonl")
    engine = DialogueEngine(preset, connect, args.input, uses_gpu=bool(args.mllm))

    def count(entry: Mapping[str, Any]) -> dict[str, int]:
        return {"documents": 1, "kept": int(not rule_of(entry)), "pictures": kept_parts(entry, "pictures")}

    ray = args.backend == "ray"
    how = {"workers": args.workers if ray else args.parallel, "threads": max(args.parallel // args.workers, 1)}
    done = do_run(args, engine, out, args.shard_documents, count, give_up=args.give_up, **how)
    found, before = done.found, done.before["documents"]
    rules = dict(done.refused.most_common())
    usage = {name: each.to_json() for name, each in done.usages.items()}
    figures = {**{name: found[name] for name in ("documents", "kept", "pictures")}, "refused": rules, "usage": usage}
    figures |= {"documents_before": before, "seconds": round(done.seconds, 2), "documents_in_all": done.run.items}
    if write_json(args.json, figures):
        return 0
    some = done_before(before, found["documents"])
    print(f"{found['kept']:,} dialogues with {found['pictures']:,} images from {found['documents']:,} documents{some}.")
    if rules:
        print(f"Refused: {named(done.refused)}.")
    if found["documents"] and not found["kept"]:
        print(nothing_kept(done.run.folder))
    print("No model was asked." if connect is no_models else f"Asked: {spent(done.usages['writer'])}.")
    if "describer" in done.usages:
        print(f"Asked for descriptions: {spent(done.usages['describer'])}.")
    print(done.run.folder / "shards")
    return 0


def _models(args: argparse.Namespace, record: Path) -> tuple[Client, Client]:
    """The writer, and the model that sees pictures: the same one unless another is named."""
    writer = client_of(args, record)
    if not (args.describer_base_url or args.describer_model):
        return writer, writer
    other = argparse.Namespace(**vars(args))
    other.mllm = None
    other.endpoint, other.llm = args.describer_base_url or args.endpoint, args.describer_model or args.llm
    describer = client_of(other, record)
    describer.recording = writer.recording  # one file, one lock
    return writer, describer


dialogues = Command(add_dialogues, run_dialogues)


# ------------------------------------------------------------ data video


def add_video(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="video files, or folders of them at any depth")
    add_engine_options(parser, ("clips",), "clip.seconds=3", "videos", 4)
    add_workers(parser, "videos at once")
    add("--undescribed", action="store_true", help="keep pairs without a description, and ask no model for one")
    add_endpoint_options(parser)


def run_video(args: argparse.Namespace) -> int:
    check_workers(args)
    asked = bool(args.endpoint or args.replay or args.llm or args.mllm)
    if args.undescribed == asked:
        raise DuoGenError(
            "Give a vision-language model that describes the pairs (--endpoint URL --llm NAME, or --mllm FOLDER), or "
            "--undescribed to keep them without descriptions; one of the two."
        )
    from duogen_core.data.pairs.video.engine import VideoEngine
    from duogen_core.data.pairs.video.reading import check_installed
    from duogen_core.data.runs.log import kept_parts
    from duogen_core.data.runs.presets import load_preset

    check_installed()
    preset, folder = load_preset("video", args.preset, args.set), Path(args.out)
    connect = partial(client_of, plain(args), folder / "answers.jsonl") if asked else None
    parallel = max(args.parallel // args.workers, 1) if asked else 1
    engine = VideoEngine(preset, args.inputs, connect, parallel, uses_gpu=bool(args.mllm))
    for each in engine.inputs:
        if not each.only:
            check_outside(folder, each.root, "input")

    def count(entry: Mapping[str, Any]) -> dict[str, float]:
        kept, seconds = kept_parts(dict(entry), "clips"), entry.get("seconds", 0)
        return {"videos": 1, "clips": len(entry["clips"]), "kept": kept, "seconds": seconds}

    done = do_run(args, engine, folder, args.shard_videos, count, workers=args.workers)
    found, before, usage = done.found, done.before, done.usages.get("describer")
    figures = {name: found[name] for name in ("videos", "clips", "kept", "seconds")}
    figures |= {"videos_before": before["videos"], "elapsed": round(done.seconds, 2)}
    if write_json(args.json, {**figures, "usage": usage.to_json() if usage else None}):
        return 0
    if usage:
        print(f"{spent(usage)}.")
    now = found["seconds"] - before["seconds"]
    some = done_before(before["videos"], found["videos"])
    rate = f", {now / max(done.seconds, 1e-6):.1f} times real time" if now else ""
    minutes = f"{found['seconds'] / 60:,.1f} minutes of video"
    print(f"{found['kept']:,} pairs of {found['clips']:,} clips, {minutes}{some}{rate}:")
    if found["videos"] and not found["kept"]:
        print(nothing_kept(done.run.folder))
    print(done.run.folder / "shards")
    return 0


video = Command(add_video, run_video)


# ------------------------------------------------------------ data editing


def add_editing(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("layout", metavar="LAYOUT", choices=sorted(LAYOUTS), help=", ".join(sorted(LAYOUTS)))
    add("path", metavar="PATH", help="a .parquet, .arrow, .json or .jsonl file, or the set's folder")
    add_engine_options(parser, ("edits",), "picture.min_side=256", "samples", 100)
    add_workers(parser, "samples at once")
    add("--split", default="", metavar="NAME", help="which split of a folder that holds several; may be a pattern")
    add(
        "--inverse",
        action="store_true",
        help="the reverse edit as well, where the set has an instruction for it (hq-edit)",
    )
    add("--both-stages", action="store_true", help="do not mark the documents as alignment data: stage 1 takes them")
    add("--licence", default="", metavar="TEXT", help="kept with every document; default: what the set's page says")


def run_editing(args: argparse.Namespace) -> int:
    check_workers(args)
    if args.inverse and not LAYOUTS[args.layout].inverse:
        having = ", ".join(name for name, layout in LAYOUTS.items() if layout.inverse)
        raise DuoGenError(f"--inverse: the layout {args.layout} has no request for the reverse edit; {having} has.")
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise MissingPackage("Sets of edits", "pyarrow", "hf") from None
    from duogen_core.data.pairs.editing.engine import EditingEngine
    from duogen_core.data.runs.presets import load_preset

    preset, folder = load_preset("editing", args.preset, args.set), Path(args.out)
    options = {"inverse": args.inverse, "both_stages": args.both_stages, "licence": args.licence}
    engine = EditingEngine(args.layout, args.path, preset, args.split, **options)
    check_outside(folder, Path(args.path), "set")

    def count(entry: Mapping[str, Any]) -> dict[str, int]:
        return {"samples": 1, "kept": entry["kept"], "turns": entry["turns"]}

    done = do_run(args, engine, folder, args.shard_samples, count, workers=args.workers)
    found, before = done.found, done.before["samples"]
    figures = {name: found[name] for name in ("samples", "kept", "turns")}
    if write_json(args.json, {**figures, "samples_before": before, "elapsed": round(done.seconds, 2)}):
        return 0
    now, some = found["samples"] - before, done_before(before, found["samples"])
    rate = f", {now / max(done.seconds, 1e-6):.0f} a second" if now else ""
    print(f"{found['kept']:,} documents with {found['turns']:,} edits of {found['samples']:,} samples{some}{rate}:")
    if found["samples"] and not found["kept"]:
        print(nothing_kept(done.run.folder))
    print(done.run.folder / "shards")
    return 0


editing = Command(add_editing, run_editing)
