"""plan: any model plans an answer, texts and what each image shows, as a file that can be edited and drawn.

    python -m duogen_core plan "How do I fold a paper boat?" --writer qwen3-4b.gguf --out plan.md
    python -m duogen_core plan --document answer --out plan.md                      the plan of an answer that is there
    python -m duogen_core generate --plan plan.md --out answer

The file's name says its form: .md is the text that people edit (`duogen_core.planning.markdown`), .json the plan with
the request beside it. Parts are shown while they are written; Ctrl-C keeps those that are whole.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from duogen_core import interrupt
from duogen_core.commands.endpoint_options import add_model_options, model_of
from duogen_core.commands.progress import Progress, harmless
from duogen_core.device_options import add_device_options
from duogen_core.errors import Cancelled, DuoGenError
from duogen_core.files import parse_json, read_limited, write_atomically, write_errors

if TYPE_CHECKING:
    from duogen_core.document import Document
    from duogen_core.llm.client import Client
    from duogen_core.planning.plan import Part, Plan

MAX_BYTES = 16 << 20
SUFFIXES = (".json", ".md")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "prompt",
        nargs="?",
        help='the request, for example "How do I fold a paper boat?"; without it, the plan of the answer in --document',
    )
    add("--out", required=True, metavar="FILE", help="the file to write: .md to edit it, .json for programs")
    add("--image", action="append", default=[], metavar="FILE", help="an image that belongs to the request; repeatable")
    add("--document", metavar="DIR", help="a document (folder or .zip) whose conversation the request goes on with")
    add_writer_options(parser)
    add("--json", action="store_true", help="print a summary as JSON instead of the path")
    add("--quiet", action="store_true", help="show no progress on stderr")
    add_device_options(parser)


def add_writer_options(parser: argparse.ArgumentParser) -> None:
    """Adds what `plan` and `generate --writer` share. The caller adds the options of the device."""
    add_model_options(parser, "writer")
    add = parser.add_argument
    add("--style", default="", metavar="TEXT", help='style of all images, such as "watercolour, plain background"')
    add(
        "--plan-seed",
        type=int,
        default=0,
        metavar="N",
        help="another number gives another plan, with a --plan-temperature above 0; default: 0",
    )
    add(
        "--plan-temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="0: always the likeliest words, whatever the seed; above 0: a random choice of words; default: 0",
    )


def run(args: argparse.Namespace) -> int:
    interrupt.at_once()
    out = checked_file(args.out)
    progress = Progress(args.quiet)
    document = request_of(args)
    if not (args.prompt or "").strip():
        from duogen_core.planning.as_document import plan_of

        if args.writer:
            raise DuoGenError("There is a --writer but no request; write what the answer should be about.")
        plan, stopped = plan_of(document), False
    else:
        if not args.writer:
            raise DuoGenError(
                "--writer is missing; name the model that plans: a folder, a .gguf file, or an address such as "
                "http://127.0.0.1:8080/v1 with --writer-model."
            )
        plan, stopped = write(open_writer(args, progress), document, args, progress)
    save_plan(plan.with_style(args.style), document, out)
    pictures = len(plan.pictures)
    if stopped:
        print(f"Stopped. What was planned is in {out}.", file=sys.stderr)
    summary = {"plan": str(out), "title": plan.title, "parts": len(plan.parts), "pictures": pictures}
    print(json.dumps(summary | {"seconds": round(progress.elapsed(), 2)}) if args.json else out, flush=True)
    return interrupt.EXIT_CODE if stopped else 0


def request_of(args: argparse.Namespace) -> Document:
    """Returns the conversation with the request at its end; of one without a request, the conversation."""
    from duogen_core.document import Document, Picture, Text

    document = Document()
    if args.document:
        from duogen_core.document.reading import load_document

        document = load_document(args.document)
    prompt = args.prompt or ""
    if prompt.strip():
        pictures = [Picture.from_file(path) for path in args.image]
        return document.begin_turn("user", [*pictures, Text(prompt)])
    if not args.document or args.prompt is not None or args.image:
        raise DuoGenError(
            'The request is empty; write what the answer should be about, for example "How do I fold a paper boat?"'
        )
    return document


# ------------------------------------------------------------ writing a plan, here and in generate


def open_writer(args: argparse.Namespace, progress: Progress) -> Client:
    progress.line(f"Opening {args.writer} …")
    return model_of(args, "writer")


def write(client: Client, document: Document, args: argparse.Namespace, progress: Progress) -> tuple[Plan, bool]:
    """Returns the plan and whether it was stopped; of a stopped one what is whole. Raises DuoGenError or Cancelled."""
    from duogen_core.llm.answers import AnswerError
    from duogen_core.planning.plan import Plan
    from duogen_core.planning.reading import PlanReader
    from duogen_core.planning.writing import write_plan

    parts: list[Part] = []
    heard = PlanReader()

    def hear(piece: str) -> None:
        heard.text = "" if not piece else heard.text  # the answer begins anew
        heard.put(piece)
        progress.state(f"The writer writes: {len(heard.text):,} characters …")

    def show(index: int, part: Part) -> None:
        if index == 0 and parts:
            progress.line("That plan was not what the request asks for; the writer is asked once more.")
        parts[index:] = [part]
        shows = f"\n   [image: {part.picture.shows}]" if part.picture is not None else ""
        progress.line(harmless(f"{index + 1}. {' '.join(part.text.split())}{shows}"))

    interrupt.finish()
    progress.state("The writer reads the request …", 0)
    try:
        plan = write_plan(
            client, document, style=args.style, seed=args.plan_seed, temperature=args.plan_temperature, on_part=show,
            on_text=hear, on_notice=progress.line, cancelled=interrupt.requested,
        )  # fmt: skip
    except (Cancelled, KeyboardInterrupt):
        if not parts:
            raise Cancelled("Stopped; nothing was planned yet.") from None
        try:
            plan = replace(heard.plan(), parts=tuple(parts))  # its title and its cast
        except AnswerError:
            plan = Plan("", tuple(parts))
        return plan.with_style(args.style), True
    finally:
        progress.end_line()
    return plan, False


# ------------------------------------------------------------ the file of a plan


def checked_file(name: str) -> Path:
    """Returns a file that a plan can be written to; refused before anything slow begins."""
    out = Path(name)
    if out.suffix.lower() not in SUFFIXES or "\0" in name:
        raise DuoGenError(f"--out {name!r} must be a file that ends in .md, to edit the plan, or .json.")
    if out.is_dir():
        raise DuoGenError(f"--out {name} is a folder; give the name of a file.")
    return out


def save_plan(plan: Plan, document: Document, file: Path) -> None:
    from duogen_core.planning.markdown import plan_to_markdown

    asked = next((turn.text for turn in reversed(document.turns) if turn.role == "user"), "")
    if file.suffix.lower() == ".md":
        text = plan_to_markdown(plan)
    else:
        text = json.dumps({"request": asked, **plan.to_json()}, ensure_ascii=False, indent=1) + "\n"
    with write_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, text.encode("utf-8"))


def load_plan(file: Path) -> tuple[Plan, str]:
    """Returns the plan in a .json or .md file, and the request that stands beside it ("" where none does)."""
    from duogen_core.planning.markdown import plan_from_markdown
    from duogen_core.planning.plan import Plan

    data = read_limited(file, MAX_BYTES, str(file), "plan")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DuoGenError(f"The plan {file} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from None
    try:
        if file.suffix.lower() != ".json":
            return plan_from_markdown(text), ""
        value = parse_json(text, str(file))
        asked = value.pop("request", "") if isinstance(value, dict) else ""
        return Plan.from_json(value), asked if isinstance(asked, str) else ""
    except DuoGenError as error:
        raise error if str(file) in str(error) else DuoGenError(f"{file}: {error}") from None
