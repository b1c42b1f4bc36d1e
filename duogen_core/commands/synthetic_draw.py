"""data synthetic draw: the pictures of planned answers, by a painter, and the documents with them.

Out: a run of shards in DIR/draw: webdataset:DIR/draw/shards is what `data check` and `train` read, and `data stats`
counts DIR/draw.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from duogen_core.commands.run_progress import RunProgress
from duogen_core.commands.synthetic import part_of, preset_of, size_of
from duogen_core.commands.synthetic_make import add_make_options, make_documents
from duogen_core.commands.synthetic_model import (
    add_model_options,
    load_model,
    model_name,
    settings_of,
)
from duogen_core.errors import DuoGenError

if TYPE_CHECKING:
    from duogen_core.data.synthetic.painter import Painter
    from duogen_core.data.synthetic.requests import Preset

PAINTERS = ("duogen", "text-to-picture", "comfyui")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_make_options(parser, "draw")
    add = parser.add_argument
    about = "duogen: a DuoGen model, which looks at the earlier pictures (default); text-to-picture: one that gets the "
    about += "prompt alone; comfyui: a ComfyUI server"
    add("--painter", choices=PAINTERS, default="duogen", help=about)
    add("--server", default="http://127.0.0.1:8188", metavar="URL", help="comfyui: its address; default: %(default)s")
    about = "comfyui: an API-format workflow with ${prompt} in it; one more with ${earlier_1} for later pictures"
    add("--workflow", action="append", default=[], metavar="FILE", help=about)
    add("--timeout", type=float, default=600.0, metavar="SECONDS", help="comfyui: for one picture; default: 600")
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    from duogen_core.data.synthetic import drawing
    from duogen_core.data.synthetic.drawing import Drawing
    from duogen_core.data.synthetic.planning import read_plans

    preset, part = preset_of(args), part_of(args.part)
    folder = Path(args.folder)
    plans = list(read_plans(folder / "plans.jsonl"))
    out = Path(args.out) if args.out else folder / "draw"
    progress = RunProgress(args.quiet, "documents")
    with _painter(args, preset, progress) as painter:
        identity = {
            "plans": hashlib.sha256((folder / "plans.jsonl").read_bytes()).hexdigest()[:16],
            "painter": painter.identity(),
            **preset.part("picture"),
        }
        run = drawing.begin(out, len(plans), args.shard, identity)
        drawing = Drawing(painter, preset, out / "drawn")
        return make_documents(run, plans, drawing.document, drawing.forget, part, progress, args)


def _painter(args: argparse.Namespace, preset: Preset, progress: RunProgress) -> Painter:
    if args.painter == "comfyui":
        from duogen_core.data.synthetic.comfyui import Server
        from duogen_core.data.synthetic.comfyui_painter import ComfyPainter
        from duogen_core.data.synthetic.workflow import load_workflow

        if not args.timeout > 0:
            raise DuoGenError(f"--timeout is {args.timeout}; expected more than 0.")
        workflows = [load_workflow(Path(name)) for name in args.workflow]
        return ComfyPainter(Server(args.server, args.timeout), workflows, preset, size_of(args.size))
    if args.workflow:
        raise DuoGenError("--workflow is for --painter comfyui; give that, or leave it out.")
    from duogen_core.data.synthetic.painter import ConversationPainter, PromptPainter

    settings = settings_of(args)
    kind = ConversationPainter if args.painter == "duogen" else PromptPainter
    return kind(load_model(args, progress), settings, model_name(args))
