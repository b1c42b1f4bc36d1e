"""bench loop, dit, mllm and connector: measures this pack against the libraries alone, on the same weights.

What the other side is: duogen_core/bench/reference.py. Without --model a random model of middle size is made in code.
Prints a table, or JSON with --json; --out DIR keeps both figures and plot. Ctrl-C keeps what was measured: the first
one stops between two calls, the second at once. Exit codes: 2 where the two sides do not compute the same.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duogen_core import interrupt
from duogen_core.commands.progress import StatusLine
from duogen_core.device_options import add_device_options, placement_of
from duogen_core.errors import DuoGenError

if TYPE_CHECKING:
    import torch

    from duogen_core.bench.measure import Report
    from duogen_core.checkpoint import Components

MIDDLE = "a random one of middle size"


# ---------------------------------------------------------------- options


def _shared(parser: argparse.ArgumentParser, repeat: int, model: str = MIDDLE) -> None:
    add = parser.add_argument
    add("--model", metavar="NAME_OR_PATH", help=f"the DuoGen model to measure; default: {model}")
    add("--repeat", type=int, default=repeat, metavar="N", help="rounds that are timed; default: %(default)s")
    add(
        "--clock",
        choices=("wall", "processor"),
        default="wall",
        help="wall: seconds as they pass; processor: those of one thread on the CPU, for a busy machine; default: wall",
    )
    add("--out", metavar="DIR", help="write bench_NAME.json and a plot of seconds and memory, bench_NAME.png, there")
    add("--json", action="store_true", help="print the report as JSON instead of a table")
    add("--quiet", action="store_true", help="show no progress on stderr")
    add_device_options(parser, offload=False)


def _attention(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--attention",
        choices=("full", "frame_causal"),
        help=f"attention between images of the random model; default: {default}",
    )


def _drawing(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--steps", type=int, default=4, metavar="N", help="sampling steps of each image; default: %(default)s")
    add("--size", default="256x256", metavar="WxH", help="size of the images; default: %(default)s")


def _between(args: argparse.Namespace, **ranges: tuple[int, int]) -> None:
    for name, (low, high) in ranges.items():
        value = getattr(args, name)
        if not low <= value <= high:
            raise DuoGenError(f"--{name.replace('_', '-')} is {value}; expected {low} to {high}.")


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{2,5})x(\d{2,5})", text)
    if not match or any(int(side) % 16 for side in match.groups()):
        raise DuoGenError(f"--size is {text!r}; expected WIDTHxHEIGHT in multiples of 16, such as 256x256.")
    return int(match[1]), int(match[2])


# ---------------------------------------------------------------- the four benchmarks


class loop:
    """The whole loop, image by image."""

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--images", type=int, default=10, metavar="N", help="most images of the answer; default: 10"
        )
        parser.add_argument("--request", metavar="TEXT", help="what is asked, for --model; default: to draw a house")
        _drawing(parser)
        _attention(parser, "frame_causal")
        _shared(parser, 1)

    @staticmethod
    def run(args: argparse.Namespace) -> int:
        _between(args, images=(1, 100), steps=(1, 1000), repeat=(1, 100))
        size = _size(args.size)
        with Run(args) as run:
            from duogen_core.bench.loop import run_loop
            from duogen_core.bench.models import REQUEST

            components = run.components(args.attention or "frame_causal", size)
            return run.finish(
                lambda: run_loop(
                    components, images=args.images, steps=args.steps, size=size, repeat=args.repeat,
                    device=components.mllm.device, request=args.request or REQUEST, tell=run.tell,
                    stopped=interrupt.requested,
                )
            )  # fmt: skip


class dit:
    """The steps of one image, after any number of earlier ones."""

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("--references", type=int, nargs="+", default=[0, 4, 9], metavar="N", help="earlier images; default: 0 4 9")
        add("--text-tokens", type=int, default=512, metavar="N", help="tokens of the conversation; default: 512")
        _drawing(parser)
        _attention(parser, "full")
        _shared(parser, 3)

    @staticmethod
    def run(args: argparse.Namespace) -> int:
        _between(args, steps=(1, 1000), repeat=(1, 100), text_tokens=(1, 100_000))
        if any(not 0 <= count <= 100 for count in args.references):
            raise DuoGenError(f"--references is {args.references}; expected numbers of 0 to 100.")
        size = _size(args.size)
        with Run(args) as run:
            from duogen_core.bench.parts import run_dit

            components = run.dit(args.attention or "full")
            return run.finish(
                lambda: run_dit(
                    components, references=sorted(set(args.references)), text_tokens=args.text_tokens,
                    steps=args.steps, size=size, repeat=args.repeat, tell=run.tell, stopped=interrupt.requested,
                )
            )  # fmt: skip


class mllm:
    """Writing."""

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("--context", type=int, default=1000, metavar="N", help="tokens read before writing; default: %(default)s")
        add("--tokens", type=int, default=64, metavar="N", help="tokens written; default: %(default)s")
        add(
            "--temperature",
            type=float,
            default=0.7,
            metavar="T",
            help="measured besides greedy choice; default: %(default)s",
        )
        _shared(parser, 5, "a random one with the vocabulary of Qwen2.5")

    @staticmethod
    def run(args: argparse.Namespace) -> int:
        _between(args, context=(1, 100_000), tokens=(2, 10_000), repeat=(1, 100))
        if not 0 < args.temperature <= 10:
            raise DuoGenError(f"--temperature is {args.temperature:g}; expected a number above 0, at most 10.")
        with Run(args) as run:
            from duogen_core.bench.parts import run_mllm

            model, states = run.writing()
            return run.finish(
                lambda: run_mllm(
                    model, states, context=args.context, tokens=args.tokens, temperature=args.temperature,
                    repeat=args.repeat, known=args.model is None, tell=run.tell, stopped=interrupt.requested,
                )
            )  # fmt: skip


class connector:
    """Hidden states to the DiT's text condition."""

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--tokens", type=int, default=4000, metavar="N", help="tokens read; default: %(default)s")
        _shared(parser, 5, "a random connector of the paper's size, 28 layers of 3584 to 1024")

    @staticmethod
    def run(args: argparse.Namespace) -> int:
        _between(args, tokens=(1, 1_000_000), repeat=(1, 100))
        with Run(args) as run:
            from duogen_core.bench.parts import run_connector

            part, device, dtype = run.connector()
            return run.finish(
                lambda: run_connector(
                    part, tokens=args.tokens, repeat=args.repeat, device=device, dtype=dtype, tell=run.tell,
                    stopped=interrupt.requested,
                )
            )  # fmt: skip


