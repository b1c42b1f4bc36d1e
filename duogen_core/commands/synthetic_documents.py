"""data synthetic draw and answer: the Documents, as a run of shards.

    draw     plans -> DIR/draw: the pictures of planned answers, by a painter (an own model or a ComfyUI server)
    answer   requests -> DIR/answer: a DuoGen model writes and draws in one go

webdataset:DIR/draw/shards is what `data check` and `train` read, and `data stats` counts DIR/draw.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duogen_core.commands.data_engines import do_run, named
from duogen_core.commands.drawing_options import (
    add_drawing_options,
    drawing_settings,
    load_drawing_model,
    model_name,
    size_of,
)
from duogen_core.commands.run_options import (
    Command,
    RunProgress,
    add_workers,
    check_workers,
    done_before,
    nothing_kept,
    plain,
    write_json,
)
from duogen_core.commands.synthetic import add_run_options, check_count, taxonomy_of
from duogen_core.errors import DuoGenError

if TYPE_CHECKING:
    from duogen_core.data.runs import Engine
    from duogen_core.data.runs.presets import Preset
    from duogen_core.data.synthetic.painter import Painter

PAINTERS = ("duogen", "text-to-picture", "comfyui")


def _add_options(parser: argparse.ArgumentParser, name: str) -> None:
    """The options of both commands, without those of the model."""
    add_run_options(parser)
    add = parser.add_argument
    add("--out", metavar="DIR", help=f"the run's folder; default: DIR/{name}")
    add("--shard", type=int, default=16, metavar="N", help="documents per shard; default: 16")
    add("--part", default="1/1", metavar="K/N", help="only every Nth shard from the Kth on: one of several machines")
    add("--give-up", type=int, default=3, metavar="N", help="stop when so many documents in a row fail; default: 3")
    add("--size", metavar="WxH", help="size of the images; default: the model's or the workflow's own")
    add_workers(parser, "with --backend ray: processes, each with a model of its own", 1)
    parser.set_defaults(locks=lambda args: [_own_part(Path(args.out or Path(args.folder, name)), args.part)])


def _own_part(out: Path, part: str) -> Path:
    """What a process has for itself: the run's folder, or its part where several share the folder."""
    return out if part == "1/1" else out / f"part {part.replace('/', ' of ')}"


def _make(
    args: argparse.Namespace, engine: Engine, out: Path, part: tuple[int, int], progress: RunProgress | None = None
) -> int:
    from duogen_core.data.runs.log import kept_parts, rule_of

    def count(entry: Mapping[str, Any]) -> dict[str, int]:
        return {"all": 1, "kept": int(not rule_of(dict(entry))), "pictures": kept_parts(dict(entry), "pictures")}

    workers = args.workers if args.backend == "ray" else 1  # here there is one model, which draws one at a time
    how = {"workers": workers, "part": part, "give_up": args.give_up}
    done = do_run(args, engine, out, args.shard, count, progress, **how)
    found, before = done.found, done.before["all"]
    figures = {"documents": found["kept"], "pictures": found["pictures"], "refused": dict(done.refused.most_common())}
    if write_json(args.json, {**figures, "seconds": round(done.seconds, 1), "in_all": done.total}):
        return 0
    some = done_before(before, done.total)
    took = f" in {done.seconds:,.0f} s" if before < done.total else ""
    refused = named(done.refused) or "none"
    print(f"{found['kept']:,} documents with {found['pictures']:,} pictures{some}{took}; refused: {refused}:")
    if done.total and not found["kept"]:
        print(nothing_kept(done.run.folder))
    print(done.run.folder / "shards")
    return 0


def _checked(args: argparse.Namespace) -> tuple[Preset, tuple[int, int]]:
    """The preset, and which part of the shards is this process's."""
    from duogen_core.data.runs.presets import load_preset

    check_workers(args)
    match = re.fullmatch(r"(\d{1,4})/(\d{1,4})", args.part.strip())
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise DuoGenError(f"--part is {args.part!r}; expected K/N, such as 2/8 for the second of eight machines.")
    if args.give_up < 1:
        raise DuoGenError(f"--give-up is {args.give_up}; expected at least 1.")
    return load_preset("synthetic", args.preset or "", args.set), (int(match[1]), int(match[2]))


