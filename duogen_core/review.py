"""What a critic is asked and what it says, and how an image that it refuses is drawn again.

A critic is anything with `review(asked) -> Review`. It gets what a reader of the answer has, and nothing else: the
request, the text that the image stands with, what the painter was asked for, and the images. Critics:
`duogen_core.planning.critic` (a model that sees), `duogen_core.planning.interleave_thinker`,
`duogen_core.sketchbook.critic` (the exact checker of the bundled model's world).

`draw_reviewed` draws, lets the critic look, and draws again with another seed and the critic's better prompt, until the
critic is content or the redraws are spent. The image with the highest score is kept, of equals the first. `record` is
what the kept image's meta says of all tries; docs/documents.md tells where the others lie.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np

from duogen_core.document import Picture, valid_unicode
from duogen_core.errors import Cancelled, DuoGenError

TRIES = "tries"  # in the meta of a kept image, and the folder of those that were not kept
MAX_REDRAWS = 100


@dataclass(frozen=True)
class Asked:
    """What a critic looks at."""

    request: str  # what the user asked for in the last turn of theirs
    text: str  # what the answer says since its last image: this image shows it
    prompt: str  # what the painter was to show: a caption, else the text
    picture: Picture  # the new image
    earlier: tuple[Picture, ...] = ()  # all images before it in the conversation, the user's included
    tried: str = ""  # the better prompt that this try was drawn from; "": the prompt itself
    cast: tuple[tuple[str, str], ...] = ()  # who and what stays the same: (name, looks)


@dataclass(frozen=True)
class Review:
    """What a critic says. wrong and prompt are text of a model, as hostile as any."""

    shows: bool  # the image shows what it is to show
    same_cast: bool = True  # who and what it has in common with earlier images looks the same
    wrong: str = ""  # what is wrong, in a sentence; "" where nothing is
    prompt: str = ""  # a better prompt; "" where there is none
    score: float = 1.0  # 0 … 1: the best of several tries is kept

    def __post_init__(self) -> None:  # both come to stand in the image's meta
        object.__setattr__(self, "wrong", valid_unicode(self.wrong))
        object.__setattr__(self, "prompt", valid_unicode(self.prompt))

    @property
    def good(self) -> bool:
        return self.shows and self.same_cast


class Critic(Protocol):
    def review(self, asked: Asked) -> Review:
        """Raises a DuoGenError where it cannot tell: the image is kept as it is then."""


@dataclass(frozen=True)
class Try:
    picture: Picture  # pixels alone; without a meta
    seed: int
    prompt: str  # the better prompt that it was drawn from; "": the image's own
    review: Review | None  # None: the critic could not tell


def redraw_seed(seed: int, number: int) -> int:
    """Returns the seed of try `number` of an image (0: the first, which has the image's own seed); below 2^53."""
    if number == 0:
        return seed
    return int.from_bytes(blake2b(f"{seed} try {number}".encode(), digest_size=8).digest(), "big") >> 11


def draw_reviewed(
    draw: Callable[[int, str, int], np.ndarray],
    asked: Callable[[Picture, str], Asked],
    critic: Critic,
    redraws: int,
    seed: int,
    *,
    first: Picture | None = None,
    on_try: Callable[[int, Try], None] = lambda number, one: None,
    say: Callable[[str], None] = lambda sentence: None,
) -> tuple[list[Try], bool]:
    """Returns the tries in order, and whether a cancel ended them. Raises Cancelled where not one image was finished.

    draw(seed, prompt, number) -> uint8 [H, W, 3]; prompt "" for the image's own, number of the try, from 0; it may
    raise Cancelled. asked(picture, prompt) -> what the critic gets. first: an image that is there already; it counts as
    the first try. on_try: called with the number of the try after every review.
    """
    if not 0 <= redraws <= MAX_REDRAWS:
        raise DuoGenError(f"The number of redraws must be between 0 and {MAX_REDRAWS}, not {redraws}.")
    tries: list[Try] = []
    prompt = ""
    for number in range(redraws + 1):
        own = redraw_seed(seed, number)
        try:
            picture = first if number == 0 and first is not None else Picture(draw(own, prompt, number))
        except Cancelled:
            if not tries:
                raise
            return tries, True
        tries.append(Try(picture, own, prompt, reviewed(critic, asked(picture, prompt), say)))
        on_try(number, tries[-1])
        review = tries[-1].review
        if review is None or review.good:
            break
        prompt = review.prompt or prompt
    return tries, False


def reviewed(critic: Critic, asked: Asked, say: Callable[[str], None]) -> Review | None:
    """Asks the critic. One that cannot tell, or is not there any more, costs its opinion and never the image."""
    try:
        return critic.review(asked)
    except Cancelled:
        return None
    except DuoGenError as error:
        say(f"The critic did not judge the image, which stays as it is: {error}")
        return None


def best(tries: Sequence[Try]) -> int:
    """Returns which try to keep: one that the critic is content with, else the one with the highest score."""
    worth = [(0, 0.0) if one.review is None else (int(one.review.good), one.review.score) for one in tries]
    return max(range(len(tries)), key=lambda number: (worth[number], -number))


def tries_of(picture: Picture) -> list[dict[str, Any]]:
    """Returns the record of an image's tries; what a file of somebody else says that is none is left out."""
    entries = picture.meta.get(TRIES)
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def record(tries: Sequence[Try]) -> list[dict[str, Any]]:
    """Returns what the meta of the kept image says under TRIES: one entry a try, in order.

    image: the name, without ".png", under which a folder keeps a try that was not kept (`Picture.digest`, shortened).
    """
    kept, entries = best(tries), []
    for number, one in enumerate(tries):
        entry: dict[str, Any] = {"seed": one.seed}
        if one.review is not None:
            entry["score"] = round(float(one.review.score), 4)
            entry |= {"shows": one.review.shows, "same_cast": one.review.same_cast, "wrong": one.review.wrong}
        entry["prompt"] = one.prompt
        entries.append({**entry, **({"kept": True} if number == kept else {"image": try_name(one.picture)})})
    return entries


def try_name(picture: Picture) -> str:
    return picture.digest[:32]
