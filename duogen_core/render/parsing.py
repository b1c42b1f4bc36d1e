"""Markdown of a model, parsed in bounded time: what HTML, Markdown and PDF have in common.

Text of a model is hostile until shown otherwise, and its length is the only thing that may decide how long it takes.
Parsers of Markdown look for the end of every bracket, and for the brackets inside it, so that `[a][` ten thousand times
takes seconds and a hundred thousand times many minutes. A text with more than MAX_BRACKETS of them has no links: its
brackets are shown as they are. Lists and quotations in one another are read to a depth of MAX_NESTING.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from markdown_it import MarkdownIt

from duogen_core.errors import Cancelled

LINK_SCHEMES = ("http", "https", "mailto")
MAX_BRACKETS = 1000
MAX_NESTING = 20

Stop = Callable[[], bool] | None  # asked again and again: whether the user wants the work to stop


def link_is_safe(url: str) -> bool:
    """Whether a link may be clickable: an address of the web or of a mailbox, nothing a browser would run or open."""
    try:
        return urlsplit(url).scheme.lower() in LINK_SCHEMES
    except ValueError:
        return False


def stop_if(cancelled: Stop) -> None:
    if cancelled is not None and cancelled():
        raise Cancelled


def has_links(text: str) -> bool:
    """Whether links are looked for in this text at all."""
    return text.count("[") <= MAX_BRACKETS


@lru_cache(maxsize=16)
def parser(links: bool, *, every_link: bool = False, tables: bool = True, breaks: bool = False) -> MarkdownIt:
    """CommonMark with strikethrough and tables, HTML off. every_link: also those that are not safe.

    What is parsed may be given up: `parse(text, {"cancelled": function})`.
    """
    made = MarkdownIt("js-default", {"html": False, "linkify": False, "breaks": breaks, "maxNesting": MAX_NESTING})
    made.validateLink = (lambda url: True) if every_link else link_is_safe  # type: ignore[method-assign]
    if not links:
        made.disable(["link", "image", "reference"])
    if not tables:
        made.disable("table")
    # Two rules that match nothing: they are asked at every line and every piece of a line.
    made.block.ruler.before("code", "cancel", _asked_at_line, {"alt": ["paragraph", "reference", "blockquote", "list"]})
    made.inline.ruler.before("text", "cancel", _asked_at_piece)
    return made


def _asked_at_line(state: Any, _start: int, _end: int, _silent: bool) -> bool:
    stop_if(state.env.get("cancelled"))
    return False


def _asked_at_piece(state: Any, _silent: bool) -> bool:
    stop_if(state.env.get("cancelled"))
    return False
