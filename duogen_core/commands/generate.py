"""generate: answers a request and writes a document folder with document.html and document.md.

The folder is written while the answer grows: whatever ends the run, the finished images are there. stdout gets one
line, the path (or one JSON object with --json); everything else goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duogen_core import files, interrupt
from duogen_core.checkpoint import DEFAULT_MODEL, PictureSize
from duogen_core.commands import answers
from duogen_core.commands.answers import MAX_IMAGES
from duogen_core.commands.control_options import add_control_options, check_control_options, open_controls
from duogen_core.commands.critic_options import Tries, add_critic_options, check_critic_options, open_critic
from duogen_core.commands.planned import (
    add_plan_options,
    check_plan_options,
    is_planned,
    open_painter,
    planned_request,
    replan,
)
from duogen_core.commands.progress import Progress
from duogen_core.device_options import add_device_options
from duogen_core.errors import DuoGenError
from duogen_core.files import lock_folder

CONVENTIONS = ("post-trained", "pre-trained")

if TYPE_CHECKING:
    from duogen_core.document import Document, Picture
    from duogen_core.settings import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "prompt",
        nargs="?",
        help='the request, for example "How do I draw a house with a red roof?"; leave it out to answer the last '
        "request of a --document, or to continue an answer that was stopped",
    )
    add(
        "--out",
        required=True,
        metavar="DIR",
        help="the folder to write the answer to; an earlier answer there is replaced",
    )
    add(
        "--image",
        action="append",
        default=[],
        metavar="FILE",
        help="an image that belongs to the request (PNG, JPEG, WebP, GIF, AVIF, BMP or TIFF); may be repeated",
    )
    add("--document", metavar="DIR", help="a document (folder or .zip) whose conversation to continue")
    add(
        "--model",
        default=None,
        metavar="NAME_OR_PATH",
        help=f"a DuoGen model: a name or a folder; default: {DEFAULT_MODEL}",
    )
    add(
        "--mllm",
        metavar="PATH",
        help="instead of --model, published files: the language model (Qwen2.5-VL), a folder or file",
    )
    add("--dit", metavar="PATH", help="with --mllm: the DiT (Cosmos-Predict2.5), a folder or file")
    add("--vae", metavar="PATH", help="with --mllm: the Wan 2.1 VAE")
    add("--tokenizer", metavar="DIR", help="with an --mllm that is a single file: the folder of its tokenizer")
    add("--convention", choices=CONVENTIONS, help="how --dit was trained; default: read from the file or its name")
    add("--seed", type=int, metavar="N", help="the same seed gives the same bytes; default: 0")
    add("--steps", type=int, metavar="N", help="sampling steps of each image; default: the model's own")
    add("--guidance", type=float, metavar="G", help="how closely an image follows its text; default: the model's own")
    add("--shift", type=float, metavar="S", help="shift of the sampling schedule; default: the model's own")
    add(
        "--refresh",
        type=int,
        default=1,
        metavar="N",
        help="an approximation, for models with full attention (published Cosmos weights): look at the earlier images "
        "anew in every N-th step only; 1, the default, is exact; no effect on the bundled model",
    )
    add(
        "--size",
        metavar="WxH",
        help="size of the images, in multiples of 16; default: that of the last image, else the model's own",
    )
    add(
        "--max-images",
        type=int,
        metavar="N",
        help=f"maximum number of images in the answer; default: {MAX_IMAGES}, of a plan all that it has",
    )
    add("--max-tokens", type=int, default=1024, metavar="N", help="maximum number of text tokens; default: %(default)s")
    add(
        "--temperature",
        default="0",
        metavar="T",
        help="0: always the likeliest token; above 0: a random one, the more random the higher; model: as the model's "
        "generation_config.json says; default: %(default)s",
    )
    add(
        "--top-p",
        type=float,
        metavar="P",
        help="with --temperature: choose among the likeliest tokens that make up this share; default: the model's own, "
        "else 1",
    )
    add(
        "--top-k",
        type=int,
        metavar="K",
        help="with --temperature: choose among this many of the likeliest tokens, 0 for all; default: the model's own, "
        "else 0",
    )
    add(
        "--min-p",
        type=float,
        metavar="P",
        help="with --temperature: leave out tokens less likely than this share of the likeliest one's probability; "
        "default: the model's own, else 0",
    )
    add(
        "--repetition-penalty",
        type=float,
        metavar="R",
        help="above 1: words that the conversation already has become less likely; default: 1, with --temperature the "
        "model's own",
    )
    add(
        "--requests",
        metavar="FILE",
        help="instead of a request, a file of many: a line of text each, or a line of JSON with prompt, and perhaps "
        "images, seed and out; every answer gets a folder of its own in --out, and what is finished there stays",
    )
    add(
        "--batch",
        type=int,
        default=8,
        metavar="N",
        help="with --requests: answers that are written together, as one batch; default: %(default)s",
    )
    add(
        "--threads",
        type=int,
        metavar="N",
        help="threads on the CPU; default: one for each core. Where other programs use the cores, 1 is much faster",
    )
    add("--json", action="store_true", help="print a summary as JSON instead of the path")
    add("--quiet", action="store_true", help="show no progress on stderr")
    add_control_options(parser)
    add_plan_options(parser)
    add_critic_options(parser)
    add_device_options(parser)


def run(args: argparse.Namespace) -> int:
    interrupt.at_once()
    check_control_options(args)
    check_plan_options(args)
    check_critic_options(args)
    if args.requests is not None:
        from duogen_core.commands.generate_requests import run_requests

        return run_requests(args)
    out = answers.checked_out(args.out)
    with lock_folder(out):
        from duogen_core.document.store import finish_swap

        finish_swap(out)  # left half-way by a run that was killed
        from duogen_core.document.pending import pending_index, planned_stop

        document, settings = _request(args)
        progress = Progress(args.quiet)
        painter = open_painter(args, settings.size)
        if is_planned(args):
            document, stopped = planned_request(args, document, painter, settings.size, progress)
            if stopped:
                return _keep_plan(document, out, progress, args.json)
        if args.max_images is None and pending_index(document) is not None:
            settings = replace(settings, max_images=len(document.last_turn.pictures))
        interrupt.at_once()
        alone = painter is not None and planned_stop(document) is not None  # nothing is written, so nothing is loaded
        critic = open_critic(args, interrupt.requested)
        components = None if alone else answers.load_placed(args, document, settings, progress)
        how = {"painter": painter, "replan": replan(args, components, progress)}
        how |= {"critic": critic, "redraws": args.redraws or 0, "controls": open_controls(args, components)}
        return _answer(components, document, settings, out, progress, args.json, **how)


def _request(args: argparse.Namespace) -> tuple[Document, Settings]:
    """Returns what the user asked for, checked before anything slow begins."""
    prompt = args.prompt or ""
    if not prompt.strip() and not args.plan and (not args.document or args.prompt is not None or args.image):
        raise DuoGenError('The request is empty; write what the answer should be about, for example "Draw a red star."')
    from duogen_core.document import Document, Picture, Text
    from duogen_core.pipeline import check_request

    document = Document()
    if args.document:
        from duogen_core.document.reading import load_document

        document = load_document(args.document)
    seed = args.seed
    if prompt.strip():
        pictures = [Picture.from_file(path) for path in args.image]
        document = document.begin_turn("user", [*pictures, Text(prompt)])
    elif document.turns and document.last_turn.role == "assistant":
        if document.generation.get("stop_reason") == "end" and not args.plan:
            raise DuoGenError(
                f"The answer in {args.document} is complete; write a request to go on with the conversation, for "
                'example "Make the roof blue."'
            )
        known = document.generation.get("seed")  # the same seed as before: the answer continues as it would have
        seed = known if seed is None and isinstance(known, int) and not isinstance(known, bool) else seed
    if not args.plan:
        check_request(document)
    return document, answers.settings_of(args, seed)


def _keep_plan(document: Document, out: Path, progress: Progress, as_json: bool) -> int:
    """Writes an answer whose planning was stopped: as far as it goes, with the images still to be drawn."""
    from duogen_core.document.store import DocumentWriter
    from duogen_core.render import write_rendered

    DocumentWriter(out, overwrite=True).update(document.replace_generation(stop_reason="interrupted"))
    write_rendered(document, out)
    print(_stopped("planned", out), file=sys.stderr)
    print(json.dumps(answers.summary(document, out, 0, progress)) if as_json else out, flush=True)
    return interrupt.EXIT_CODE


def _drawn(pictures: Sequence[Picture]) -> int:
    from duogen_core.document.pending import is_pending

    return sum(not is_pending(picture) for picture in pictures)


def _stopped(what: str, out: Path) -> str:
    """What Ctrl-C has left, and how to go on with it."""
    again = f"{files.program_name} --document {shlex.quote(str(out))} --out {shlex.quote(f'{out}-2')}"
    return f"Stopped. What was {what} is in {out}. To go on, with the other options as they were: {again}"


def _answer(components, document, settings, out: Path, progress: Progress, as_json: bool, **how: Any) -> int:
    from duogen_core.document.pending import pending_index
    from duogen_core.document.store import DocumentWriter
    from duogen_core.pipeline import Callbacks, generate
    from duogen_core.render import write_rendered

    progress.max_images = settings.max_images
    if pending_index(document) is not None and settings.max_images == len(document.last_turn.pictures):
        progress.planned, progress.before = True, _drawn(document.last_turn.pictures)
    answers.say_size(settings, progress, components.config.picture.step if components else PictureSize.step)
    writer = DocumentWriter(out, overwrite=True)
    saved: list[Document] = []

    def save(document: Document) -> None:
        writer.update(document)
        saved[:] = [document]

    tries = Tries(out, how.get("redraws", 0), progress)

    def drawn(k: int, picture: Picture) -> None:
        progress.picture(k, picture.size)
        tries.on_picture(k, picture)

    callbacks = Callbacks(
        on_token=progress.token,
        on_picture_step=progress.picture_step,
        on_picture=drawn,
        on_try=tries.on_try,
        on_document=save,
        on_notice=progress.line,
    )
    before = _drawn(document.pictures)
    progress.picture_started = progress.clock()  # planning and loading are no part of the first image's time
    interrupt.finish()
    try:
        document = generate(components, document, settings, callbacks, interrupt.requested, **how)
        tries.finish(document)
        write_rendered(document, out)
    except KeyboardInterrupt:
        if not saved:
            progress.line("")
            print("Stopped; nothing was written.", file=sys.stderr)
            return interrupt.EXIT_CODE
        document = saved[0]
    except DuoGenError as error:
        if saved:
            raise DuoGenError(f"{error} What was finished before is in {out}.") from error
        raise
    finally:
        progress.end_line()  # the model may have been stopped in the middle of a line
    pictures = _drawn(document.pictures) - before
    stop = document.generation["stop_reason"]
    progress.line(f"{answers.count(pictures, 'image')} in {progress.elapsed():.1f} s, {answers.REASONS[stop]}.")
    if stop == "interrupted":
        print(_stopped("finished", out), file=sys.stderr)
    print(json.dumps(answers.summary(document, out, pictures, progress)) if as_json else out, flush=True)
    return interrupt.EXIT_CODE if stop == "interrupted" else 0
