"""When memory runs out in the middle of an answer: once more, leaner, and said so; then one sentence.

    pixels = retry(lambda: sampler.draw(...), leaner, what="drawing image 3", say=progress.line)

`leaner` frees what is cached, takes less room from now on, and returns the sentence that tells it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from duogen_core.errors import DuoGenError, is_out_of_memory

T = TypeVar("T")


def warn(text: str) -> None:
    """Tells what the user should know where nobody listens: on stderr, unless logging is set up otherwise."""
    logging.getLogger("duogen_core").warning(text)


def retry(work: Callable[[], T], leaner: Callable[[], str], *, what: str, say: Callable[[str], None] = warn) -> T:
    """Runs work(); where memory runs out, once more after leaner()."""
    try:
        return work()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    # Outside of `except`, because the exception's frames hold the tensors that are to be freed.
    say(leaner())
    try:
        return work()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    leaner()
    raise DuoGenError(
        f"Memory ran out twice while {what}; draw smaller images, take a smaller model or one in fewer bits, or close "
        "other programs. On a graphics card, --offload layers needs the least."
    )


def without_repeats(on_text: Callable[[str], None] | None) -> Callable[[], Callable[[str], None] | None]:
    """For a text that is streamed again on a second try: each call returns a stream that passes on only new text."""
    sent = 0

    def new_stream() -> Callable[[str], None] | None:
        position = 0

        def put(piece: str) -> None:
            nonlocal position, sent
            position += len(piece)
            if position > sent:
                on_text(piece[len(piece) - (position - sent) :])
                sent = position

        return put if on_text is not None else None

    return new_stream
