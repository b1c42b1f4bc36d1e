"""What the commands `train vae | pretrain | stage1 | stage2` share: how settings are given, and what is printed.

    python -m duogen_core train stage2 --config my.yaml out=runs/stage2 minutes=90 families.draw=0.5
    python -m duogen_core train stage2 --launch ddp --processes 4 --config my.yaml

--launch starts several processes on this machine by Hugging Face accelerate's launcher, inside this process.
accelerate's own command starts the same ones, but when one fails every process prints its error, a traceback of
the launcher follows, and the exit code is 1. Here the settings are read before any process starts, and the sentence
and the exit code of the process that failed first are those of the command.
In a process that torchrun or srun started, --launch says of what kind the processes are; none is started.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from textwrap import indent
from typing import TypeVar

import torch
from safetensors import SafetensorError

from duogen_core import interrupt
from duogen_core.errors import DuoGenError
from duogen_core.files import lock_folder
from duogen_core.training import distributed
from duogen_core.training.checkpoints import is_full, reason
from duogen_core.training.configuration import (
    ConfigError,
    RunConfig,
    TrainingError,
    find_config,
    load_config,
    recipes_of,
    settings_help,
    to_yaml,
)
from duogen_core.training.distributed import started
from duogen_core.training.precision import bf16_products
from duogen_core.training.run import Run

C = TypeVar("C", bound=RunConfig)


def add_arguments_for(parser: argparse.ArgumentParser, cls: type[C], *, parallel: bool = False) -> None:
    """parallel: as of `run_command`."""
    recipes = recipes_of(cls.command)
    kinds = ("FILE|NAME", ", or one of the recipes below") if recipes else ("FILE", "")
    parser.add_argument("--config", metavar=kinds[0], help=f"settings: a YAML or TOML file{kinds[1]}")
    parser.add_argument("--print-config", action="store_true", help="print the settings as YAML and exit")
    if parallel:
        parser.add_argument(
            "--launch",
            choices=KINDS,
            help="several processes, each with the whole model (ddp) or with a part (fsdp); under torchrun or srun, of "
            "what kind those are",
        )
        parser.add_argument(
            "--processes", type=int, metavar="N", help="number of processes; default: one per GPU, 2 on CPUs"
        )
    parser.add_argument("settings", nargs="*", metavar="name=value", help="settings that override the file's")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    lines = [f"  {name}  {text}\n" for name, text in recipes.items()]
    parser.epilog = "recipes:\n" + "".join(lines) + "\n" if recipes else ""
    parser.epilog += "settings and their defaults:\n" + indent(settings_help(cls()), "  ")


@contextmanager
def output_folder(out: Path) -> Iterator[None]:
    """The folder of a run is this run's alone, and a disk that is full ends it in one sentence."""
    main = os.environ.get("RANK", "0") == "0"  # the launcher's other processes write nothing
    try:
        with lock_folder(out) if main else nullcontext():
            yield
    except (OSError, SafetensorError) as error:
        if not is_full(error):
            raise
        raise TrainingError(
            f"{out} cannot be written to: {reason(error)}. Free some space and give the same command again; it goes on "
            "from the last checkpoint."
        ) from error


def run_command(args: argparse.Namespace, cls: type[C], train: Callable[[C], Run], *, parallel: bool = False) -> int:
    """parallel: several processes, of --launch or of accelerate's own command, can share the work."""
    with reported():
        return _run_command(args, cls, train, parallel)


def _run_command(args: argparse.Namespace, cls: type[C], train: Callable[[C], Run], parallel: bool) -> int:
    file = find_config(args.config, cls.command) if args.config else None
    config = load_config(cls, file, args.settings)
    if args.print_config:
        print(to_yaml(config), end="")
        return 0
    if started() > 1 and not parallel:
        raise TrainingError(f"train {cls.command} runs in one process; start it without a launcher.")
    if started() > 1 and parallel and args.launch:
        if args.processes:
            raise ConfigError("--processes is the launcher's to say here: torchrun --nproc-per-node, srun --ntasks.")
        if args.launch == "fsdp":
            distributed.ask_for_fsdp(config.bf16)
        args.launch = None
    if distributed.asked_for() and distributed.precision() != "no" and not config.bf16:
        raise TrainingError("bf16 is false, but accelerate's mixed_precision is not 'no'; set both alike.")
    if not config.steps and not config.minutes:
        raise ConfigError("A training run needs an end: give steps=N, minutes=M or both.")
    if parallel and args.launch:
        given = ["--config", args.config] if args.config else []
        return launch(args.launch, args.processes, ["train", cls.command, *given, *args.settings])
    if parallel and args.processes:
        raise ConfigError("--processes goes with --launch; add --launch ddp or --launch fsdp.")
    if config.threads:
        torch.set_num_threads(config.threads)
    with output_folder(config.out), bf16_products(config.bf16):
        done = train(config)
    if not done.main:
        return 130 if done.interrupted else 0
    if done.interrupted:
        print(f"Stopped at step {done.step}. The same command continues from there.")
        return 130
    results = (config.out / name for name in ("export", "adapter"))
    print(f"Finished: {next((path for path in results if path.exists()), config.out)}")
    return 0


# -- several processes

CONFIGS = Path(__file__).parent / "launch"  # accelerate's configurations
KINDS = ("ddp", "fsdp")
LAUNCHED = "DUOGEN_LAUNCHED"  # set for the processes: their errors go to the launcher, which prints the first one


def launch(kind: str, processes: int | None, command: Sequence[str]) -> int:
    """Runs `python -m duogen_core <command>` in several processes; returns the exit code.

    kind: one of KINDS. processes: None for one per GPU, or two where there are none. A process's own error is raised
    here, as a DuoGenError.
    """
    if processes is not None and processes < 2:
        raise ConfigError(f"--processes is {processes}; expected at least 2, or leave --launch out for one process.")
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    processes = processes or max(2, torch.cuda.device_count())
    options = ["--config_file", str(CONFIGS / f"{kind}.yaml"), "--num_processes", str(processes)]
    options += ["--main_process_port", "0"]  # any free one, so that two runs on one machine do not meet
    args = launch_command_parser().parse_args([*options, "-m", "duogen_core", *command])
    os.environ[LAUNCHED] = "1"
    logging.disable(logging.CRITICAL)  # only in this process: torch reports each process that it stops
    try:
        launch_command(args)
        return 0
    except SignalException:  # Ctrl-C or SIGTERM, which the processes were sent too
        return interrupt.EXIT_CODE
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if isinstance(failure.message, dict):  # {"message": "ConfigError: …"}, written by `reported`
            raise DuoGenError(failure.message["message"].partition(": ")[2]) from None
        if failure.exitcode < 0:
            raise TrainingError(
                f"Process {rank} was ended by {failure.signal_name()}, as happens when the machine has no memory left; "
                "the same command goes on from the last checkpoint."
            ) from None
        return failure.exitcode
    finally:
        logging.disable(logging.NOTSET)
        del os.environ[LAUNCHED]


@contextmanager
def reported() -> Iterator[None]:
    """In a process that `launch` started, hands an error to it instead of printing it: the others have the same one."""
    try:
        yield
    except DuoGenError as error:
        if LAUNCHED not in os.environ:
            raise
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)
        raise SystemExit(2) from None
