"""The bytes of a page -> text, as a browser would guess, and never an error.

In order: a byte order mark; UTF-8 if the bytes are valid UTF-8 (a wrong declaration is more common than a text in
another encoding that happens to be valid UTF-8); the charset of the HTTP header; the one the page states; Windows-1252.
"""

from __future__ import annotations

import codecs
import re

BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
STATED = re.compile(rb"""(?:charset|encoding)\s*=\s*["']?\s*([A-Za-z0-9_.:-]{2,40})""")
HEAD = 4096  # bytes in which a page states its charset
CODECS = {"iso8859-1": "cp1252", "ascii": "cp1252", "gb2312": "gb18030"}  # what browsers take them for
REFUSED = ("utf-7", "unicode_escape", "raw_unicode_escape", "idna", "punycode", "undefined")
CONTROL = dict.fromkeys([*range(9), 11, *range(14, 32), 127])  # not tab, line feed, form feed, carriage return


def decode_page(body: bytes, content_type: str = "") -> str:
    """The text of a page; what cannot be decoded becomes U+FFFD. Control characters are gone."""
    return _decode(body, content_type).translate(CONTROL)


def _decode(body: bytes, content_type: str) -> str:
    for mark, encoding in BOMS:
        if body.startswith(mark):
            return body[len(mark) :].decode(encoding, "replace")
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError:
        pass
    stated = STATED.search(content_type.encode("utf-8", "replace")) or STATED.search(body[:HEAD])
    return body.decode(text_encoding(stated.group(1).decode()) if stated else "cp1252", "replace")


def text_encoding(label: str) -> str:
    """The codec of a charset label. Labels that no browser takes, or that are no text encoding, are Windows-1252."""
    try:
        info = codecs.lookup(label)
    except (LookupError, ValueError):
        return "cp1252"
    if not getattr(info, "_is_text_encoding", True) or info.name in REFUSED:
        return "cp1252"
    return CODECS.get(info.name, info.name)


def garbled(text: str) -> float:
    """The share of characters that could not be decoded."""
    return text.count("�") / max(len(text), 1)
