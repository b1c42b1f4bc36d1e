"""robots.txt of a host (RFC 9309): whether an address may be fetched, when that was asked, and how long to pause.

allowed      the file allows it, or there is none (status 400 to 499)
disallowed   the file forbids it
unreachable  the host answers with an error, or not at all: then nothing is fetched from it
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from duogen_core.data.net.network import NetworkError
from duogen_core.errors import MissingPackage

MAX_BYTES = 500 * 1024  # of a file; the standard asks for at least as many to be read
Get = Callable[[str], Any]  # an address -> an Answer, redirects followed


@dataclass(frozen=True)
class Robots:
    """What one host says. time: when it was asked, UTC."""

    rules: Any  # protego's, or None
    reachable: bool
    time: str
    agent: str

    def verdict(self, url: str) -> str:
        if not self.reachable:
            return "unreachable"
        return "allowed" if self.rules is None or self.rules.can_fetch(url, self.agent) else "disallowed"

    @property
    def delay(self) -> float:
        stated = self.rules.crawl_delay(self.agent) if self.rules is not None else None
        return float(stated or 0.0)


def ask(origin: str, agent: str, get: Get) -> Robots:
    """The robots.txt of an origin such as https://a.example.com."""
    now = utc()
    try:
        answer = get(f"{origin}/robots.txt")
    except NetworkError as error:
        return Robots(None, error.rule == "too_many_redirects", now, agent)  # so says the standard
    if 400 <= answer.status < 500:
        return Robots(None, True, now, agent)
    if answer.status != 200:
        return Robots(None, False, now, agent)
    return Robots(_parse(answer.body.decode("utf-8", "replace")), True, now, agent)


def _parse(text: str) -> Any:
    try:
        from protego import Protego
    except ImportError:
        raise MissingPackage("--fetch", "protego", "data") from None
    return Protego.parse(text)


def utc() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
