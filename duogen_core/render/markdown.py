"""Document -> Markdown: the user's words as a quotation, the answer as it was written, pictures in their places.

A Markdown viewer may run HTML and fetch images, so the text loses the power to do either: tags become visible text,
images that the text points at become plain words, and links that are not web or mail addresses are taken apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from markdown_it.common.utils import unescapeAll

from duogen_core.document import Document, Picture
from duogen_core.document.pending import is_pending
from duogen_core.errors import DuoGenError
from duogen_core.render.html import ENDINGS, pending_words
from duogen_core.render.parsing import (
    Stop,
    has_links,
    link_is_safe,
    parser,
    stop_if,
)

if TYPE_CHECKING:
    from markdown_it.token import Token

_TAG = re.compile(r"<(?=[A-Za-z/!?])")
_LINK_BRACKET = re.compile(r"(?<!\\)((?:\\\\)*)\](?=[(\[:])")  # not escaped, and perhaps the end of a link's words
_ADDRESS = re.compile(r"\](?:\(|:)")
LONGEST_ADDRESS = 2000  # of one that is looked at outside of a link
_ENDS_A_PATH = re.compile(r"[\s()<>\"'\\\x00-\x1f\x7f]")


def render_markdown(document: Document, image_paths: Sequence[str], cancelled: Stop = None) -> str:
    """The document as Markdown; `image_paths` are the links of its pictures, in order of appearance.

    Raises Cancelled as soon as `cancelled()` says so."""
    if len(image_paths) != len(document.pictures):
        raise DuoGenError(
            f"The document has {len(document.pictures)} images, but {len(image_paths)} paths were given; "
            "expected one for each."
        )
    paths = iter(enumerate(image_paths, start=1))
    pieces = []
    for turn in document.turns:
        lines = ["*Instructions:*"] if turn.role == "system" and turn.parts else []
        for part in turn.parts:
            stop_if(cancelled)
            if isinstance(part, Picture):
                number, path = next(paths)
                words = harmless(pending_words(part, number), cancelled) if is_pending(part) else ""
                lines.append(words or f"![Image {number}]({_link(path)})")
            elif part.text.strip():
                lines.append(harmless(part.text.strip(), cancelled))
        body = "\n\n".join(lines)
        pieces.append(body if turn.role == "assistant" else _quoted(body))
    ending = ENDINGS.get(str(document.generation.get("stop_reason")))
    if ending:
        pieces.append(f"*{ending}*")
    return "\n\n".join(piece for piece in pieces if piece) + "\n"


def harmless(text: str, cancelled: Stop = None) -> str:
    """Markdown text that can neither run HTML, nor fetch an image, nor link to anything but the web or a mailbox."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\ufffd")
    text = text.expandtabs(4)  # a tab behind the sign of a quotation is narrower, and may turn a word into a code fence
    text = _TAG.sub("&lt;", text)
    text = text.replace("![", "!\\[")
    if not has_links(text):  # too many to look at one by one
        text = text.replace("[", "&#91;")
    elif not _links_are_safe(text, cancelled):
        # Escaped, unless it is: one more backslash would take the power of the one that stands there.
        text = _LINK_BRACKET.sub(r"\1\\]", text)
        if not _links_are_safe(text, cancelled):
            text = text.replace("[", "&#91;")
    return _closed(text, cancelled)


def _closed(text: str, cancelled: Stop) -> str:
    """Closes a code fence that was left open: it would swallow the pictures and the text that follow."""
    last = parser(has_links(text)).parse(f"{text}\n\nend", {"cancelled": cancelled})[-1]
    return f"{text}\n{last.markup}" if last.type == "fence" else text


def _links_are_safe(text: str, cancelled: Stop) -> bool:
    """Whether no reader of Markdown finds a link in the text that is not one to the web or to a mailbox.

    Readers differ: some know no tables, or drop the cells that a row has too many; each has rules of its own for what
    is code, and some take a line's end inside an address. So the text is read with tables and without; and whatever
    looks like the address of a link, wherever it stands, must at least name nothing that a browser would run or open.
    """
    if "](" not in text and "]:" not in text:
        return True
    environment: dict[str, Any] = {"cancelled": cancelled}
    with_tables, without = (parser(True, every_link=True, tables=tables) for tables in (True, False))
    found = _links([*with_tables.parse(text, environment), *without.parse(text, environment)])
    # A definition that nothing uses here may be used by the text of another part: the parts end up in one file.
    found += [reference["href"] for reference in environment.get("references", {}).values()]
    for match in _ADDRESS.finditer(text):
        address = text[match.end() : match.end() + LONGEST_ADDRESS].replace("\n", "").lstrip(" \t<")
        if _names_a_scheme(unescapeAll(re.split(r"[ \t]", address, maxsplit=1)[0])):
            return False
    return all(map(link_is_safe, found))


def _links(blocks: Iterable[Token]) -> list[str]:
    """Where the links of parsed text lead, entities and escapes resolved."""
    return [str(token.attrGet("href")) for block in blocks for token in _inside(block) if token.type == "link_open"]


def _names_a_scheme(url: str) -> bool:
    """Whether an address names what opens it, and that is not the web or a mailbox. Browsers pass over blanks in it."""
    bare = re.sub(r"[\x00-\x20]|%[01][0-9a-f]|%20", "", url.lower())
    return re.match(r"[a-z][a-z0-9+.-]*:", bare) is not None and not link_is_safe(bare)


def _inside(token: Token) -> Iterator[Token]:
    for child in token.children or ():
        yield child
        yield from _inside(child)  # the words of an image


def _link(path: str) -> str:
    """A path as the destination of a link: whatever would end the destination is percent-encoded."""
    return _ENDS_A_PATH.sub(lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8")), path)


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.split("\n")) if text else ""
