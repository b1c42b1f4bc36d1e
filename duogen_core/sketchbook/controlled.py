"""evaluate outlines: the model draws in given outlines, and without them; the exact checker says how often it is right.

A case is a scene of one to three shapes (tasks/outlined.py): the request names kinds and colours, the outlines alone
tell sizes and places. Right is an image with exactly these shapes, colours, sizes and cells on this background, and
nothing else. Cases come from Random("outlines-<seed>-<number>"), of which no training draws.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from duogen_core import interrupt
from duogen_core.checkpoint import DEFAULT_MODEL
from duogen_core.errors import DuoGenError
from duogen_core.evaluation import report as reports
from duogen_core.outlines import outlines
from duogen_core.sketchbook.checker import read
from duogen_core.sketchbook.drawing import draw_scene
from duogen_core.sketchbook.scene import Scene, scene_from_dict
from duogen_core.sketchbook.tasks import outlined
from duogen_core.sketchbook.tasks.common import Case

CHECKS = ("outlines.right", "without.right")


def outlined_case(seed: int, number: int) -> tuple[Case, Scene, np.ndarray]:
    """(the case, its scene, its outlines)"""
    case = outlined.sample(Random(f"outlines-{seed}-{number}"))
    scene = scene_from_dict(case.truth["scene"])
    return case, scene, outlines(draw_scene(scene))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", required=True, metavar="FILE", help="the JSON report to write, for example outlines.json")
    add("--samples", type=int, default=50, metavar="N", help="number of cases; default: %(default)s")
    add("--seed", type=int, default=0, metavar="N", help="which cases, and the noise of the images; default: 0")
    add(
        "--model",
        default=DEFAULT_MODEL,
        metavar="NAME_OR_PATH",
        help="the model to measure: a name or a folder; default: %(default)s",
    )
    add("--controlnet", metavar="DIR", help="the ControlNet to measure; default: the model's own")
    add("--threads", type=int, default=1, metavar="N", help="CPU threads; default: 1")
    add("--json", action="store_true", help="print the figures as JSON instead of a table")
    parser.set_defaults(locks=lambda args: [args.out] if Path(args.out).absolute().parent.is_dir() else [])


def run(args: argparse.Namespace) -> int:
    interrupt.at_once()
    for name in ("samples", "threads"):
        if getattr(args, name) < 1:
            raise DuoGenError(f"--{name} must be at least 1, not {getattr(args, name)}.")
    target = reports.checked_target(args.out)
    import torch

    from duogen_core.checkpoint import load_checkpoint, resolve_model
    from duogen_core.dit.controlnet import PackedControlNet
    from duogen_core.document import Picture
    from duogen_core.picture_sampling import Control
    from duogen_core.pipeline import generate
    from duogen_core.settings import Settings

    model = resolve_model(args.model)
    net = PackedControlNet.from_pretrained(args.controlnet or model / "controlnet").eval()
    torch.set_num_threads(args.threads)
    components = load_checkpoint(model)
    net.check_fits(components.dit)
    interrupt.raising()
    records: list[dict[str, Any]] = []
    for number in range(args.samples):
        case, scene, lines = outlined_case(args.seed, number)
        settings = Settings(seed=args.seed * 100_000 + number * 10, max_images=1)
        right = {}
        for check, controls in zip(CHECKS, ([Control(net, Picture(lines))], []), strict=True):
            answer = generate(components, case.prompt, settings, controls=controls)
            drawn = [read(picture.pixels) for picture in answer.pictures]
            right[check] = float(bool(drawn) and drawn[0].shows(scene))
        said = answer.last_turn.text
        records.append({"request": case.prompt.last_turn.text, "answer": said, "seed": settings.seed, "checks": right})
        print(f"{number + 1}/{args.samples} {right}", file=sys.stderr, flush=True)
    header = {"format": reports.FORMAT, "version": 1, "benchmark": "outlines", "model": components.name}
    result = {**header, "samples": args.samples, "seed": args.seed}
    result |= {**reports.figures([each["checks"] for each in records], CHECKS), "extra": {}, "cases": records}
    reports.write(result, target)
    if args.json:
        print(json.dumps({key: value for key, value in result.items() if key != "cases"} | {"report": str(target)}))
    else:
        print(reports.table(result))
        print(target)
    return 0
