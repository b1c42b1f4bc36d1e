"""review: a critic looks at the images of a finished answer; with --redraws, those it refuses are drawn again.

Without --redraws nothing is written: a table on stdout, or JSON with --json. With it, the answer is written to --out:
images that the critic is content with as they are, the others as the best of their tries, later ones in view of them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duogen_core import interrupt
from duogen_core.checkpoint import DEFAULT_MODEL
from duogen_core.commands import answers
from duogen_core.commands.critic_options import (
    Tries,
    add_critic_options,
    check_critic_options,
    open_critic,
    verdict,
)
from duogen_core.commands.progress import Progress, harmless
from duogen_core.device_options import add_device_options
from duogen_core.errors import DuoGenError
from duogen_core.files import lock_folder
from duogen_core.review import TRIES, Critic, Try, best, draw_reviewed, record

if TYPE_CHECKING:
    import numpy as np

    from duogen_core.document import Document, Picture

WIDE = 100  # characters of what is wrong, in the table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("document", metavar="DOCUMENT", help="the answer to look at: the folder or .zip of a document")
    add("--out", metavar="DIR", help="with --redraws: the folder to write the better answer to")
    add(
        "--model",
        default=None,
        metavar="NAME_OR_PATH",
        help=f"with --redraws: the DuoGen model that draws again; default: {DEFAULT_MODEL}",
    )
    add("--threads", type=int, metavar="N", help="threads on the CPU; default: one for each core")
    add("--json", action="store_true", help="print the reviews as JSON instead of a table")
    add("--quiet", action="store_true", help="show no progress on stderr")
    add_critic_options(parser, required=True)
    add_device_options(parser)
    # A model of published files is told to `generate`; here there is one option for the model.
    parser.set_defaults(mllm=None, dit=None, vae=None, tokenizer=None, convention=None)


def run(args: argparse.Namespace) -> int:
    interrupt.at_once()
    check_critic_options(args)
    if bool(args.redraws) != bool(args.out):
        raise DuoGenError("--redraws and --out belong together: give the folder to write the redrawn answer to.")
    from duogen_core.document.reading import load_document

    document = load_document(args.document)
    if not document.turns or document.last_turn.role != "assistant" or not document.last_turn.pictures:
        raise DuoGenError(f"{args.document} ends with no answer that has images; there is nothing to review.")
    progress = Progress(args.quiet)
    if not args.redraws:
        return _look(args, document, progress)
    out = answers.checked_out(args.out)
    with lock_folder(out):
        from duogen_core.document.store import finish_swap

        finish_swap(out)
        return _redraw(args, document, out, progress)


def drawn_pictures(document: Document) -> Iterator[tuple[int, Document]]:
    """Yields, of each drawn image of the last answer, which part it is, and the document as it was when it was due."""
    from duogen_core.document import Picture
    from duogen_core.document.pending import CAPTION, is_pending, with_caption, with_last_turn

    for index, part in enumerate(document.last_turn.parts):
        if isinstance(part, Picture) and not is_pending(part):
            before = with_last_turn(document, replace(document.last_turn, parts=document.last_turn.parts[:index]))
            yield index, with_caption(before, str(part.meta.get(CAPTION) or ""))


def _look(args: argparse.Namespace, document: Document, progress: Progress) -> int:
    from duogen_core.document.pending import looks_at
    from duogen_core.picture_sampling import asked_of
    from duogen_core.review import reviewed

    critic = open_critic(args, interrupt.requested)
    interrupt.raising()
    rows: list[dict[str, Any]] = []
    for number, (index, before) in enumerate(drawn_pictures(document), 1):
        picture = document.last_turn.parts[index]
        review = reviewed(critic, asked_of(before, picture, looks_at=looks_at(picture)), progress.line)
        one = Try(picture, seed_of(picture, document, number), "", review)
        rows.append({"image": number, **record([one])[0]})
        progress.line(f"  image {number}: {verdict(one)}")
    _say(rows, args.json)
    return 0


def _redraw(args: argparse.Namespace, document: Document, out: Path, progress: Progress) -> int:
    import torch

    from duogen_core.document.pending import SIZE
    from duogen_core.document.store import DocumentWriter
    from duogen_core.picture_sampling import PictureSampler, redraw_request
    from duogen_core.render import write_rendered
    from duogen_core.settings import Settings

    known = document.generation
    settings = Settings(**{name: known[name] for name in ("steps", "guidance", "shift") if name in known})
    critic = open_critic(args, interrupt.requested)
    components = answers.load_placed(args, document, settings, progress)
    settings = settings.resolved(components.config)
    sampler, conversation = PictureSampler(components, settings), components.mllm.prompted is None

    def draw(before: Document, picture: Picture, seed: int, prompt: str, number: int) -> np.ndarray:
        asked = redraw_request(before, prompt, number, conversation) if prompt else before
        due = replace(picture, meta={**picture.meta, SIZE: list(picture.size)})  # as large as it is
        return sampler.draw(asked, seed, cancelled=interrupt.requested, due=due)

    tries = Tries(out, args.redraws, progress)
    writer = DocumentWriter(out, overwrite=True)
    interrupt.finish()
    with torch.inference_mode():
        document, rows, stopped = redrawn(document, critic, args.redraws, draw, tries, writer.update, progress.line)
    tries.finish(document)
    write_rendered(document, out)
    if stopped:
        print(f"Stopped. What was finished is in {out}.", file=sys.stderr)
    if args.json:
        _say(rows, True)
    else:
        _say(rows, False)
        print(out, flush=True)
    return interrupt.EXIT_CODE if stopped else 0


def redrawn(
    document: Document,
    critic: Critic,
    redraws: int,
    draw: Callable[[Document, Picture, int, str, int], np.ndarray],
    tries: Tries,
    keep: Callable[[Document], None],
    say: Callable[[str], None],
) -> tuple[Document, list[dict[str, Any]], bool]:
    """Returns the document with the best try of each image, what is told of them, and whether it was stopped."""
    from duogen_core.document.pending import looks_at, with_last_turn
    from duogen_core.picture_sampling import asked_of

    rows: list[dict[str, Any]] = []
    keep(document)
    for number in range(1, sum(1 for _ in drawn_pictures(document)) + 1):
        index, before = list(drawn_pictures(document))[number - 1]  # earlier images may be new ones by now
        picture = document.last_turn.parts[index]
        made, stopped = draw_reviewed(
            partial(draw, before, picture), partial(asked_of, before, looks_at=looks_at(picture)), critic, redraws,
            seed_of(picture, document, number), first=picture, on_try=partial(tries.on_try, number - 1), say=say,
        )  # fmt: skip
        kept, told = made[best(made)], record(made)
        meta = {**picture.meta, "seed": kept.seed, TRIES: told}
        if kept.picture is picture and "seed" not in picture.meta:
            del meta["seed"]  # nobody knows it
        parts = list(document.last_turn.parts)
        parts[index] = replace(kept.picture, meta=meta)
        document = with_last_turn(document, replace(document.last_turn, parts=tuple(parts)))
        keep(document)
        tries.on_picture(number - 1, parts[index])
        rows.append({"image": number, "tries": len(made), **told[best(made)]})
        if stopped or interrupt.requested():
            return document, rows, True
    return document, rows, False


def seed_of(picture: Picture, document: Document, number: int) -> int:
    """The seed of an image: its own, else one that is derived as for a new answer."""
    from duogen_core.picture_sampling import picture_seed
    from duogen_core.settings import MAX_SEED

    for known, of in ((picture.meta.get("seed"), None), (document.generation.get("seed"), number - 1), (0, number - 1)):
        if isinstance(known, int) and not isinstance(known, bool) and 0 <= known <= MAX_SEED:
            return known if of is None else picture_seed(known, of)
    return 0


def _say(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"images": rows}, indent=1, ensure_ascii=False), flush=True)
        return
    print("image  good  score  what is wrong")
    for row in rows:
        good = "?" if "shows" not in row else "yes" if row["shows"] and row["same_cast"] else "no"
        score = f"{row['score']:.2f}" if "score" in row else "?"
        wrong = " ".join(harmless(row.get("wrong", "not judged")).split())
        wrong = wrong if len(wrong) <= WIDE else f"{wrong[:WIDE]}…"
        print(f"{row['image']:>5}  {good:<4}  {score:>5}  {wrong}".rstrip(), flush=True)
