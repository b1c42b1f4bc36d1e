"""The command line: which commands there are, and how errors and Ctrl-C end it.

A command is a module (or stands in one, as module:name) with `add_arguments(parser)` and `run(args) -> exit code`. Only
the one that was asked for is imported, so `--help` and a wrong option answer at once. A command that writes to a folder
names it with `parser.set_defaults(locks=lambda args: [args.out])`: then only one process at a time writes there.
Exit codes: 0 done; 2 bad input, with one sentence on stderr; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import codecs
import difflib
import errno
import io
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from duogen_core import __version__, files, interrupt
from duogen_core.errors import Cancelled, DuoGenError, is_out_of_memory, shown

DATA = "duogen_core.commands.data"
BENCH = "duogen_core.commands.bench"
BENCHMARKS = "duogen_core.commands.evaluate_benchmarks"
COMPARE = "duogen_core.commands.evaluate_compare"
ENGINES, SYNTHETIC = "duogen_core.commands.data_engines", "duogen_core.commands.synthetic"
# name: (what it does, module) or (what it does, {name: …}, what one of these is called)
COMMANDS: dict[str, tuple] = {
    "generate": ("answer a request with text and images", "duogen_core.commands.generate"),
    "plan": (
        "let any language model plan an answer: texts, and what each image shows",
        "duogen_core.commands.plan",
    ),
    "review": ("let a critic look at the images of an answer, and draw bad ones again", "duogen_core.commands.review"),
    "inspect": ("say what a model file is, what else it needs and how much memory", "duogen_core.commands.inspect"),
    "convert": ("write a model file in another layout, or with 8-bit weights", "duogen_core.commands.convert"),
    "evaluate": (
        "measure a model",
        {
            "sketchbook": (
                "measure a model on the tasks of Sketchbook, the world of the bundled one, with an exact checker",
                "duogen_core.sketchbook.evaluation",
            ),
            "outlines": (
                "measure how exactly a model draws in given outlines, with its ControlNet and without it",
                "duogen_core.sketchbook.controlled",
            ),
            "plan": (
                "measure a writer on 100 requests: are its plans whole, illustrated and as asked for",
                "duogen_core.commands.evaluate_plan",
            ),
            "run": (
                "answer the official requests of a benchmark, and write the official submission",
                f"{BENCHMARKS}:run",
            ),
            "judge": (
                "score the answers of a run: by a model that sees, or by what the official scorer wrote",
                "duogen_core.commands.evaluate_judge:judge",
            ),
            "check": (
                "say of the answers of a run what needs no judge: structure, puzzles, likeness, fit of text and images",
                "duogen_core.commands.evaluate_check",
            ),
            "compare": ("let a judge say which of two models' answers is better, in both orders", f"{COMPARE}:compare"),
            "report": (
                "write a page of results: figures with intervals, published ones, answers to look at",
                "duogen_core.commands.evaluate_report",
            ),
            "rate": ("write a page on which people say which of two answers is better", f"{COMPARE}:rate"),
            "ratings": ("make win rates and Elo of what judges and people found better", f"{COMPARE}:ratings"),
            "export": ("write answers that are there as an official submission", f"{BENCHMARKS}:export"),
            "import": ("make answers of an official submission, to look at and to judge", f"{BENCHMARKS}:import_"),
        },
        "benchmark",
    ),
    "bench": (
        "measure speed and memory against transformers and diffusers alone",
        {
            "loop": ("write and draw a whole answer, image by image", f"{BENCH}:loop"),
            "dit": ("draw one image after any number of earlier ones", f"{BENCH}:dit"),
            "mllm": ("write, greedily and at a temperature", f"{BENCH}:mllm"),
            "connector": ("turn hidden states into the condition of an image", f"{BENCH}:connector"),
        },
        "benchmark",
    ),
    "ablation": (
        "train variants of the model with one choice changed each, and compare them",
        "duogen_core.sketchbook.ablation.command",
    ),
    "data": (
        "make documents to train on, and look at them",
        {
            "check": ("read every sample and name the bad ones", f"{DATA}:check"),
            "make": (
                "draw documents by code",
                {
                    "sketchbook": (
                        "draw documents of Sketchbook: any of its tasks, or guides of one thing",
                        f"{DATA}:sketchbook",
                    )
                },
                "world",
            ),
            "export": ("write documents as Parquet rows or webdataset tars", f"{DATA}:export"),
            "web": ("make clean documents of web pages", f"{ENGINES}:web"),
            "dedup": ("take out of whole runs what repeats: documents, images, lines", f"{ENGINES}:dedup"),
            "synthetic": (
                "make documents that models write and draw, about 151 everyday subjects",
                {
                    "expand": ("let a language model write more requests", f"{SYNTHETIC}:expand"),
                    "balance": ("count how requests spread over subjects", f"{SYNTHETIC}:balance"),
                    "plan": (
                        "let a language model plan an answer to each request: texts, and a prompt for each image",
                        f"{SYNTHETIC}:plan",
                    ),
                    "draw": ("draw the planned images and write the documents", f"{SYNTHETIC}_documents:draw"),
                    "answer": ("let a DuoGen model write and draw answers", f"{SYNTHETIC}_documents:answer"),
                },
                "step",
            ),
            "dialogues": (
                "turn clean documents into dialogues with a language model",
                f"{ENGINES}:dialogues",
            ),
            "video": (
                "make pairs of video frames, with a text of what happens between them",
                f"{ENGINES}:video",
            ),
            "editing": ("make documents of published image-editing data sets", f"{ENGINES}:editing"),
            "stats": ("show what a data command kept, and why it dropped the rest", f"{DATA}:stats"),
            "view": ("write a web page that shows what a data command made", f"{DATA}:view"),
        },
        "command",
    ),
    "train": (
        "train a model, whole or one part",
        {
            "finetune": ("train a whole model on your own documents, in one run", "duogen_core.training.finetune"),
            "bundled": (
                "train the model that the pack brings from nothing, all parts",
                "duogen_core.sketchbook.bundled",
            ),
            "vae": ("train the VAE of the bundled model from nothing", "duogen_core.sketchbook.vae"),
            "pretrain": ("train the bundled model's language model from nothing", "duogen_core.sketchbook.pretrain"),
            "stage1": ("train the language model: what to answer, and when to draw", "duogen_core.training.stage1"),
            "stage2": ("train connector and DiT, the language model frozen", "duogen_core.training.stage2"),
            "controlnet": (
                "train a ControlNet that draws in given outlines, everything else frozen",
                "duogen_core.training.controlnet",
            ),
            "plan": ("say what memory and time a recipe takes on so many GPUs", "duogen_core.training.plan"),
            "assemble": ("put the trained parts together as one checkpoint", "duogen_core.training.assemble"),
        },
        "part",
    ),
}


# Nothing is ever fetched, and the libraries' own notes and bars would only break up ours. What the user has set stays.
LIBRARIES = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
}


class Parser(argparse.ArgumentParser):
    """argparse, with one sentence for an error instead of the usage text."""

    def error(self, message: str):
        raise DuoGenError(f"{message[:1].upper()}{message[1:]}; see {self.prog} --help.")

    def refuse(self, unknown: Sequence[str]):
        """Names an unknown argument, and the option that was probably meant."""
        wrong = next((one for one in unknown if one.startswith("-")), unknown[0])
        if not wrong.startswith("-"):
            self.error(f"{wrong!r} is one argument too many; put a request of several words in quotes")
        options = [option for action in self._actions for option in action.option_strings]
        near = difflib.get_close_matches(wrong.partition("=")[0], options, 1, 0.75)
        self.error(f"there is no option {wrong}" + (f", but {near[0]}" if near else ""))


def build_parser(argv: Sequence[str]) -> Parser:
    """Returns the parser; only the command named in argv is imported and knows its options."""
    script = Path(sys.argv[0]).stem  # of the package, if it is installed
    prog = script if script == "duogen" else "python -m duogen_core"
    parser = Parser(prog=prog, description="DuoGen answers a request with text and images in turn.")
    parser.add_argument("--version", action="version", version=f"DuoGen {__version__}")
    parser.epilog = f"{prog} COMMAND --help explains a command."
    _add(parser, COMMANDS, argv, "command")
    return parser


def _add(parser: Parser, commands: dict[str, tuple], argv: Sequence[str], noun: str) -> None:
    choices = parser.add_subparsers(title=f"{noun}s", metavar=noun.upper(), required=True, dest=noun)
    for name, (text, target, *nouns) in commands.items():
        child = choices.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        if name not in argv[:1]:
            continue
        if isinstance(target, dict):
            _add(child, target, argv[1:], *nouns)
        else:
            command = command_of(target)
            command.add_arguments(child)
            child.set_defaults(run=command.run, parser=child)


def command_of(target: str) -> Any:
    """What has `add_arguments` and `run`: a module, or module:name where a module has several commands."""
    module, _, name = target.partition(":")
    found = import_module(module)
    return getattr(found, name) if name else found


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    before = interrupt.current()
    for name, value in LIBRARIES.items():
        os.environ.setdefault(name, value)
    # It warns of CPU kernels that it can do without, in every command: diffusers and peft import it where it is there.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    _print_anything()
    try:
        interrupt.at_once()
        args, unknown = build_parser(argv).parse_known_args(argv)
        if isinstance(getattr(args, "settings", None), list):  # argparse takes name=value on one side of an option only
            args.settings += [one for one in unknown if "=" in one and not one.startswith("-")]
            unknown = [one for one in unknown if one not in args.settings]
        if unknown:
            args.parser.refuse(unknown)
        interrupt.raising()
        files.program_name = args.parser.prog
        with ExitStack() as held:
            for place in args.locks(args) if "locks" in args else []:
                held.enter_context(files.lock_folder(place))
            code = args.run(args) or 0
            sys.stdout.flush()  # here a full disk can still be reported
        return code
    except DuoGenError as error:
        return _leave(f"Error: {error}", 2)
    except (KeyboardInterrupt, Cancelled) as stopped:
        return _leave(str(stopped) or "Stopped.", interrupt.EXIT_CODE)
    except BrokenPipeError:  # the reader of our output has gone, for example `| head`
        _drop_stdout()
        return 0
    except OSError as error:
        if is_out_of_memory(error):
            return _leave(NO_MEMORY, 2)
        if error.errno not in NO_SPACE:
            raise
        # Commands have a sentence of their own for files they write; an error without a name is of stdout.
        _drop_stdout()
        what = f"{error.filename} could not be written" if error.filename else "The output could not be printed"
        return _leave(f"Error: {shown(what)}: {error.strerror}.", 2)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return _leave(NO_MEMORY, 2)
    finally:
        interrupt.restore(before)


NO_MEMORY = (
    "Error: There is not enough memory for this. What was finished stays; close other programs, or take a smaller "
    "model, smaller images or fewer workers, and give the same command again."
)
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def _print_anything() -> None:
    """Lets stdout take every text: the bytes of a file name as they are, what the encoding lacks as \\uXXXX."""
    codecs.register_error("duogen", _unprintable)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="duogen")


def _unprintable(error: UnicodeError) -> tuple[str | bytes, int]:
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeEncodeError:
        return codecs.lookup_error("backslashreplace")(error)


def _drop_stdout() -> None:
    """Sends the rest of stdout nowhere, buffered text included: Python would complain about it when it exits."""
    with suppress(OSError, ValueError):  # ValueError: a stand-in without a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _leave(message: str, code: int) -> int:
    with suppress(OSError):
        print(message, file=sys.stderr, flush=True)
    return code
