"""The command line: which commands there are, and how errors and Ctrl-C leave it.

A command is a module with `add_arguments(parser)` and `run(args) -> exit code`; it is imported only when it is the one
that was asked for, so `--help` and a wrong option answer at once.
Exit codes: 0 done; 2 bad input, with one sentence on stderr; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from duogen_core import __version__, interrupt
from duogen_core.errors import Cancelled, DuoGenError, is_out_of_memory

# name: (help, module) or (help, {name: (help, module)})
COMMANDS: dict[str, tuple] = {
    "generate": ("answer a request with text and pictures", "duogen_core.commands.generate"),
    "inspect": ("say what a model file is, what it needs, and whether it fits", "duogen_core.commands.inspect"),
    "convert": ("a published model file into another layout", "duogen_core.commands.convert"),
    "evaluate": (
        "measure a model",
        {"sketchbook": ("the seven tasks of the Sketchbook world", "duogen_core.evaluation.sketchbook")},
    ),
    "ablation": ("what each of DuoGen's choices is worth: train and compare", "duogen_core.ablation.command"),
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
        "train a part of the bundled model",
        {
            "vae": ("the picture VAE", "duogen_core.training.vae"),
            "pretrain": ("a small MLLM from nothing: language, then vision", "duogen_core.training.pretrain"),
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


def build_parser(argv: Sequence[str]) -> Parser:
    """The parser; only the command named in argv is imported and knows its options."""
    parser = Parser(prog="python -m duogen_core", description="DuoGen: answers made of text and pictures in turn.")
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
            child.set_defaults(run=module.run)


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    before = interrupt.current()
    for name, value in LIBRARIES.items():
        os.environ.setdefault(name, value)
    try:
        interrupt.at_once()
        args = build_parser(argv).parse_args(argv)
        interrupt.raising()
        return args.run(args) or 0
    except DuoGenError as error:
        return _leave(f"Error: {error}", 2)
    except (KeyboardInterrupt, Cancelled):
        return _leave("Stopped.", interrupt.EXIT_CODE)
    except BrokenPipeError:  # the reader of our output has gone, for example `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return _leave(
            "Error: There is not enough memory for this. What was finished stays; close other programs, or take a "
            "smaller model, smaller pictures or fewer workers, and give the same command again.",
            2,
        )
    finally:
        interrupt.restore(before)


def _leave(message: str, code: int) -> int:
    print(message, file=sys.stderr, flush=True)
    return code
