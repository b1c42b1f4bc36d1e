"""A WARC file (.warc, .warc.gz): the pages in it, and the pictures that were captured with them.

One pass writes an index beside the run's other files: where each page begins, and where the answer for each other
address does, redirects included. Pages and pictures are then read by their place. Names are places in the file.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from duogen_core.data.fetch.archive import ROBOTS_HEADER
from duogen_core.data.web.inputs import Found, Input, embedded
from duogen_core.data.web.links import absolute, refusal, scheme_of
from duogen_core.data.web.page import Page, Walk
from duogen_core.errors import DuoGenError, MissingPackage

HTML = ("text/html", "application/xhtml+xml")
REDIRECTS = ("301", "302", "303", "307", "308")
HOPS = 5
KEPT_HEADERS = ("x-robots-tag", "last-modified", "content-language", "link")
TABLES = """
create table pages (place integer primary key, url text);
create table others (url text primary key, place integer, leads text) without rowid;
create table notes (text text);
"""


class Warc(Input):
    def __init__(self, path: Path) -> None:
        self.path = path
        self.index: Path | None = None
        self._base: sqlite3.Connection | None = None

    def use_index(self, index: Path) -> None:
        """Make the index, unless it is there already; it appears when it is whole."""
        self.index = index
        if not index.exists():
            _write_index(self.path, index)

    def names(self) -> Iterator[str]:
        for (place,) in self._database().execute("select place from pages order by place"):
            yield str(place)

    def notes(self) -> list[str]:
        return [text for (text,) in self._database().execute("select text from notes")]

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
                record.content_stream().read(max_bytes + 1),
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
                    data = record.content_stream().read(max_bytes + 1)
                return Found(data, address)
            address = absolute(leads, address)
        return Found(url=address, rule="refused_link", value="too many redirects")

    def identity(self) -> dict[str, Any]:
        return {"kind": "warc", "bytes": self.path.stat().st_size}

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
        raise DuoGenError(f"{path}, byte {place}: the record cannot be read ({error}).") from None


def _write_index(path: Path, index: Path) -> None:
    temporary = index.with_name(f".{index.name}.duogen-tmp")
    temporary.unlink(missing_ok=True)
    base = sqlite3.connect(temporary)
    try:
        base.executescript("pragma journal_mode = off; pragma synchronous = off;" + TABLES)
        with path.open("rb") as stream:
            _index_records(stream, base, path)
        base.commit()
    except OSError as error:
        raise DuoGenError(f"{path} cannot be read: {error.strerror or error}.") from None
    except sqlite3.Error as error:
        raise DuoGenError(f"The index of {path} cannot be written to {index}: {error}.") from None
    finally:
        base.close()
    temporary.replace(index)


def _index_records(stream: Any, base: sqlite3.Connection, path: Path) -> None:
    records, place = _iterator(stream), 0
    try:
        for record in records:
            place = records.get_record_offset()
            if record.rec_type not in ("response", "resource"):
                continue
            url = record.rec_headers.get_header("WARC-Target-URI") or ""
            http = record.http_headers
            kind = (http or record.rec_headers).get_header("Content-Type") or ""
            status = http.get_statuscode() if http else "200"
            if status in REDIRECTS and http.get_header("Location"):
                row = (absolute(url, url), place, http.get_header("Location")[:4000])
                base.execute("insert or ignore into others values (?, ?, ?)", row)
            elif status == "200" and kind.partition(";")[0].strip().lower() in HTML:
                base.execute("insert into pages values (?, ?)", (place, url))
            elif status == "200":
                base.execute("insert or ignore into others values (?, ?, '')", (absolute(url, url), place))
    except DuoGenError:
        raise
    except Exception as error:  # cut off or damaged: what stands before is good
        note = f"{path} is damaged or cut off after byte {place} ({error}); what follows is lost."
        base.execute("insert into notes values (?)", (note,))
