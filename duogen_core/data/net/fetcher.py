"""An address -> what came back: asks robots.txt, follows redirects and checks each, pauses between requests to a host.

    fetcher = Fetcher(preset.fetch, Network())
    fetched = fetcher.fetch("http://a.example.com/", max_bytes)     fetched.rule is "" when there is an answer

A host is asked for one thing at a time, with the longer of the preset's pause and its own Crawl-delay between two.
Threads may share a Fetcher.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from duogen_core import __version__
from duogen_core.data.net import robots
from duogen_core.data.net.links import absolute, refusal
from duogen_core.data.net.network import Answer, Network, NetworkError
from duogen_core.errors import DuoGenError

REDIRECTS = (301, 302, 303, 307, 308)
LATER = (429, 503)  # the host asks for patience
PASSING = ("unreachable", "too_slow", "unresolved", "host_down", "cut_off")  # rules for faults that pass
PASSING_STATUS = (408, 425, 429, *range(500, 600))  # and what a host answers that is not well, or busy
DOWN = 5  # requests in a row that failed before a host is left alone


@dataclass(frozen=True)
class Hop:
    """One answer on the way, a redirect or the last. robots: what robots.txt says of it, robots_time: when asked."""

    url: str
    answer: Answer
    time: str
    robots: str
    robots_time: str


@dataclass(frozen=True)
class Fetched:
    """The answers to one address. rule, value: why there is none, or none that can be used."""

    url: str
    hops: tuple[Hop, ...] = ()
    rule: str = ""
    value: str | int | float = ""

    @property
    def may_pass(self) -> bool:
        """Whether the same request may have an answer later: the network or the host failed, nothing was refused."""
        if self.rule == "robots_txt":
            return self.value == "unreachable"
        return self.rule in PASSING or (self.rule == "status" and self.value in PASSING_STATUS)


@dataclass
class _Host:
    lock: threading.Lock = field(default_factory=threading.Lock)
    robots: robots.Robots | None = None
    free: float = 0.0  # when it may be asked again
    failed: int = 0


class Fetcher:
    def __init__(self, rules: Mapping[str, Any], network: Network, stop: threading.Event | None = None) -> None:
        self.rules, self.network, self.stop = rules, network, stop or threading.Event()
        self.agent = str(rules["agent"])
        self.headers = {"User-Agent": user_agent(self.agent, str(rules["contact"])), "Accept": "*/*"}
        self.hosts: dict[str, _Host] = {}
        self.lock = threading.Lock()

    def fetch(self, url: str, max_bytes: int) -> Fetched:
        hops: list[Hop] = []
        start = url
        try:
            for _ in range(self.rules["max_redirects"] + 1):
                hop = self._ask(url, max_bytes)
                hops.append(hop)
                if hop.answer.status not in REDIRECTS or not hop.answer.header("location"):
                    rule = "" if hop.answer.status == 200 else "status"
                    return Fetched(start, tuple(hops), rule, hop.answer.status if rule else "")
                url = absolute(hop.answer.header("location"), url)
            raise NetworkError("too_many_redirects", len(hops))
        except NetworkError as error:
            return Fetched(start, tuple(hops), error.rule, error.value)

    def _ask(self, url: str, max_bytes: int) -> Hop:
        if reason := refusal(url):
            raise NetworkError("refused_link", reason)
        parts = urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc.lower()}"
        said = self._robots(origin)
        if (verdict := said.verdict(url)) != "allowed":
            raise NetworkError("robots_txt", verdict)
        answer = self._patient(origin, url, max_bytes, said.delay)
        return Hop(url, answer, robots.utc(), verdict, said.time)

    def _robots(self, origin: str) -> robots.Robots:
        host = self._host(origin)
        with host.lock:
            if host.robots is None:
                host.robots = robots.ask(origin, self.agent, self._plain)
                host.free = time.monotonic() + self.rules["delay"]
            return host.robots

    def _plain(self, url: str) -> Answer:
        """robots.txt itself: nothing is asked for it, and its redirects may lead to other hosts."""
        for _ in range(self.rules["max_redirects"] + 1):
            answer = self.network.get(url, self.headers, robots.MAX_BYTES, self.rules["max_seconds"])
            if answer.status not in REDIRECTS or not answer.header("location"):
                return answer
            url = absolute(answer.header("location"), url)
        raise NetworkError("too_many_redirects", url[:200])

    def _patient(self, origin: str, url: str, max_bytes: int, delay: float) -> Answer:
        """One request in the host's turn; a second one if it asks for patience."""
        host = self._host(origin)
        pause = min(max(self.rules["delay"], delay), self.rules["max_delay"])
        for again in (True, False):
            with self._turn(host, pause):
                try:
                    answer = self.network.get(url, self.headers, max_bytes, self.rules["max_seconds"])
                except NetworkError as error:
                    host.failed += error.rule in ("unreachable", "too_slow", "unresolved")
                    raise
                host.failed = 0
            if answer.status not in LATER or not again:
                break
            stated = answer.header("retry-after").strip()
            wished = float(stated) if stated.isdecimal() else 2 * pause
            host.free = time.monotonic() + min(max(pause, wished), self.rules["max_delay"])
        return answer

    @contextlib.contextmanager
    def _turn(self, host: _Host, pause: float) -> Iterator[None]:
        with host.lock:
            if host.failed >= DOWN:
                raise NetworkError("host_down", f"{DOWN} requests failed")
            if self.stop.wait(max(host.free - time.monotonic(), 0.0)):
                raise NetworkError("stopped")
            try:
                yield
            finally:
                host.free = time.monotonic() + pause

    def _host(self, origin: str) -> _Host:
        with self.lock:
            return self.hosts.setdefault(origin, _Host())


def user_agent(agent: str, contact: str) -> str:
    text = f"{agent}/{__version__}" + (f" (+{contact})" if contact else "")
    if not agent or not text.isascii() or not text.isprintable() or any(mark in agent for mark in " /()"):
        raise DuoGenError(f"fetch.agent and fetch.contact give the User-Agent {text!r}; expected plain words.")
    return text
