"""The command line: which commands there are, and how errors and Ctrl-C leave it.

A command is a module with `add_arguments(parser)` and `run(args) -> exit code`; it is imported only when it is the one
that was asked for, so `--help` and a wrong option answer at once. A command that writes to a folder names it by
`parser.set_defaults(locks=lambda args: [args.out])`: one process at a time does.
Exit codes: 0 done; 2 bad input, with one sentence on stderr; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import codecs
import difflib
import errno
import io
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from importlib import import_module
from pathlib import Path

from duogen_core import __version__, files, interrupt
from duogen_core.errors import Cancelled, DuoGenError, is_out_of_memory, shown

# name: (help, module) or (help, {name: (help, module)})
COMMANDS: dict[str, tuple] = {
    "generate": ("answer a request with text and pictures", "duogen_core.commands.generate"),
    "inspect": ("say what a model file is, what it needs, and whether it fits", "duogen_core.commands.inspect"),
    "convert": ("a published model file into another layout", "duogen_core.commands.convert"),
    "evaluate": (
        "measure a model",
        {
            "sketchbook": (
                "all tasks of the Sketchbook world",
                "duogen_core.sketchbook.evaluation",
            )
        },
    ),
    "ablation": (
        "what each of DuoGen's choices is worth: train and compare",
        "duogen_core.sketchbook.ablation.command",
    ),
    "data": (
        "look after data for training",
        {
            "check": ("read every sample and name the bad ones", "duogen_core.commands.data"),
            "make": (
                "make documents to train on",
                {"sketchbook": ("draw them: any task, or guides of one thing", "duogen_core.commands.data_make")},
            ),
            "export": ("documents as Parquet rows or webdataset tars", "duogen_core.commands.data_export"),
            "web": ("clean documents from web pages", "duogen_core.commands.data_web"),
            "synthetic": (
                "documents that models write and draw, from requests of 151 everyday subjects",
                {
                    "expand": ("more requests like the seeds", "duogen_core.commands.synthetic_expand"),
                    "balance": ("how evenly requests are spread", "duogen_core.commands.synthetic_balance"),
                    "plan": ("an answer to each, with a prompt a picture", "duogen_core.commands.synthetic_plan"),
                    "draw": ("the pictures, and the documents with them", "duogen_core.commands.synthetic_draw"),
                    "answer": ("a DuoGen model writes and draws by itself", "duogen_core.commands.synthetic_answer"),
                },
            ),
            "dialogues": ("dialogues out of clean pages, by language models", "duogen_core.commands.data_dialogues"),
            "video": ("pairs of frames, and what happens between them", "duogen_core.commands.data_video"),
            "editing": ("open sets of edits, from their published layouts", "duogen_core.commands.data_editing"),
            "stats": ("what a run of an engine kept, and why not the rest", "duogen_core.commands.data_stats"),
            "view": ("a page to look at what a run of an engine did", "duogen_core.commands.data_view"),
        },
    ),
    "train": (
        "train a model of your own: all of it, or one part",
        {
            "vae": ("the picture VAE", "duogen_core.sketchbook.vae"),
            "pretrain": ("a small MLLM from nothing: language, then vision", "duogen_core.sketchbook.pretrain"),
            "stage1": ("the MLLM: answers, and when to draw", "duogen_core.training.stage1"),
            "stage2": ("connector and DiT, with the MLLM frozen", "duogen_core.training.stage2"),
            "finetune": ("a whole model on your own documents, in one go", "duogen_core.training.finetune"),
            "assemble": ("put the trained parts together as one checkpoint", "duogen_core.training.assemble"),
        },
    ),
}


# Nothing is ever fetched, and the libraries' own notes and bars would only break up ours. Who sets them keeps them.
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
        """Names an argument that nobody knows, and the option that was probably meant."""
        wrong = next((one for one in unknown if one.startswith("-")), unknown[0])
        if not wrong.startswith("-"):
            self.error(f"{wrong!r} is one argument too many; put a request of several words in quotes")
        options = [option for action in self._actions for option in action.option_strings]
        near = difflib.get_close_matches(wrong.partition("=")[0], options, 1, 0.75)
        self.error(f"there is no option {wrong}" + (f", but {near[0]}" if near else ""))


def build_parser(argv: Sequence[str]) -> Parser:
    """The parser; only the command named in argv is imported and knows its options."""
    script = Path(sys.argv[0]).stem  # of the package, if it is installed
    prog = script if script == "duogen" else "python -m duogen_core"
    parser = Parser(prog=prog, description="DuoGen: answers made of text and pictures in turn.")
    parser.add_argument("--version", action="version", version=f"DuoGen {__version__}")
    _add(parser, COMMANDS, argv, "command")
    return parser


def _add(parser: Parser, commands: dict[str, tuple], argv: Sequence[str], kind: str) -> None:
    choices = parser.add_subparsers(title=f"{kind}s", metavar=kind.upper(), required=True, dest=kind)
    for name, (text, target) in commands.items():
        child = choices.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        if name not in argv[:1]:
            continue
        if isinstance(target, dict):
            _add(child, target, argv[1:], "what")
        else:
            module = import_module(target)
            module.add_arguments(child)
            child.set_defaults(run=module.run, parser=child)


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    before = interrupt.current()
    for name, value in LIBRARIES.items():
        os.environ.setdefault(name, value)
    _print_anything()
    try:
        interrupt.at_once()
        args, unknown = build_parser(argv).parse_known_args(argv)
        if isinstance(getattr(args, "settings", None), list):  # name=value may stand on both sides of an option
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
            sys.stdout.flush()  # now, while it can still be told
        return code
    except DuoGenError as error:
        return _leave(f"Error: {error}", 2)
    except (KeyboardInterrupt, Cancelled):
        return _leave("Stopped.", interrupt.EXIT_CODE)
    except BrokenPipeError:  # the reader of our output has gone, for example `| head`
        _drop_stdout()
        return 0
    except OSError as error:
        if is_out_of_memory(error):
            return _leave(NO_MEMORY, 2)
        if error.errno not in NO_SPACE:
            raise
        # What the commands write to files has a sentence of its own; without a name it is what they print.
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
    "model, smaller pictures or fewer workers, and give the same command again."
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
    """Nothing more is printed, not even what still waits to be: Python would complain about it at the end."""
    with suppress(OSError, ValueError):  # ValueError: a stand-in without a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _leave(message: str, code: int) -> int:
    with suppress(OSError):
        print(message, file=sys.stderr, flush=True)
    return code
