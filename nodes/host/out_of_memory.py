"""When memory runs out: everything is freed, and the work is done once more with less of the models on the card.

In: the work, and how to do it leaner. Out: its result; or, when memory runs out again, a sentence. ComfyUI loads as
much of a model as it thinks fits beside what a run needs; the estimate may be too small, or others use the card too.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import comfy.model_management as mm

from duogen_core.errors import DuoGenError

T = TypeVar("T")
FACTOR = 4.0  # how much more room than estimated the second try keeps free
SAID = "Memory ran out; trying once more with less of the model on the card."
# What PyTorch says when the computer's own memory ends, which is no error class of its own.
ALLOCATOR = ("not enough memory", "can't allocate memory", "cannot allocate memory")


def out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or mm.is_oom(error):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in ALLOCATOR)


def twice(work: Callable[[float], T], *, what: str, advice: str, say: Callable[[str], None] | None = None) -> T:
    """work(factor) does it with `factor` times the estimated room. what, advice: for the sentence."""
    try:
        return work(1.0)
    except Exception as error:
        if not out_of_memory(error):
            raise
    # Only here are the tensors gone that the exception's frames held.
    free()
    logging.warning("DuoGen: %s", SAID)
    if say is not None:
        say(SAID)
    try:
        return work(FACTOR)
    except Exception as error:
        if not out_of_memory(error):
            raise
    free()
    raise DuoGenError(f"Memory ran out twice while {what}; {advice}.")


def free() -> None:
    """Everything that ComfyUI holds on the card goes; it comes back when it is needed."""
    gc.collect()
    mm.unload_all_models()
    mm.soft_empty_cache()


@contextmanager
def estimate_times(model: Any, factor: float) -> Iterator[None]:
    """A MODEL that asks for `factor` times the memory, so that less of it is loaded and branches run one by one."""
    inner = model.model
    before = inner.memory_usage_factor
    inner.memory_usage_factor = before * factor
    try:
        yield
    finally:
        inner.memory_usage_factor = before


def skipping(on_text: Callable[[str], None] | None) -> Callable[[], Callable[[str], None] | None]:
    """For a text that is streamed a second time: each call gives a stream of which only what is new goes on."""
    sent = 0

    def again() -> Callable[[str], None] | None:
        position = 0

        def put(piece: str) -> None:
            nonlocal position, sent
            position += len(piece)
            if position > sent:
                on_text(piece[len(piece) - (position - sent) :])
                sent = position

        return put if on_text is not None else None

    return again