# ------------------------------------------------------------ draw


def add_draw(parser: argparse.ArgumentParser) -> None:
    _add_options(parser, "draw")
    add = parser.add_argument
    about = "duogen: a DuoGen model, which looks at the earlier images (default); text-to-picture: one that gets the "
    about += "prompt alone; comfyui: a ComfyUI server"
    add("--painter", choices=PAINTERS, default="duogen", help=about)
    add("--server", default="http://127.0.0.1:8188", metavar="URL", help="comfyui: its address; default: %(default)s")
    about = "comfyui: an API-format workflow with ${prompt} in it; one more with ${earlier_1} for later images"
    add("--workflow", action="append", default=[], metavar="FILE", help=about)
    add("--timeout", type=float, default=600.0, metavar="SECONDS", help="comfyui: for one image; default: 600")
    add_drawing_options(parser)


def run_draw(args: argparse.Namespace) -> int:
    from duogen_core.data.synthetic.drawing import DrawEngine

    preset, part = _checked(args)
    out = Path(args.out) if args.out else Path(args.folder) / "draw"
    paint, plans = partial(_painter, plain(args), preset), Path(args.folder) / "plans.jsonl"
    engine = DrawEngine(plans, preset, paint, out / "drawn", uses_gpu=args.painter != "comfyui")
    with engine:
        return _make(args, engine, out, part)


def _painter(args: argparse.Namespace, preset: Preset) -> Painter:
    if args.painter == "comfyui":
        from duogen_core.data.synthetic.comfyui import Server
        from duogen_core.data.synthetic.comfyui_painter import ComfyPainter, load_workflow

        if not args.timeout > 0:
            raise DuoGenError(f"--timeout is {args.timeout}; expected more than 0.")
        workflows = [load_workflow(Path(name)) for name in args.workflow]
        return ComfyPainter(Server(args.server, args.timeout), workflows, preset, size_of(args.size))
    if args.workflow:
        raise DuoGenError("--workflow is for --painter comfyui; give that, or leave it out.")
    from duogen_core.data.synthetic.painter import ConversationPainter, PromptPainter

    settings = drawing_settings(args)
    kind = ConversationPainter if args.painter == "duogen" else PromptPainter
    return kind(load_drawing_model(args), settings, model_name(args))


draw = Command(add_draw, run_draw)


# ------------------------------------------------------------ answer


def add_answer(parser: argparse.ArgumentParser) -> None:
    _add_options(parser, "answer")
    add = parser.add_argument
    add("--limit", type=int, metavar="N", help="only N requests, spread over all of them")
    add("--max-images", type=int, default=8, metavar="N", help="maximum number of images in an answer; default: 8")
    add("--max-tokens", type=int, default=1024, metavar="N", help="maximum number of text tokens; default: 1024")
    add(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="0: always the likeliest token; above 0: a random one; default: 0",
    )
    add_drawing_options(parser)


def run_answer(args: argparse.Namespace) -> int:
    check_count(args, "limit")
    from duogen_core.data.synthetic.drawing import AnswerEngine
    from duogen_core.data.synthetic.requests import requests_of, spread

    preset, part = _checked(args)
    requests, seeds = requests_of(Path(args.folder), taxonomy_of(args))
    progress = RunProgress(args.quiet, "documents")
    if seeds:
        progress.line(f"{args.folder} has no requests.jsonl; the taxonomy's seeds are answered.")
    # Nothing of the model's own (generation_config.json): a run's folder names the settings it was made with.
    plainly = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    settings = replace(
        drawing_settings(args), max_images=args.max_images, max_new_tokens=args.max_tokens,
        temperature=args.temperature, **plainly,
    )  # fmt: skip
    load = partial(load_drawing_model, plain(args))
    out = Path(args.out) if args.out else Path(args.folder) / "answer"
    with AnswerEngine(spread(requests, args.limit), preset, load, settings, model_name(args)) as engine:
        return _make(args, engine, out, part, progress)


answer = Command(add_answer, run_answer)
