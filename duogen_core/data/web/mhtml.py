"""Saved pages as one file (MHTML: .mhtml, .mht), as browsers write them: the page and its pictures in a MIME message.

    saved = read_mhtml(data)     saved.page, saved.url, saved.part("https://…/a.png") or saved.part("cid:…")

Read with the standard email parser, within caps on bytes and parts. Parts are found by their address or id; what a page
names otherwise is missing, like everywhere.
"""

from __future__ import annotations

import email
import email.policy
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timezone
from email.message import Message
from email.utils import parsedate_to_datetime

from duogen_core.data.net.links import absolute
from duogen_core.data.runs.machine import is_of_the_machine
from duogen_core.errors import DuoGenError

ENDINGS = (".mhtml", ".mht")
MAX_BYTES = 100_000_000
MOST_BOUNDARIES = 50  # declared; a browser declares one, or one a frame
MOST_PARTS = 5_000
HTML = ("text/html", "application/xhtml+xml")
BOUNDARY = re.compile(rb"boundary\s*=", re.IGNORECASE)


@dataclass(frozen=True)
class Saved:
    page: bytes = field(repr=False)
    content_type: str
    url: str
    time: str  # when it was saved, UTC, or nothing
    parts: Mapping[str, Message] = field(repr=False)  # by address and by cid:…

    def part(self, address: str) -> bytes | None:
        """What the file holds for an address."""
        found = self.parts.get(address)
        return None if found is None else _payload(found)


def read_mhtml(data: bytes, name: str) -> Saved:
    if len(data) > MAX_BYTES:
        raise DuoGenError(f"{name} is larger than {MAX_BYTES // 10**6} MB, the most that is read of a saved page.")
    if len(BOUNDARY.findall(data)) > MOST_BOUNDARIES:  # messages in messages without end
        raise DuoGenError(f"{name} declares more than {MOST_BOUNDARIES} boundaries; that is no saved page.")
    try:
        return _read(email.message_from_bytes(data, policy=email.policy.compat32), name)
    except DuoGenError:
        raise
    except Exception as error:  # the parser takes nearly everything, and fails in every way on the rest
        if is_of_the_machine(error):
            raise
        raise DuoGenError(f"{name} cannot be read as MHTML ({type(error).__name__}: {error}).") from None


def _read(message: Message, name: str) -> Saved:
    parts = [part for part in message.walk() if not part.is_multipart()]
    if len(parts) > MOST_PARTS:
        raise DuoGenError(f"{name} has {len(parts):,} parts; at most {MOST_PARTS:,} are read.")
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
    """An address as it stands in a header, which may be folded."""
    return "".join(str(text).split())


def _time(message: Message) -> str:
    try:
        return parsedate_to_datetime(message["Date"]).astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (TypeError, ValueError, OverflowError):
        return ""
