"""The options --device, --dtype, --offload and --compile of every command that runs a model; and their values.

Without torch, as `--help` must answer at once: devices.py says what there is, placement.py does what is asked.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from duogen_core.errors import DuoGenError

DTYPES = ("auto", "bf16", "fp16", "fp32")
OFFLOAD = ("auto", "off", "model", "layers")


@dataclass(frozen=True)
class Placement:
    """Where a model computes and in what. device: a name of torch, or auto."""

    device: str = "auto"
    dtype: str = "auto"
    offload: str = "auto"
    compile: bool = False

    def __post_init__(self) -> None:
        for name, known in (("dtype", DTYPES), ("offload", OFFLOAD)):
            value = getattr(self, name)
            if value not in known:
                raise DuoGenError(f"The {name} is {value!r}; expected {', '.join(known[:-1])} or {known[-1]}.")


DEFAULT = Placement()


def add_device_options(parser: argparse.ArgumentParser, *, offload: bool = True) -> None:
    """offload=False: for commands that need the whole model on one device."""
    add = parser.add_argument_group("device").add_argument
    add(
        "--device",
        default="auto",
        metavar="NAME",
        help="where to compute: cuda, cuda:1, mps or cpu; default: auto, the graphics card if there is one",
    )
    add(
        "--dtype",
        default="auto",
        choices=DTYPES,
        help="precision; default: auto, that of the files, but bf16 on a card for large models in float32",
    )
    if not offload:
        return
    add(
        "--offload",
        default="auto",
        choices=OFFLOAD,
        help="where a card's memory is short, have on it one part at a time (model) or one layer (layers, slow); "
        "default: auto, as much as is needed",
    )
    add(
        "--compile",
        action="store_true",
        help="compile what the model repeats (torch.compile): the first images take minutes longer, the others less",
    )


def placement_of(args: argparse.Namespace) -> Placement:
    return Placement(args.device, args.dtype, getattr(args, "offload", "off"), getattr(args, "compile", False))
