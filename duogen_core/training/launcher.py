"""Several processes of this machine for one training: Hugging Face accelerate's launcher, inside this process.

    python -m duogen_core train stage2 --launch ddp --processes 4 --config my.yaml

accelerate's own command starts the same processes, but when one fails every process prints its error, a traceback of
the launcher follows, and the exit code is 1. Here the settings are read before any process starts, and the sentence
and the exit code of the process that failed first are those of the command.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from duogen_core import interrupt
from duogen_core.errors import DuoGenError
from duogen_core.training.config import ConfigError
from duogen_core.training.errors import TrainingError

CONFIGS = Path(__file__).parent / "launch"  # accelerate's configurations
KINDS = ("ddp", "fsdp")
LAUNCHED = "DUOGEN_LAUNCHED"  # set for the processes: their errors go to the launcher, which prints the first one


def launch(kind: str, processes: int | None, command: Sequence[str]) -> int:
    """Runs `python -m duogen_core <command>` in several processes; returns the exit code.

    kind: one of KINDS. processes: None for one a GPU, or two where there are none. A process's own error is raised
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
