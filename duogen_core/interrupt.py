"""Ctrl-C for the command line, at any moment: nothing finished is lost, and no traceback is shown.

Three ways to take it, in the order of a run:
    at_once()   while modules are imported and weights loaded: leave on the spot. Raising KeyboardInterrupt there is not
                reliable, because libraries turn an exception in the middle of an import into another one.
    finish()    while an answer is made: the first Ctrl-C only sets `requested()`, which the loop looks at between two
                tokens or sampling steps; the second one raises KeyboardInterrupt.
    raising()   Python's own way, for commands that look after themselves.
A process that was started with SIGINT ignored (a background job of a shell) keeps ignoring it.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable

from duogen_core.files import unlock_all

EXIT_CODE = 130  # 128 + SIGINT, as shells expect

_asked = False


def at_once(message: str = "Stopped; nothing was written.") -> None:
    def leave(_signal, _frame) -> None:
        unlock_all()
        os.write(2, f"\n{message}\n".encode())
        os._exit(EXIT_CODE)

    _install(leave)


def finish(message: str = "Stopping; press Ctrl-C again to stop at once.") -> None:
    global _asked
    _asked = False

    def note(_signal, _frame) -> None:
        global _asked
        if _asked:
            raise KeyboardInterrupt
        _asked = True
        os.write(2, f"\n{message}\n".encode())

    _install(note)


def raising() -> None:
    _install(signal.default_int_handler)


def requested() -> bool:
    """Whether the user has asked to stop since finish()."""
    return _asked


def current() -> object:
    """What Ctrl-C does now, to be given back to restore()."""
    return signal.getsignal(signal.SIGINT)


def restore(handler) -> None:
    _install(handler)


def _install(handler: Callable) -> None:
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        return
    # Outside the main thread (a test, an embedding program) Ctrl-C is not ours to take: signal raises ValueError.
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, handler)
