"""Adds the options of commands that let a critic look at images, and keeps what it refuses beside the document.

    --critic sketchbook                                        the exact checker of the bundled model's world
    --critic FOLDER                                            a model that sees, run here
    --critic http://127.0.0.1:8000/v1 --critic-model NAME      a model that sees, on a server

In: the parsed options. Out: a `duogen_core.review.Critic`, and `Tries`, the callbacks of `pipeline.generate`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from duogen_core.commands.progress import Progress, harmless
from duogen_core.errors import DuoGenError
from duogen_core.review import MAX_REDRAWS, Critic, Try, tries_of, try_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from duogen_core.document import Document, Picture

SKETCHBOOK = "sketchbook"
SHOWN = 160  # characters of what a critic says, in a line of the progress


def add_critic_options(parser: argparse.ArgumentParser, required: bool = False) -> None:
    add = parser.add_argument_group("critic").add_argument
    add(
        "--critic",
        required=required,
        metavar="MODEL",
        help="who looks at every image: the folder or file of a model that sees (Qwen-VL), the address of a server, or "
        f"{SKETCHBOOK}, the exact checker of the bundled model's world",
    )
    add("--critic-model", default="", metavar="NAME", help="the name of the critic on its server")
    add(
        "--critic-key-variable",
        default="",
        metavar="VAR",
        help="the environment variable that holds the key of the critic's server",
    )
    add(
        "--redraws",
        type=int,
        metavar="N",
        help="how often an image that the critic refuses is drawn again; the best one is kept; default: 0",
    )


def check_critic_options(args: argparse.Namespace) -> None:
    """Everything that can be said before anything slow begins."""
    if args.redraws is not None and not 0 <= args.redraws <= MAX_REDRAWS:
        raise DuoGenError(f"--redraws must be between 0 and {MAX_REDRAWS}, not {args.redraws}.")
    unused = next((name for name in ("critic_model", "critic_key_variable", "redraws") if getattr(args, name)), None)
    if args.critic is None and unused:
        raise DuoGenError(f"--{unused.replace('_', '-')} is about a critic; name one with --critic.")
    if args.critic == SKETCHBOOK and (args.critic_model or args.critic_key_variable):
        raise DuoGenError(f"--critic {SKETCHBOOK} is no server; leave out --critic-model and --critic-key-variable.")


def open_critic(args: argparse.Namespace, cancelled: Callable[[], bool] | None = None) -> Critic | None:
    if args.critic is None:
        return None
    if args.critic == SKETCHBOOK:
        from duogen_core.sketchbook.critic import SketchbookCritic

        return SketchbookCritic()
    from duogen_core.device_options import placement_of
    from duogen_core.llm.opening import open_model
    from duogen_core.planning.critic import critic_of

    how = {"model_name": args.critic_model, "key_variable": args.critic_key_variable}
    return critic_of(open_model(args.critic, placement=placement_of(args), **how), cancelled)


class Tries:
    """Says how each try went, and writes those that were not kept into the folder `tries` beside the images."""

    def __init__(self, out: Path, redraws: int, progress: Progress) -> None:
        self.out, self.redraws, self.progress = out, redraws, progress
        self.waiting: dict[int, list[Try]] = {}

    def on_try(self, k: int, number: int, one: Try) -> None:
        self.waiting.setdefault(k, []).append(one)
        self.progress.line(
            f"  image {self.progress.before + k + 1}: try {number + 1} of {self.redraws + 1}, {verdict(one)}"
        )

    def on_picture(self, k: int, picture: Picture) -> None:
        """The image is chosen, and lies in the folder: the others go beside it."""
        from duogen_core.document.store import save_try

        refused = {str(entry.get("image")) for entry in tries_of(picture)}
        for one in self.waiting.pop(k, ()):
            if try_name(one.picture) in refused:
                save_try(self.out, one.picture, try_name(one.picture))

    def finish(self, document: Document) -> None:
        """Removes refused images of an earlier answer in this folder."""
        from duogen_core.document.store import discard_tries

        discard_tries(self.out, {str(one.get("image")) for picture in document.pictures for one in tries_of(picture)})


def verdict(one: Try) -> str:
    """What the critic says of a try, in a few words."""
    if one.review is None:
        return "not judged"
    if one.review.good:
        return f"good ({one.review.score:.2f})"
    wrong = " ".join(harmless(one.review.wrong).split())
    return f"refused ({one.review.score:.2f}): {wrong if len(wrong) <= SHOWN else f'{wrong[:SHOWN]}…'}"
