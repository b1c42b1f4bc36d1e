"""The inputs of a run: paths -> an Input for each WARC file, each folder of pages and each saved page.

    inputs = open_inputs(["crawl.warc.gz", "site/", "page.mhtml"])

A folder holds HTML pages at any depth, saved pages with their pictures beside or inside them, or an unpacked site; and
WARC files (`warc`). Pictures are read from the folder and nowhere else: an address that leads out of it, by dots, by a
link or by file:, is refused, and one on the web is missing. Names are paths relative to the folder.

A page saved as one file (MHTML: .mhtml, .mht) is a MIME message with the page and its pictures. Python's email parser
reads it, within caps on bytes and parts. Parts are found by their address or id; what a page names otherwise is
missing, like everywhere.
"""

from __future__ import annotations

import email
import email.policy
import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.message import Message
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from duogen_core.data.runs.folder import FileDigests, names_below
from duogen_core.data.web.encodings import decode_page
from duogen_core.data.web.page import HTML, PAGES, Found, Input, Page, Walk, embedded
from duogen_core.data.web.walker import walk
from duogen_core.data.web.warc import Warc
from duogen_core.errors import DuoGenError, is_system_failure
from duogen_core.net.links import absolute, refusal, scheme_of

WARCS = (".warc", ".warc.gz")
SAVED_FROM = re.compile(rb"saved from url=\(\d{4}\)(https?://[^\s<>\"]+)")
MHTML = (".mhtml", ".mht")
MAX_BYTES = 100_000_000  # of an MHTML file
MAX_BOUNDARIES = 50  # declared; a browser declares one, or one a frame
MAX_PARTS = 5_000
BOUNDARY = re.compile(rb"boundary\s*=", re.IGNORECASE)


def open_inputs(paths: Sequence[str]) -> list[Input]:
    """Opens an Input for each WARC file and each folder or file of pages."""
    inputs: list[Input] = []
    for name in paths:
        path = Path(name)
        if path.is_file() and is_warc(path):
            inputs.append(Warc(path))
        elif path.is_file() and path.suffix.lower() in PAGES:
            inputs.append(Folder(path.parent, [path.name]))
        elif path.is_dir():
            inputs += [Warc(file) for file in sorted(path.iterdir()) if is_warc(file) and file.is_file()]
            folder = Folder(path)
            if next(folder.names(), None) is not None:
                inputs.append(folder)
        elif path.exists():
            raise DuoGenError(
                f"{name} is not an input; expected a .warc or .warc.gz file, an .html or .mhtml file, or a folder."
            )
        else:
            raise DuoGenError(f"{name} does not exist; give WARC files or folders of HTML pages.")
    if not inputs:
        raise DuoGenError(f"There is no page in {', '.join(paths)}; expected .html, .mhtml, .warc or .warc.gz files.")
    return inputs


def is_warc(path: Path) -> bool:
    return path.name.lower().endswith(WARCS)


