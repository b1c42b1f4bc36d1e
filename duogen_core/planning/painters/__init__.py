"""What a painter reads for a picture of a plan, one small file a kind of painter:

    edit              models that edit, with earlier pictures in view: Qwen-Image-Edit, FLUX.2, OmniGen2
    text_to_picture   models that know words alone
    conversation      DuoGen's own: the text of the answer stands before the picture, and is what it draws

Adding a kind = a file with `prompt(plan, number, seen, users) -> str` and a line in PAINTERS.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from duogen_core.errors import DuoGenError

if TYPE_CHECKING:
    from duogen_core.planning.plan import Plan, Reference

EDIT, TEXT, CONVERSATION = "edit", "text", "conversation"
PAINTERS = {EDIT: "edit", TEXT: "text_to_picture", CONVERSATION: "conversation"}
Prompt = Callable[["Plan", int, "Sequence[Reference]", int], str]


def prompt_for(painter: str) -> Prompt:
    """Returns the function that composes what this kind of painter reads."""
    if painter not in PAINTERS:
        raise DuoGenError(f"There is no kind of painter {painter!r:.40}; choose one of: {', '.join(PAINTERS)}.")
    return import_module(f"{__name__}.{PAINTERS[painter]}").prompt
