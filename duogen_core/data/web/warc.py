"""A WARC file (.warc, .warc.gz): the pages in it, and the pictures that were captured with them.

One pass (`records`) writes an index beside the run's other files: where each page begins, where the answer for each
other address does, redirects included, and where records are damaged. Pages and pictures are then read by their place.
A page's name is its place in the file.

The pass is not warcio's own iterator, which stops at the first damage and takes a record that is cut off for a whole
one. Here the gzip member of each record is unpacked to its check sum, its length is compared with what its header
states, and behind a damaged place the next record is searched for. The headers are warcio's to parse.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from duogen_core.data.runs.folder import FileDigests
from duogen_core.data.web.encodings import check_packages, decoded
from duogen_core.data.web.page import HTML, Found, Input, Page, Walk, embedded
from duogen_core.errors import DuoGenError, MissingPackage, is_system_failure
from duogen_core.files import atomic_path, write_atomically
from duogen_core.net.archive import ROBOTS_HEADER
from duogen_core.net.links import absolute, refusal, scheme_of

REDIRECTS = ("301", "302", "303", "307", "308")
HOPS = 5
MAX_NOTES = 20  # sentences about damaged places; the log has them all
KEPT_HEADERS = ("x-robots-tag", "last-modified", "content-language", "link")
GZIP = b"\x1f\x8b\x08"
START = re.compile(rb"WARC/(?:1\.[01]|0\.1[78])\r?\n[A-Za-z][A-Za-z-]*:")
HEADER_END = re.compile(rb"\r?\n\r?\n")
HEAD = 2**20  # bytes of a record in which its headers, and those of HTTP, stand
STEP = 2**16
BEHIND = 64  # bytes that are looked at behind a record: blank lines, or the next record
TABLES = """
create table pages (place integer primary key, url text);
create table others (url text primary key, place integer, leads text) without rowid;
create table damage (place integer primary key, rule text, next integer);
create table made_of (path text, bytes integer, changed integer);
"""


class Warc(Input):
    def __init__(self, path: Path) -> None:
        self.path = path
        self.index: Path | None = None
        self._base: sqlite3.Connection | None = None

    def use_index(self, index: Path) -> None:
        """Makes the index, unless there is one of this very file; it appears when it is whole."""
        self.index = index
        if _made_of(index) != _marks(self.path):
            _write_index(self.path, index)

    def use_finished_index(self, index: Path) -> None:
        """Takes the index that the run was planned with, wherever both have been copied to."""
        self.index = index
        if _made_of(index)[1:2] != _marks(self.path)[1:2]:
            raise DuoGenError(f"{self.path} was changed since the run began; choose another --out.")

    def names(self) -> Iterator[str]:
        for (place,) in self._rows("select place from pages order by place"):
            yield str(place)

    def damage(self) -> list[Damage]:
        """Returns the places at which no whole record is."""
        return [Damage(*row) for row in self._rows("select place, rule, next from damage order by place")]

    def page(self, name: str, max_bytes: int) -> Page:
        with _record(self.path, int(name)) as record:
            headers = {k.lower(): v for k, v in record.http_headers.headers} if record.http_headers else {}
            kept = {key: headers[key][:500] for key in KEPT_HEADERS if key in headers}
            if said := record.rec_headers.get_header(ROBOTS_HEADER):
                kept["robots-txt"] = said[:100]
            return Page(
                str(self.path),
                name,
                record.rec_headers.get_header("WARC-Target-URI") or "",
                _body(record, max_bytes),
                headers.get("content-type", ""),
                record.rec_headers.get_header("WARC-Date") or "",
                kept,
            )

    def picture(self, page: Page, walk: Walk, source: str, max_bytes: int) -> Found:
        if scheme_of(source) == "data":
            return embedded(source, max_bytes)
        address = absolute(source, absolute(walk.base, page.url) if walk.base else page.url)
        for _ in range(HOPS):
            if reason := refusal(address) if address else "not an address":
                return Found(url=address, rule="refused_link", value=reason)
            query = "select place, leads from others where url = ?"
            place, leads = self._database().execute(query, (address,)).fetchone() or (None, None)
            if place is None:
                return Found(url=address, rule="missing", value=address[:200])
            if not leads:
                with _record(self.path, place) as record:
                    data = _body(record, max_bytes)
                return Found(data, address)
            address = absolute(leads, address)
        return Found(url=address, rule="refused_link", value="too many redirects")

    def identity(self, digests: FileDigests) -> dict[str, Any]:
        try:
            return {"kind": "warc", "digest": digests.of(self.path)}
        except OSError as error:
            raise DuoGenError(f"{self.path} cannot be read: {error.strerror or error}.") from None

    def _rows(self, query: str) -> Iterator[tuple]:
        try:
            yield from self._database().execute(query)
        except sqlite3.Error as error:
            raise DuoGenError(f"The index {self.index} cannot be read ({error}); remove it to make it again.") from None

    def _database(self) -> sqlite3.Connection:
        if self._base is None:
            if self.index is None:
                raise DuoGenError(f"{self.path} has no index yet; call use_index first.")
            self._base = sqlite3.connect(f"{self.index.absolute().as_uri()}?mode=ro", uri=True)
        return self._base


def _iterator(stream: Any) -> Any:
    try:
        from warcio.archiveiterator import ArchiveIterator
    except ImportError:
        raise MissingPackage("Reading WARC files", "warcio", "data") from None
    return ArchiveIterator(stream)


@contextlib.contextmanager
def _record(path: Path, place: int) -> Iterator[Any]:
    try:
        with path.open("rb") as stream:
            stream.seek(place)
            record = next(_iterator(stream), None)
            if record is None:
                raise DuoGenError(f"{path} has no record at byte {place} any more; it was changed since the run began.")
            yield record
    except DuoGenError:
        raise
    except Exception as error:  # a damaged record upsets the library in many ways
        if is_system_failure(error):
            raise
        raise DuoGenError(f"{path}, byte {place}: the record cannot be read ({error}).") from None


def _body(record: Any, max_bytes: int) -> bytes:
    """Returns the decoded body of an answer, at most one byte more than max_bytes of it."""
    if not record.http_headers:
        return record.raw_stream.read(max_bytes + 1)
    from warcio.bufferedreaders import ChunkedDataReader

    headers, stream = record.http_headers, record.raw_stream
    if (headers.get_header("Transfer-Encoding") or "").strip().lower() == "chunked":
        stream = ChunkedDataReader(stream)
    return decoded(stream.read(max_bytes + 1), headers.get_header("Content-Encoding") or "", max_bytes)


def log_damage(file: Path, inputs: Sequence[Input]) -> list[str]:
    """Writes a line an input to the log, if any is damaged; returns sentences about the first damaged places."""
    lines, notes, places = [], [], 0
    for each in inputs:
        damage = each.damage() if isinstance(each := getattr(each, "inner", each), Warc) else []
        refused = {"rule": damage[0].rule, "value": damage[0].place} if damage else {}
        parts = [{"rule": part.rule, "place": part.place, "next": part.next} for part in damage]
        lines.append({"stage": "inputs", "input": str(each.path), "kept": not damage, **refused, "damage": parts})
        notes += [_sentence(each.path, part) for part in damage[: MAX_NOTES - len(notes)]]
        places += len(damage)
    file.unlink(missing_ok=True)
    if places:
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_atomically(file, text.encode("utf-8", "replace"))
    return notes if places <= len(notes) else [*notes, f"{places - len(notes):,} more damaged places are in {file}."]


def _sentence(path: Path, damage: Damage) -> str:
    if damage.rule == "cut_off":
        return f"{path} is cut off in the record at byte {damage.place:,}; what stands before it was read."
    if damage.next is None:
        return f"{path} is damaged at byte {damage.place:,}, and no record was found behind it."
    return f"{path} is damaged at byte {damage.place:,}; reading went on at byte {damage.next:,}."


def _marks(path: Path) -> tuple[str, int, int]:
    try:
        stat = path.stat()
    except OSError as error:
        raise DuoGenError(f"{path} cannot be read: {error.strerror or error}.") from None
    return str(path), stat.st_size, stat.st_mtime_ns


def _made_of(index: Path) -> tuple[Any, ...]:
    """Returns the marks of the file that an index was made of; nothing if there is no index of this kind."""
    try:
        with contextlib.closing(sqlite3.connect(f"{index.absolute().as_uri()}?mode=ro", uri=True)) as base:
            return base.execute("select path, bytes, changed from made_of").fetchone() or ()
    except sqlite3.Error:
        return ()


def _write_index(path: Path, index: Path) -> None:
    try:
        # Neither journal nor syncing: the index gets its name when it is whole, and a half one is thrown away anyhow.
        with atomic_path(index) as temporary, contextlib.closing(sqlite3.connect(temporary)) as base:
            base.executescript("pragma journal_mode = off; pragma synchronous = off;" + TABLES)
            base.execute("insert into made_of values (?, ?, ?)", _marks(path))
            for found in records(path):
                if isinstance(found, Damage):
                    base.execute("insert into damage values (?, ?, ?)", (found.place, found.rule, found.next))
                elif found.kind in ("response", "resource"):
                    _index_record(found, base)
            base.commit()
    except OSError as error:
        if is_system_failure(error):
            raise
        raise DuoGenError(f"{path} cannot be read: {error.strerror or error}.") from None
    except sqlite3.Error as error:
        raise DuoGenError(f"The index of {path} cannot be written to {index}: {error}.") from None


def _index_record(record: Record, base: sqlite3.Connection) -> None:
    url, http = record.headers.get_header("WARC-Target-URI") or "", record.http
    kind = (http or record.headers).get_header("Content-Type") or ""
    status = http.get_statuscode() if http else "200"
    if status in REDIRECTS and http.get_header("Location"):
        row = (absolute(url, url), record.place, http.get_header("Location")[:4000])
        base.execute("insert or ignore into others values (?, ?, ?)", row)
        return
    if status != "200":
        return
    if http:
        check_packages(http.get_header("Content-Encoding") or "")
    if kind.partition(";")[0].strip().lower() in HTML:
        base.execute("insert into pages values (?, ?)", (record.place, url))
    else:
        base.execute("insert or ignore into others values (?, ?, '')", (absolute(url, url), record.place))


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
    """Reads the record whose gzip member begins here; returns it and the place behind it."""
    stream.seek(place)
    unpacker, head, total, end, behind = zlib.decompressobj(16 + zlib.MAX_WBITS), bytearray(), 0, None, b""
    # To its end, although only the head is kept: zlib compares the check sum of a member there, so damage anywhere in
    # the record shows. In pieces of at most STEP, since a few kilobytes may unpack to gigabytes.
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
        # Another record inside the same member: the file was compressed as one stream, where no record has a place.
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
    """Returns how long the record is by its own header, header included; None where that is not (yet) there."""
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
        if is_system_failure(error):
            raise
        raise _Broken("damaged") from None
    return Record(place, found.rec_type or "", found.rec_headers, found.http_headers)


def _next_member(stream: Any, place: int) -> int | None:
    """Finds the next gzip member that holds the beginning of a record."""
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
    """Finds the next line with which a record begins."""
    for found in _found(stream, place, re.compile(rb"(?<=\n)" + START.pattern)):
        return found
    return None


def _found(stream: Any, place: int, pattern: re.Pattern[bytes]) -> Iterator[int]:
    """Yields the places from here on at which the pattern begins, read in pieces that overlap."""
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
