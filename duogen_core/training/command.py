"""What the commands `train vae | pretrain | stage1 | stage2` share: their settings and how they are given.

python -m duogen_core train stage2 --config my.yaml out=runs/stage2 minutes=90 families.draw=0.5
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent
from typing import TypeVar

import torch

from duogen_core.training.config import ConfigError, load_config, plain, to_yaml
from duogen_core.training.loop import Run

C = TypeVar("C", bound="RunConfig")


@dataclass(kw_only=True)
class RunConfig:
    """Settings of every training run. It ends at `steps` or `minutes`, whichever comes first; the learning rate
    anneals to that end. A run found in `out` is continued."""

    out: Path = Path("runs/unnamed")  # run folder
    minutes: float | None = None
    steps: int | None = None
    seed: int = 0
    threads: int | None = None  # CPU threads; None: torch's own choice
    warmup: int = 100  # steps of rising learning rate
    checkpoint_minutes: float = 4.0
    log_every: int = 20  # steps
    tensorboard: bool = False  # figures for TensorBoard too, in <out>/tensorboard
    bf16: bool = True

    def run(self, folder: Path | None = None) -> Run:
        return Run(
            folder or self.out,
            plain(self),
            seed=self.seed,
            steps=self.steps,
            minutes=self.minutes,
            warmup=self.warmup,
            checkpoint_minutes=self.checkpoint_minutes,
            log_every=self.log_every,
            tensorboard=self.tensorboard,
        )


def add_arguments_for(parser: argparse.ArgumentParser, cls: type[C]) -> None:
    parser.add_argument("--config", type=Path, help="settings as a YAML or TOML file")
    parser.add_argument("--print-config", action="store_true", help="print the settings as YAML and leave")
    parser.add_argument("settings", nargs="*", metavar="name=value", help="settings that go before the file's")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "settings and their defaults:\n" + indent(to_yaml(cls()), "  ")


def run_command(args: argparse.Namespace, cls: type[C], train: Callable[[C], Run]) -> int:
    config = load_config(cls, args.config, args.settings)
    if args.print_config:
        print(to_yaml(config), end="")
        return 0
    if not config.steps and not config.minutes:
        raise ConfigError("A training run needs an end: give steps=N, minutes=M or both.")
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.bf16:
        torch.set_float32_matmul_precision("medium")  # Muon's matrix products
    done = train(config)
    if done.interrupted:
        print(f"Stopped at step {done.step}. The same command continues from there.")
        return 130
    print(f"Finished: {config.out / 'export'}")
    return 0
