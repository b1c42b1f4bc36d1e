"""The model that `draw` and `answer` of `data synthetic` use: its options, its settings, its loading and its name."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from duogen_core.commands.run_progress import RunProgress
from duogen_core.commands.synthetic import size_of
from duogen_core.errors import DuoGenError

if TYPE_CHECKING:
    from duogen_core.checkpoint import Components
    from duogen_core.pipeline import Settings

PARTS = ("mllm", "dit", "vae")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("model").add_argument
    add("--model", metavar="NAME_OR_PATH", help="a DuoGen model; default: the bundled one")
    add("--mllm", metavar="PATH", help="in place of --model, published files: the language model, …")
    add("--dit", metavar="PATH", help="… Cosmos-Predict2.5, …")
    add("--vae", metavar="PATH", help="… and the Wan 2.1 VAE")
    add("--steps", type=int, metavar="N", help="sampling steps a picture; default: the model's own")
    add("--guidance", type=float, metavar="G", help="how closely a picture follows its text; default: the model's own")


def settings_of(args: argparse.Namespace) -> Settings:
    from duogen_core.pipeline import Settings

    return Settings(seed=args.seed, steps=args.steps, guidance=args.guidance, size=size_of(args.size))


def model_name(args: argparse.Namespace) -> str:
    """What documents say of the model: a name without folders."""
    from duogen_core.checkpoint import DEFAULT_MODEL

    if args.mllm:
        return " + ".join(Path(getattr(args, name)).name for name in PARTS)
    return Path(args.model).name if args.model else DEFAULT_MODEL


def load_model(args: argparse.Namespace, progress: RunProgress) -> Components:
    given = [name for name in PARTS if getattr(args, name)]
    if given and (args.model or len(given) < len(PARTS)):
        raise DuoGenError("A model is --model, or all of --mllm, --dit and --vae; give one of the two.")
    progress.line(f"Loading {model_name(args)} …")
    if given:
        from duogen_core.checkpoint import load_parts

        return load_parts(args.mllm, args.dit, args.vae)
    from duogen_core.checkpoint import DEFAULT_MODEL, load_checkpoint

    return load_checkpoint(args.model or DEFAULT_MODEL)