class Folder(Input):
    def __init__(self, path: Path, only: Sequence[str] = ()) -> None:
        self.path, self.only = path, tuple(only)
        self.root = Path(os.path.realpath(path))
        self.saved: tuple[str, Saved] | None = None  # the last MHTML file that was read

    def names(self) -> Iterator[str]:
        yield from self.only or names_below(self.root, PAGES)

    def page(self, name: str, max_bytes: int) -> Page:
        file = self.root / name
        is_mhtml = name.lower().endswith(MHTML)
        try:
            with file.open("rb") as stream:
                body = stream.read((MAX_BYTES if is_mhtml else max_bytes) + 1)
            changed = datetime.fromtimestamp(file.stat().st_mtime, timezone.utc)
        except OSError as error:
            if is_system_failure(error):
                raise
            raise DuoGenError(f"The page {file} cannot be read: {error.strerror or error}.") from None
        time = changed.strftime("%Y-%m-%dT%H:%M:%SZ")
        if is_mhtml:
            saved = read_mhtml(body, str(file))
            self.saved = name, saved
            return Page(
                str(self.path), name, saved.url or name, saved.page[: max_bytes + 1], saved.content_type,
                saved.time or time,
            )  # fmt: skip
        found = SAVED_FROM.search(body[:2000])
        url = found.group(1).decode("utf-8", "replace") if found else name
        return Page(str(self.path), name, url, body, time=time)

    def picture(self, page: Page, walk: Walk, source: str, max_bytes: int) -> Found:
        if scheme_of(source) == "data":
            return embedded(source, max_bytes)
        if page.name.lower().endswith(MHTML):
            return self._inside(page, walk, source, max_bytes)
        file = self._file_of(page, source)
        return self._read(file, max_bytes) if isinstance(file, Path) else file

    def _file_of(self, page: Page, source: str) -> Path | Found:
        """Returns the file of a picture of a page, or why there is none."""
        if (scheme := scheme_of(source)) or source.startswith(("//", "\\\\")):
            address = absolute(source, "http://page.invalid/") if scheme != "data" else ""
            reason = refusal(address) if address else "not an address"
            return Found(url=address, rule="refused_link" if reason else "missing", value=reason or address[:200])
        path = unquote(re.split(r"[?#]", source, maxsplit=1)[0]).replace("\\", "/")
        if "\0" in path:
            return Found(rule="refused_link", value="not an address")
        folder = "" if path.startswith("/") else os.path.dirname(page.name)
        file = Path(os.path.realpath(self.root / folder / path.lstrip("/")))
        if file != self.root and self.root not in file.parents:
            return Found(rule="refused_link", value="outside the folder")
        return file

    def _inside(self, page: Page, walk: Walk, source: str, max_bytes: int) -> Found:
        """Reads a picture of an MHTML page, from that file and from nowhere else."""
        if self.saved is None or self.saved[0] != page.name:
            self.page(page.name, max_bytes)
        address = source.strip()
        if scheme_of(address) != "cid":
            address = absolute(address, absolute(walk.base, page.url) if walk.base else page.url)
            if reason := refusal(address) if scheme_of(address) else "":
                return Found(url=address, rule="refused_link", value=reason)
        data = self.saved[1].part(address)
        if data is None:
            return Found(url=address, rule="missing", value=address[:200])
        if len(data) > max_bytes:
            return Found(url=address, rule="too_many_bytes", value=len(data))
        return Found(data, address)

    def _read(self, file: Path, max_bytes: int) -> Found:
        url = file.relative_to(self.root).as_posix()
        try:
            size = file.stat()
            if not stat.S_ISREG(size.st_mode):
                return Found(url=url, rule="missing", value=url)
            if size.st_size > max_bytes:
                return Found(url=url, rule="too_many_bytes", value=size.st_size)
            return Found(file.read_bytes(), url)
        except (OSError, ValueError) as error:
            if is_system_failure(error):
                raise
            return Found(url=url, rule="missing", value=url[:200])

    def identity(self, digests: FileDigests) -> dict[str, Any]:
        """Changes with the contents of the pages and of all files beside them; for single pages, of what they show."""
        total = hashlib.sha256()
        for name in sorted(self._shown()) if self.only else names_below(self.root, ("",)):
            total.update(f"{name}\0{digests.of_small(self.root / name)}\n".encode("utf-8", "surrogateescape"))
        return {"kind": "folder", "digest": total.hexdigest()[:32]}

    def _shown(self) -> set[str]:
        """Returns the names of the pages in `only` and of the pictures that they show."""
        found = set(self.only)
        for name in self.only:
            try:
                page = self.page(name, MAX_BYTES)
                images = walk(decode_page(page.body, page.content_type)).images
            except DuoGenError:  # the run itself says what is wrong with it
                continue
            files = (self._file_of(page, source) for image in images for source in image.sources)
            found |= {file.relative_to(self.root).as_posix() for file in files if isinstance(file, Path)}
        return found


@dataclass(frozen=True)
class Saved:
    page: bytes = field(repr=False)
    content_type: str
    url: str
    time: str  # when it was saved, UTC, or nothing
    parts: Mapping[str, Message] = field(repr=False)  # by address and by cid:…

    def part(self, address: str) -> bytes | None:
        """Returns what the file holds for an address."""
        found = self.parts.get(address)
        return None if found is None else _payload(found)


def read_mhtml(data: bytes, name: str) -> Saved:
    if len(data) > MAX_BYTES:
        raise DuoGenError(f"{name} is larger than {MAX_BYTES // 10**6} MB, the most that is read of a saved page.")
    if len(BOUNDARY.findall(data)) > MAX_BOUNDARIES:  # messages in messages without end
        raise DuoGenError(f"{name} declares more than {MAX_BOUNDARIES} boundaries; that is not a saved page.")
    try:
        return _read(email.message_from_bytes(data, policy=email.policy.compat32), name)
    except DuoGenError:
        raise
    except Exception as error:  # the parser takes nearly everything, and fails in every way on the rest
        if is_system_failure(error):
            raise
        raise DuoGenError(f"{name} cannot be read as MHTML ({type(error).__name__}: {error}).") from None


def _read(message: Message, name: str) -> Saved:
    parts = [part for part in message.walk() if not part.is_multipart()]
    if len(parts) > MAX_PARTS:
        raise DuoGenError(f"{name} has {len(parts):,} parts; at most {MAX_PARTS:,} are read.")
    start = message.get_param("start")
    pages = [part for part in parts if part.get_content_type() in HTML]
    root = next((part for part in pages if start and part.get("Content-ID", "").strip() == start), None)
    if root is None and not pages:
        raise DuoGenError(f"{name} holds no page; expected a part of the type text/html.")
    root = root or pages[0]
    url = _address(message.get("Snapshot-Content-Location") or root.get("Content-Location") or "")
    found: dict[str, Message] = {}
    for part in parts:
        if part is root:
            continue
        if location := part.get("Content-Location"):
            found.setdefault(absolute(_address(location), url), part)
        if identifier := part.get("Content-ID", "").strip():
            found.setdefault(f"cid:{identifier.strip('<>')}", part)
    charset = root.get_content_charset()
    kind = root.get_content_type() + (f"; charset={charset}" if charset else "")
    return Saved(_payload(root), kind, url, _time(message), found)


def _payload(part: Message) -> bytes:
    payload = part.get_payload(decode=True)
    return payload if isinstance(payload, bytes) else b""


def _address(text: str) -> str:
    """Returns an address from a header, which may be folded."""
    return "".join(str(text).split())


def _time(message: Message) -> str:
    try:
        return parsedate_to_datetime(message["Date"]).astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (TypeError, ValueError, OverflowError):
        return ""
