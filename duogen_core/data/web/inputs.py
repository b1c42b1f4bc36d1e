"""What the engine reads: an Input lists its pages by name, and gives pages and the pictures they show.

A name means the same page at any time, so a plan made of names can be gone on with.
"""

from __future__ import annotations

import base64
import binascii
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

from duogen_core.data.runs.file_digests import FileDigests
from duogen_core.data.web.page import Page, Walk

PAGES = (".html", ".htm", ".xhtml", ".mhtml", ".mht")


@dataclass(frozen=True)
class Found:
    """The bytes of a picture, or the rule that kept it from being read. url: where it came from."""

    data: bytes = field(default=b"", repr=False)
    url: str = ""
    rule: str = ""
    value: str | int = ""


class Input(ABC):
    """One source of pages. `max_bytes` caps are given by whoever asks."""

    path: Path

    @abstractmethod
    def names(self) -> Iterator[str]:
        """Every page's name, in an order that never changes."""

    @abstractmethod
    def page(self, name: str, max_bytes: int) -> Page:
        """A page; its body may be one byte longer than max_bytes, which says that it is too long."""

    @abstractmethod
    def picture(self, page: Page, walk: Walk, source: str, max_bytes: int) -> Found:
        """The bytes behind one address of a picture of a page."""

    @abstractmethod
    def identity(self, digests: FileDigests) -> dict[str, Any]:
        """Small JSON that changes when anything in the input does."""


def embedded(address: str, max_bytes: int) -> Found:
    """A picture that stands in the page itself, as data:image/…;base64,…"""
    head, comma, text = address[5:].partition(",")
    kind = head.partition(";")[0].strip().lower()
    if not comma or not (kind.startswith("image/") or not kind):
        return Found(rule="refused_link", value=f"data:{kind[:40]}")
    if kind == "image/svg+xml":
        return Found(rule="svg", value="data:")
    if len(text) > max_bytes * 4 // 3 + 100:
        return Found(rule="too_many_bytes", value=len(text) * 3 // 4)
    data = unquote_to_bytes(text)
    if "base64" in head.lower():
        try:
            data = base64.b64decode(b"".join(data.split()) + b"==")
        except (binascii.Error, ValueError):
            return Found(rule="broken", value="base64")
    return Found(data, f"data:{kind}")
