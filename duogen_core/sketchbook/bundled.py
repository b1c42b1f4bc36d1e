"""Trains the model that the pack brings from nothing, in one command: each part in its turn, and then the whole.

    python -m duogen_core train bundled --out runs/bundled              eleven hours or so on two CPU cores
    python -m duogen_core train bundled --out runs/small --share 0.1    a tenth of each part's steps

Two lines run side by side, each on half of the cores: the VAE and then its decoder; the language model with its tower.
Then stage 1 and stage 2, each as two processes that share its batches (one a GPU, where there are several: on two cores
1.5 times the pace of one process), the checkpoint in <out>/model, and its ControlNet. Every part is a training of its
own in <out>/<part> with the recipe of the same name (training/recipes), in a process of its own whose output goes to
<out>/<part>.log.
Ctrl-C stops it once the parts have written their checkpoints, a second one at once; the same command goes on from
there, and what is finished is left as it is.
part.name=value changes a setting of one part, as stage2.layers=4.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import torch

from duogen_core import interrupt
from duogen_core.errors import DuoGenError, unknown
from duogen_core.training.checkpoints import replaced
from duogen_core.training.configuration import find_config, read_file

EVERY = 60.0  # seconds between two lines that say how far the parts are
MODEL = "model"  # folder of the checkpoint, in <out>
PROGRAM = ("-m", "duogen_core")  # what Python runs, with a part's command behind it


@dataclass(frozen=True)
class Part:
    """A training. inputs: its settings that name another part's result, as {"mllm": "stage1/export"}. shared: several
    processes can share it."""

    name: str
    command: str
    recipe: str
    inputs: dict[str, str] = field(default_factory=dict)
    shared: bool = False


VAE = (
    Part("vae", "vae", "tiny-vae"),
    Part("vae-decoder", "vae", "tiny-vae-decoder", {"init": "vae/export"}),
)
LANGUAGE = Part("pretrain", "pretrain", "tiny-pretrain")
WRITING = Part("stage1", "stage1", "tiny-stage1", {"init": "pretrain/export"}, shared=True)
DRAWING = Part("stage2", "stage2", "tiny-stage2", {"vae": "vae-decoder/export", "mllm": "stage1/export"}, shared=True)
CONTROL = Part("controlnet", "controlnet", "tiny-controlnet", {"checkpoint": MODEL})
PARTS = {part.name: part for part in (*VAE, LANGUAGE, WRITING, DRAWING, CONTROL)}


@dataclass
class Line:
    """Parts that run one after another. process: of the one that runs now; none before the first, after the last."""

    parts: list[Part]
    cores: int
    process: subprocess.Popen | None = None

    @property
    def part(self) -> Part:
        return self.parts[0]


def command_of(part: Part, out: Path, share: float, settings: Sequence[str], cores: int = 1) -> list[str]:
    """The command line of a part that may use so many cores, as one would type it."""
    launched = ["--launch", "ddp"] if part.shared and cores > 1 and torch.cuda.device_count() != 1 else []
    given = [f"out={out / part.name}", *(f"{name}={out / place}" for name, place in part.inputs.items())]
    given.append(f"threads={max(1, cores // 2 if launched else cores)}")
    if share != 1:
        given += budget_of(part, share)
    own = [text.partition(".")[2] for text in settings if text.partition(".")[0] == part.name]
    return ["train", part.command, *launched, "--config", part.recipe, *given, *own]


def budget_of(part: Part, share: float) -> list[str]:
    """A share of the recipe's steps or minutes, as settings: of the part, and of the part within it (vision.steps)."""
    found = []

    def look(values: dict, prefix: str) -> None:
        for name, value in values.items():
            if isinstance(value, dict):
                look(value, f"{prefix}{name}.")
            elif name == "minutes" and value:
                found.append(f"{prefix}{name}={value * share:g}")
            elif name == "steps":
                found.append(f"{prefix}{name}={max(1, round(value * share))}")

    look(read_file(Path(find_config(part.recipe, part.command))), "")
    return found


def start(part: Part, out: Path, share: float, settings: Sequence[str], cores: int, log: TextIO) -> subprocess.Popen:
    words = command_of(part, out, share, settings, cores)
    print(f"{part.name}: python -m duogen_core {' '.join(words)}", flush=True)
    where = {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
    }
    return subprocess.Popen(
        [sys.executable, *PROGRAM, *words], stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **where},
        start_new_session=os.name == "posix",  # Ctrl-C is ours to pass on: a part that gets two stops at once
    )  # fmt: skip


