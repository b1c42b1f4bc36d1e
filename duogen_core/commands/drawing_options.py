"""Options of commands that run a model over many requests: which one, how it draws, and where.

add_drawing_options(parser); load_drawing_model(args), drawing_settings(args), model_name(args), drawing_identity(args)
"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duogen_core.commands.run_options import RunProgress
from duogen_core.device_options import add_device_options, placement_of
from duogen_core.errors import DuoGenError

if TYPE_CHECKING:
    from duogen_core.checkpoint import Components
    from duogen_core.settings import Settings

PARTS = ("mllm", "dit", "vae")


def add_drawing_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("model").add_argument
    add("--model", metavar="NAME_OR_PATH", help="a DuoGen model; default: the bundled one")
    add("--mllm", metavar="PATH", help="in place of --model, published files: the language model, …")
    add("--dit", metavar="PATH", help="… Cosmos-Predict2.5, …")
    add("--vae", metavar="PATH", help="… and the Wan 2.1 VAE")
    add("--steps", type=int, metavar="N", help="sampling steps per image; default: the model's own")
    add("--guidance", type=float, metavar="G", help="how closely an image follows its text; default: the model's own")
    add_device_options(parser)


def size_of(text: str | None) -> tuple[int, int] | None:
    """Returns (width, height); None for the model's own."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{2,5})[xX×](\d{2,5})", text.strip())
    if not match:
        raise DuoGenError(f"--size is {text!r}; expected WIDTHxHEIGHT, such as 1024x768.")
    return int(match[1]), int(match[2])


def drawing_settings(args: argparse.Namespace) -> Settings:
    from duogen_core.settings import Settings

    return Settings(seed=args.seed, steps=args.steps, guidance=args.guidance, size=size_of(args.size))


def model_name(args: argparse.Namespace) -> str:
    """What documents say of the model: a name without folders."""
    from duogen_core.checkpoint import DEFAULT_MODEL

    given = [getattr(args, name) for name in PARTS if getattr(args, name)]
    return " + ".join(map(plain_name, given)) or plain_name(args.model or DEFAULT_MODEL)


def plain_name(path: str) -> str:
    """The last name of a path, of "." and ".." as well."""
    return Path(os.path.abspath(path)).name or "model"


def drawing_identity(args: argparse.Namespace) -> dict[str, Any]:
    """What pictures depend on besides the name of the model and `drawing_settings`: its weights, and the precision."""
    from duogen_core.checkpoint import DEFAULT_MODEL, resolve_model
    from duogen_core.data.runs.folder import weights_digest

    check_parts(args)
    given = [Path(getattr(args, name)) for name in PARTS if getattr(args, name)]
    places = given or [resolve_model(args.model or DEFAULT_MODEL)]
    return {"dtype": args.dtype, "weights": weights_digest(*(place for place in places if place.exists()))}


def check_parts(args: argparse.Namespace) -> None:
    given = [name for name in PARTS if getattr(args, name)]
    if given and (args.model or len(given) < len(PARTS)):
        raise DuoGenError("A model is --model, or all of --mllm, --dit and --vae; give one of the two.")


def load_drawing_model(args: argparse.Namespace) -> Components:
    check_parts(args)
    from duogen_core.devices import choose_device
    from duogen_core.placement import load_placed, place

    placement, progress = placement_of(args), RunProgress(args.quiet, "")
    choose_device(placement.device)  # one that is not there is told before minutes of loading
    progress.line(f"Loading {model_name(args)} …")
    if args.mllm:
        from duogen_core.checkpoint import load_parts

        return place(load_parts(args.mllm, args.dit, args.vae), placement, None, progress.line)
    from duogen_core.checkpoint import DEFAULT_MODEL

    return load_placed(args.model or DEFAULT_MODEL, placement, progress.line)
