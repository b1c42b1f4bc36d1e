"""generate's options for images that are drawn in given outlines: `controls` for the pipeline.

--control FILE            the outlines, white on black: the first for the first image of the answer, and so on
--control-trace           the files are ordinary images, whose outlines are taken first
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from duogen_core.checkpoint import DEFAULT_MODEL, resolve_model
from duogen_core.errors import DuoGenError

if TYPE_CHECKING:
    from duogen_core.checkpoint import Components
    from duogen_core.picture_sampling import Control

FREE = "-"  # in the place of a file


def add_control_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--control",
        action="append",
        default=[],
        metavar="FILE",
        help="draw an image in these outlines, white lines on black; repeated, the first is for the first image of the "
        "answer, the second for the second, and so on; - leaves one to be drawn freely, as are those after the last",
    )
    add(
        "--control-trace",
        action="store_true",
        help="the files of --control are ordinary images: take their outlines first",
    )
    add(
        "--control-strength",
        type=float,
        metavar="S",
        help="how much --control counts: 0 not at all, 1 as it was trained; default: 1",
    )
    add(
        "--controlnet",
        metavar="DIR",
        help="the ControlNet for --control, as train controlnet writes it; default: the model's own",
    )


def check_control_options(args: argparse.Namespace) -> None:
    """Refuses what does not go together, before anything slow begins."""
    if not args.control:
        given = {
            "--control-trace": args.control_trace,
            "--control-strength": args.control_strength is not None,
            "--controlnet": args.controlnet is not None,
        }
        lonely = next((name for name, value in given.items() if value), None)
        if lonely:
            raise DuoGenError(f"{lonely} is for images drawn in outlines; give their file with --control.")
        return
    if args.requests is not None:
        raise DuoGenError("--control is for the images of one answer; leave out --requests.")
    if args.painter:
        raise DuoGenError("--control is for DuoGen's own diffusion transformer; leave out --painter.")
    if args.control_strength is not None and not 0 <= args.control_strength <= 10:
        raise DuoGenError(f"--control-strength must be between 0 and 10, not {args.control_strength:g}.")
    _folder(args)


def open_controls(args: argparse.Namespace, components: Components | None) -> list[Control | None]:
    """Reads the files and the ControlNet. components: None where nothing is drawn here."""
    if not args.control or components is None:
        return []
    from duogen_core.dit.controlnet import PackedControlNet
    from duogen_core.document import Picture
    from duogen_core.outlines import outlines
    from duogen_core.picture_sampling import Control

    pictures = [None if name == FREE else Picture.from_file(name) for name in args.control]
    if args.control_trace:
        pictures = [picture and Picture(outlines(picture.pixels)) for picture in pictures]
    net = PackedControlNet.from_pretrained(_folder(args)).eval()
    net.check_fits(components.dit)
    strength = 1.0 if args.control_strength is None else args.control_strength
    return [picture and Control(net, picture, strength) for picture in pictures]


def _folder(args: argparse.Namespace) -> Path:
    if args.controlnet is not None:
        return Path(args.controlnet)
    if args.mllm:
        raise DuoGenError("Published files bring no ControlNet of this kind; name one with --controlnet.")
    folder = resolve_model(args.model or DEFAULT_MODEL) / "controlnet"
    if not (folder / "config.json").is_file():
        raise DuoGenError(f"The model {args.model or DEFAULT_MODEL} has no ControlNet; name one with --controlnet.")
    return folder
