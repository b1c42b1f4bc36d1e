"""Document -> Markdown: the user's words as a quotation, the answer as it was written, pictures in their places.

A Markdown viewer may run HTML and fetch images, so the text loses the power to do either: tags become visible text,
images that the text points at become plain words, and links that are not web or mail addresses are taken apart.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from markdown_it import MarkdownIt

from duogen_core.document import Document, Picture
from duogen_core.errors import DuoGenError
from duogen_core.render.html import ENDINGS, link_is_safe

_TAG = re.compile(r"<(?=[A-Za-z/!?])")
_ENDS_A_PATH = re.compile(r"[\s()<>\"'\\\x00-\x1f\x7f]")


def render_markdown(document: Document, image_paths: Sequence[str]) -> str:
    """The document as Markdown; `image_paths` are the links of its pictures, in order of appearance."""
    if len(image_paths) != len(document.pictures):
        raise DuoGenError(
            f"The document has {len(document.pictures)} pictures, but {len(image_paths)} paths were given; "
            "expected one for each."
        )
    paths = iter(enumerate(image_paths, start=1))
    pieces = []
    for turn in document.turns:
        lines = ["*Instructions:*"] if turn.role == "system" and turn.parts else []
        for part in turn.parts:
            if isinstance(part, Picture):
                number, path = next(paths)
                lines.append(f"![Picture {number}]({_link(path)})")
            elif part.text.strip():
                lines.append(harmless(part.text.strip()))
        body = "\n\n".join(lines)
        pieces.append(body if turn.role == "assistant" else _quoted(body))
    ending = ENDINGS.get(str(document.generation.get("stop_reason")))
    if ending:
        pieces.append(f"*{ending}*")
    return "\n\n".join(piece for piece in pieces if piece) + "\n"


def harmless(text: str) -> str:
    """Markdown text that can neither run HTML, nor fetch an image, nor link to anything but the web or a mailbox."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\ufffd")
    text = text.expandtabs(4)  # a tab behind the sign of a quotation is narrower, and may turn a word into a code fence
    text = _TAG.sub("&lt;", text)
    text = text.replace("![", "!\\[")
    if not all(map(link_is_safe, _links(text))):
        text = re.sub(r"\](?=[(\[:])", r"\]", text)
    return _closed(text)


def _closed(text: str) -> str:
    """Close a code fence that was left open: it would swallow the pictures and the text that follow."""
    last = _permissive().parse(f"{text}\n\nend")[-1]
    return f"{text}\n{last.markup}" if last.type == "fence" else text


def _links(text: str) -> list[str]:
    """Where the links of a text lead, entities and escapes resolved, as a reader of Markdown sees them."""
    found: list[str] = []
    parser = _permissive()
    environment: dict[str, dict[str, dict[str, str]]] = {}
    for block in parser.parse(text, environment):
        for token in block.children or ():
            if token.type == "link_open":
                found.append(str(token.attrGet("href")))
    # A definition that nothing uses here may be used by the text of another part: the parts end up in one file.
    found += [reference["href"] for reference in environment.get("references", {}).values()]
    return found


@lru_cache(maxsize=1)
def _permissive() -> MarkdownIt:
    parser = MarkdownIt("js-default", {"html": False, "linkify": False})
    parser.validateLink = lambda url: True  # type: ignore[method-assign]
    return parser


def _link(path: str) -> str:
    """A path as the destination of a link: whatever would end the destination is percent-encoded."""
    return _ENDS_A_PATH.sub(lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8")), path)


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.split("\n")) if text else ""