def run_lines(lines: Sequence[Line], out: Path, share: float, settings: Sequence[str]) -> None:
    """Every line to its end, side by side. Raises DuoGenError where a part fails, once the others have stopped."""
    said = time.monotonic()
    with ExitStack() as logs:
        try:
            while any(line.parts for line in lines):
                for line in lines:
                    if line.parts and line.process is None:
                        log = logs.enter_context((out / f"{line.part.name}.log").open("a", encoding="utf-8"))
                        line.process = start(line.part, out, share, settings, line.cores, log)
                    elif line.parts and line.process.poll() is not None:
                        if line.process.returncode:
                            raise DuoGenError(failure(line.part, line.process.returncode, out))
                        print(f"{line.part.name}: finished", flush=True)
                        line.parts, line.process = line.parts[1:], None
                if time.monotonic() - said >= EVERY:
                    said = time.monotonic()
                    for line in lines:
                        if line.process is not None and (told := status(out / line.part.name)):
                            print(f"{line.part.name}: {told}", flush=True)
                time.sleep(0.2)
        finally:
            stop([line.process for line in lines if line.process is not None and line.process.poll() is None])


def stop(processes: Sequence[subprocess.Popen]) -> None:
    """Asks each to write its checkpoint and end, and waits; asked once more, they end at once."""
    for process in processes:
        process.terminate()
    try:
        for process in processes:
            process.wait()
    except KeyboardInterrupt:
        for process in processes:
            process.terminate()
        raise


def status(folder: Path) -> str:
    """The last line that a run has said of its progress."""
    try:
        return (folder / "STATUS").read_text("utf-8").strip()
    except OSError:
        return ""


def failure(part: Part, code: int, out: Path) -> str:
    log = out / f"{part.name}.log"
    last = [text for text in log.read_text("utf-8", "replace").splitlines() if text.strip()][-1:]
    why = last[0].removeprefix("Error: ") if last else f"exit code {code}"
    if code < 0:
        why = f"it was ended by signal {-code}, as happens when the machine has no memory left"
    return f"{part.name} did not finish: {why} ({log} has all that it said). The same command goes on from there."


def train_parts(out: Path, share: float, settings: Sequence[str]) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    half = max(1, cores // 2)
    run_lines([Line([*VAE], half), Line([LANGUAGE], half)], out, share, settings)
    run_lines([Line([WRITING, DRAWING], cores)], out, share, settings)
    assemble(out)
    run_lines([Line([CONTROL], cores)], out, share, settings)


def assemble(out: Path) -> None:
    from duogen_core.training import assemble as parts

    words = ["--vae", out / "vae-decoder", "--pretrain", out / "pretrain", "--stage1", out / "stage1"]
    words += ["--stage2", out / "stage2", "--out", out / MODEL, "--steps", "8", "--guidance", "1.0"]  # docs/ablation.md
    words += ["--half", "dit", "vae"]
    parser = argparse.ArgumentParser()
    parts.add_arguments(parser)
    parts.run(parser.parse_args(list(map(str, words))))


def add_control(out: Path) -> None:
    """The ControlNet into the checkpoint's folder, its weights in half precision like the DiT's."""
    from duogen_core.dit.controlnet import PackedControlNet

    with replaced(out / MODEL / "controlnet") as new:
        PackedControlNet.from_pretrained(out / CONTROL.name / "export").half().save_pretrained(new)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("settings", nargs="*", metavar="PART.NAME=VALUE", help="a setting of one part")
    parser.add_argument("--out", type=Path, default=Path("runs/bundled"), metavar="DIR",
                        help="folder of all runs and of the model; default: %(default)s")  # fmt: skip
    parser.add_argument("--share", type=float, default=1.0, metavar="X",
                        help="of the recipes' steps, for a shorter run; default: all")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    if not 0 < args.share <= 100:
        raise DuoGenError(f"--share is {args.share:g}; expected a number above 0, such as 0.1 for a tenth of the time.")
    for text in args.settings:
        part, dot, rest = text.partition(".")
        if part not in PARTS or not dot or "=" not in rest:
            wanted = f"{text!r} is no setting of a part; expected {part}.NAME=VALUE."
            raise DuoGenError(wanted if part in PARTS else unknown("The part", part, PARTS))
    args.out.mkdir(parents=True, exist_ok=True)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        train_parts(args.out, args.share, args.settings)
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from there.")
        return interrupt.EXIT_CODE
    finally:
        signal.signal(signal.SIGTERM, before)
    add_control(args.out)
    print(f"Finished: {args.out / MODEL}")
    return 0
