"""One pass over a WARC file that reads every record to its end: Records, and Damage where there is none to be read.

    for found in records(path): ...

warcio's own iterator stops at the first damage, and takes a record that is cut off for a whole one. Here the gzip
member of each record is unpacked to its check sum, its length is compared with what its header states, and behind a
damaged place the next record is searched for. The headers are warcio's to parse.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from duogen_core.data.runs.machine import is_of_the_machine
from duogen_core.errors import DuoGenError, MissingPackage

GZIP = b"\x1f\x8b\x08"
START = re.compile(rb"WARC/(?:1\.[01]|0\.1[78])\r?\n[A-Za-z][A-Za-z-]*:")
HEADER_END = re.compile(rb"\r?\n\r?\n")
HEAD = 2**20  # bytes of a record in which its headers, and those of HTTP, stand
STEP = 2**16
BEHIND = 64  # bytes that are looked at behind a record: blank lines, or the next record


@dataclass(frozen=True)
class Record:
    """A whole record. place: the byte in the file at which it, or its gzip member, begins."""

    place: int
    kind: str  # WARC-Type: response, resource, …
    headers: Any  # warcio's StatusAndHeaders
    http: Any  # the same of the HTTP answer, or None


@dataclass(frozen=True)
class Damage:
    """A place where no whole record is. next: the byte at which reading went on, None where nothing more was found."""

    place: int
    rule: Literal["cut_off", "damaged"]
    next: int | None


class _Broken(Exception):
    def __init__(self, rule: Literal["cut_off", "damaged"]) -> None:
        self.rule = rule


def records(path: Path) -> Iterator[Record | Damage]:
    with path.open("rb") as stream:
        gzipped = stream.read(len(GZIP)) == GZIP
        read, search = (_read_member, _next_member) if gzipped else (_read_plain, _next_plain)
        place = 0
        while True:
            stream.seek(place)
            if not stream.read(1):
                return
            try:
                record, place = read(stream, place, path)
                if record is not None:
                    yield record
            except _Broken as broken:
                there = search(stream, place + 1)
                # What reaches the end of the file is cut off there; with a record behind it, it is damaged.
                yield Damage(place, broken.rule if there is None else "damaged", there)
                if there is None:
                    return
                place = there


def _read_member(stream: Any, place: int, path: Path) -> tuple[Record | None, int]:
    """The record whose gzip member begins here, and the place behind it."""
    stream.seek(place)
    unpacker, head, total, end, behind = zlib.decompressobj(16 + zlib.MAX_WBITS), bytearray(), 0, None, b""
    while not unpacker.eof:
        data = unpacker.unconsumed_tail or stream.read(STEP)
        try:
            piece = unpacker.decompress(data, STEP)
        except zlib.error:
            raise _Broken("damaged") from None
        if not data and not piece and not unpacker.eof:
            raise _Broken("cut_off")
        if len(head) < HEAD:
            head += piece[: HEAD - len(head)]
        end = _end_of(head) if end is None and total < HEAD else end
        if end is not None and total + len(piece) > end and len(behind) < BEHIND:
            behind += piece[max(end - total, 0) :][: BEHIND - len(behind)]
        total += len(piece)
        if START.match(behind.lstrip()):
            raise DuoGenError(
                f"{path} is gzipped as a whole; in a .warc.gz every record is a gzip member of its own, so that each "
                "can be read at its place. Unpack it (gunzip -k) and give the .warc file."
            )
    after = stream.tell() - len(unpacker.unused_data)
    if not bytes(head).strip():  # some writers leave an empty member at the end
        return None, after
    if end is None or total < end:
        raise _Broken("damaged")
    return _parsed(bytes(head), place), after


def _read_plain(stream: Any, place: int, _: Path) -> tuple[Record | None, int]:
    stream.seek(place)
    head = stream.read(HEAD)
    blank = len(head) - len(head.lstrip(b"\r\n"))
    if blank:
        return None, place + blank
    end = _end_of(head)
    size = stream.seek(0, 2)
    if end is None:
        raise _Broken("cut_off" if len(head) < HEAD and b"WARC/".startswith(head[:5]) else "damaged")
    if place + end > size:
        raise _Broken("cut_off")
    stream.seek(place + end)
    behind = stream.read(BEHIND)
    if behind and not behind.startswith((b"\r\n", b"\n")) and not START.match(behind):
        raise _Broken("damaged")  # its length leads into the middle of something
    return _parsed(head, place), place + end


def _end_of(head: bytes | bytearray) -> int | None:
    """How long the record is by its own header, header included; None where that is not (yet) there."""
    found = HEADER_END.search(head)
    if found is None or not START.match(head):
        return None
    length = re.search(rb"\ncontent-length:[ \t]*(\d{1,18})[ \t]*\r?\n", head[: found.end()], re.IGNORECASE)
    return found.end() + int(length.group(1)) if length else None


def _parsed(head: bytes, place: int) -> Record:
    try:
        from warcio.recordloader import ArcWarcRecordLoader
    except ImportError:
        raise MissingPackage("Reading WARC files", "warcio", "data") from None
    loader = ArcWarcRecordLoader(verify_http=False, arc2warc=False)
    try:
        found = loader.parse_record_stream(io.BytesIO(head), known_format="warc")
    except Exception as error:  # the library fails in many ways on foreign headers
        if is_of_the_machine(error):
            raise
        raise _Broken("damaged") from None
    return Record(place, found.rec_type or "", found.rec_headers, found.http_headers)


def _next_member(stream: Any, place: int) -> int | None:
    """The next gzip member that holds the beginning of a record."""
    for found in _found(stream, place, re.compile(re.escape(GZIP))):
        stream.seek(found)
        try:
            beginning = zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(stream.read(2 * STEP), 1024)
        except zlib.error:
            continue
        if START.match(beginning):
            return found
    return None


def _next_plain(stream: Any, place: int) -> int | None:
    """The next line with which a record begins."""
    for found in _found(stream, place, re.compile(rb"(?<=\n)" + START.pattern)):
        return found
    return None


def _found(stream: Any, place: int, pattern: re.Pattern[bytes]) -> Iterator[int]:
    """The places from here on at which the pattern begins, in pieces that overlap."""
    overlap = 256  # longer than anything that is searched for
    while True:
        stream.seek(place)
        piece = stream.read(16 * STEP)
        last = len(piece) < 16 * STEP
        for match in pattern.finditer(piece):
            if last or match.start() < len(piece) - overlap:
                yield place + match.start()
        if last:
            return
        place += len(piece) - overlap
