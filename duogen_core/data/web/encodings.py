"""Bytes as they were sent -> what they mean: the body of an HTTP answer (Content-Encoding), and the text of a page.

    body = decoded(data, "br", max_bytes=8_000_000)             gzip, deflate, br and zstd
    html = decode_page(body, "text/html; charset=…")       as a browser would guess, and never an error

Never more than `max_bytes` + 1 bytes come out, whatever the data expands to. What is cut off gives what is there, as in
a browser, and what is not encoded as stated is returned as it is: many archives hold answers decoded under their old
headers.

A page's encoding, in order: a byte order mark; UTF-8 if the bytes are valid UTF-8 (a wrong declaration is more common
than a text in another encoding that happens to be valid UTF-8); the charset of the HTTP header; the one the page
states; Windows-1252. What a charset's label means is the Encoding Standard's table (webencodings), as in browsers.
"""

from __future__ import annotations

import codecs
import io
import re
import zlib
from collections.abc import Callable
from typing import Any

from duogen_core.errors import MissingPackage

STEP = 2**20  # bytes of output at a time
BOMS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
STATED = re.compile(rb"""(?:charset|encoding)\s*=\s*["']?\s*([A-Za-z0-9_.:-]{2,40})""")
HEAD = 4096  # bytes in which a page states its charset
CONTROL = dict.fromkeys([*range(9), 11, *range(14, 32), 127])  # not tab, line feed, form feed, carriage return


def check_packages(content_encoding: str) -> None:
    """Raises MissingPackage if a package is missing to decode this."""
    for name in _names(content_encoding):
        if name in PACKAGES:
            PACKAGES[name]()


def decoded(data: bytes, content_encoding: str, max_bytes: int) -> bytes:
    for name in reversed(_names(content_encoding)):  # they stand in the order in which they were applied
        if name in DECODERS:
            data = DECODERS[name](data, max_bytes + 1) or data
    return data


def _names(content_encoding: str) -> list[str]:
    return [name.strip().lower() for name in content_encoding.split(",")]


def _zlib(data: bytes, max_bytes: int, bits: int) -> bytes:
    try:
        return zlib.decompressobj(bits).decompress(data, max_bytes)
    except zlib.error:
        return b""


def _gzip(data: bytes, max_bytes: int) -> bytes:
    return _zlib(data, max_bytes, 16 + zlib.MAX_WBITS)


def _deflate(data: bytes, max_bytes: int) -> bytes:
    """Decodes with zlib's header as the standard wants it, or without one as some servers send it."""
    return _zlib(data, max_bytes, zlib.MAX_WBITS) or _zlib(data, max_bytes, -zlib.MAX_WBITS)


def _brotli(data: bytes, max_bytes: int) -> bytes:
    brotli = _import_brotli()
    decoder, found = brotli.Decompressor(), bytearray()
    try:
        while len(found) < max_bytes and not decoder.is_finished():
            piece = decoder.process(data, output_buffer_limit=STEP)
            found += piece
            if not piece and not data:
                break  # cut off
            data = b""
    except brotli.error:
        pass
    return bytes(found[:max_bytes])


def _zstd(data: bytes, max_bytes: int) -> bytes:
    zstandard = _import_zstandard()
    found = bytearray()
    try:
        # RFC 9659: on the web no window is larger than 8 MB, so no frame can ask for more memory than that.
        decoder = zstandard.ZstdDecompressor(max_window_size=2**23)
        with decoder.stream_reader(io.BytesIO(data), read_across_frames=True) as reader:
            while len(found) < max_bytes and (piece := reader.read(min(STEP, max_bytes - len(found)))):
                found += piece
    except zstandard.ZstdError:
        pass
    return bytes(found)


def _import_brotli() -> Any:
    try:
        import brotli
    except ImportError:
        raise MissingPackage("An answer that is compressed with br (Content-Encoding)", "brotli", "data") from None
    return brotli


def _import_zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise MissingPackage("An answer that is compressed with zstd (Content-Encoding)", "zstandard", "data") from None
    return zstandard


PACKAGES: dict[str, Callable[[], Any]] = {"br": _import_brotli, "zstd": _import_zstandard}
DECODERS: dict[str, Callable[[bytes, int], bytes]] = {
    "gzip": _gzip,
    "x-gzip": _gzip,
    "deflate": _deflate,
    "br": _brotli,
    "zstd": _zstd,
}


def decode_page(body: bytes, content_type: str = "") -> str:
    """Returns the text of a page; what cannot be decoded becomes U+FFFD. Control characters are removed."""
    return _decode(body, content_type).translate(CONTROL)


def _decode(body: bytes, content_type: str) -> str:
    try:
        import webencodings
    except ImportError:
        raise MissingPackage("Reading pages", "webencodings", "data") from None
    if not body.startswith(BOMS):
        try:
            return body.decode("utf-8")
        except UnicodeDecodeError:
            pass
    stated = STATED.search(content_type.encode("utf-8", "replace")) or STATED.search(body[:HEAD])
    label = stated.group(1).decode() if stated else ""
    # A label that no browser takes (utf-7, Python's own names) is Windows-1252. By the standard GBK is decoded as
    # GB18030, of which it is a part; Python's gbk knows less.
    encoding = webencodings.lookup(label) or webencodings.lookup("windows-1252")
    if encoding.name == "gbk":
        encoding = webencodings.lookup("gb18030")
    return webencodings.decode(body, encoding)[0]  # a byte order mark goes before the fallback that is given here


def garbled(text: str) -> float:
    """Returns the share of characters that could not be decoded."""
    return text.count("�") / max(len(text), 1)