# ---------------------------------------------------------------- what all of them do


@dataclass
class Run:
    """Loads or makes what is measured, shows progress, and prints and keeps the report."""

    args: argparse.Namespace

    def __enter__(self) -> Run:
        interrupt.at_once("Stopped; nothing was measured.")
        self.status, self.placement = StatusLine(self.args.quiet), placement_of(self.args)
        if self.args.clock == "processor":
            import torch

            from duogen_core.devices import choose_device

            if choose_device(self.placement.device).type != "cpu":
                raise DuoGenError("--clock processor is for the CPU; leave it out, or give --device cpu.")
            torch.set_num_threads(1)  # several would count their waiting for each other
        from duogen_core.bench.measure import Clock

        Clock.kind = self.args.clock
        if self.args.out is not None:
            from duogen_core.bench.report import figure_class

            if not self.args.out.strip():
                raise DuoGenError("--out has no name; give the folder to write the report to.")
            figure_class()  # an extra that is missing is told before minutes of work
        return self

    def __exit__(self, *_: object) -> None:
        self.status.end()

    def tell(self, what: str, share: float) -> None:
        if self.status.due(last=self.status.live):
            self.status.show(f"{what} ({share:.0%})" if not self.status.live else what, share)

    def finish(self, measure: Callable[[], Report]) -> int:
        from duogen_core.bench.report import lines, save

        interrupt.finish()
        report = measure()
        self.status.end()
        if self.args.out is not None:
            save(report, Path(self.args.out))
        print(json.dumps(report.to_json(), indent=2) if self.args.json else "\n".join(lines(report)), flush=True)
        return interrupt.EXIT_CODE if report.stopped else 0

    # ------------------------------------------------ what is measured

    def load(self) -> Components:
        from duogen_core.checkpoint import check_checkpoint, resolve_model
        from duogen_core.placement import load

        check_checkpoint(resolve_model(self.args.model))
        self.status.line(f"Loading {self.args.model} …")
        return load(self.args.model, self.placement).to(self.placement.device, self.placement.dtype)

    def components(self, attention: str, size: tuple[int, int]) -> Components:
        if self.args.model:
            self._no_attention()
            return self.load()
        from dataclasses import replace

        from duogen_core.bench.models import MIDDLE as SIZES
        from duogen_core.bench.models import random_components

        self.status.line("Making a random model …")
        made = random_components(replace(SIZES, picture=max(size)), attention)
        return made.to(self.placement.device, self.placement.dtype)

    def dit(self, attention: str) -> Any:
        if self.args.model:
            self._no_attention()
            return self.load().dit
        from duogen_core.bench.models import MIDDLE as SIZES
        from duogen_core.bench.models import random_dit

        return self._placed(random_dit(SIZES, attention))

    def writing(self) -> tuple[Any, Any]:
        if self.args.model:
            components = self.load()
            return components.mllm, components.connector
        from duogen_core.bench.models import WRITING, random_mllm
        from duogen_core.connector import Connector, ConnectorConfig

        self.status.line("Making a random model …")
        made = random_mllm(WRITING, draws=False)
        self._placed(made.model)
        made.device = made.model.lm_head.weight.device
        sizes = ConnectorConfig(WRITING.layers, WRITING.hidden, WRITING.text_width)
        return made, self._placed(Connector(sizes).eval())

    def connector(self) -> tuple[Any, torch.device, torch.dtype]:
        from duogen_core.bench.models import PAPER_CONNECTOR
        from duogen_core.connector import Connector

        part = self.load().connector if self.args.model else self._placed(Connector(PAPER_CONNECTOR).eval())
        return part, part.proj.weight.device, part.proj.weight.dtype

    def _placed(self, module: Any) -> Any:
        from duogen_core.devices import choose_device, choose_dtype, move, stored_dtype

        device = choose_device(self.placement.device)
        return move(module, device, choose_dtype(self.placement.dtype, device, *stored_dtype(module)))

    def _no_attention(self) -> None:
        if self.args.attention:
            raise DuoGenError("--attention is for the random model; in --model's the weights decide. Leave out one.")
