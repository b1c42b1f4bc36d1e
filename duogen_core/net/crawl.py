"""Crawls: many addresses -> what came back, politely: several hosts at once, of each host one thing after another.

    fetcher = Fetcher(preset.fetch, HttpClient())
    fetched = fetcher.fetch("http://a.example.com/", max_bytes)     fetched.rule is "" when there is an answer
    for fetched in crawl(wanted, fetcher, hosts=8, max_bytes=…, check=…, done={}): ...

Asks a host for its robots.txt first (RFC 9309), follows redirects and checks each, and waits between two requests to a
host: the longer of the preset's pause and the host's own Crawl-delay. `wanted` are tuples of addresses of the same
thing, best first: the next one is tried when one gives nothing good. An address is asked for once, however often it is
wanted. Leaving the loop cuts what is on its way. Threads may share a Fetcher.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from duogen_core import __version__
from duogen_core.errors import DuoGenError, MissingPackage
from duogen_core.net.client import HttpClient, NetworkError, Reply
from duogen_core.net.links import absolute, refusal

Wanted = tuple[str, ...]
Check = Callable[["Fetched"], "Fetched"]
ROBOTS_BYTES = 500 * 1024  # of a robots.txt; the standard asks for at least as many to be read
REDIRECTS = (301, 302, 303, 307, 308)
LATER = (429, 503)  # the host asks for patience
# Rules for faults that may pass; below, the statuses of a host that is not well, or busy.
TRANSIENT = ("unreachable", "too_slow", "unresolved", "host_down", "cut_off", "broke_off")
TRANSIENT_STATUS = (408, 425, 429, *range(500, 600))
DOWN = 5  # requests in a row that failed before a host is left alone


@dataclass(frozen=True)
class Robots:
    """What the robots.txt of one host says. time: when it was fetched, UTC."""

    rules: Any  # protego's, or None
    reachable: bool
    time: str
    agent: str

    def verdict(self, url: str) -> str:
        """Returns allowed (also where there is no file: status 400 to 499), disallowed, or unreachable."""
        if not self.reachable:
            return "unreachable"
        return "allowed" if self.rules is None or self.rules.can_fetch(url, self.agent) else "disallowed"

    @property
    def delay(self) -> float:
        stated = self.rules.crawl_delay(self.agent) if self.rules is not None else None
        return float(stated or 0.0)


def ask_robots(origin: str, agent: str, get: Callable[[str], Reply]) -> Robots:
    """Fetches the robots.txt of an origin such as https://a.example.com. get: follows redirects."""
    now = utc()
    try:
        answer = get(f"{origin}/robots.txt")
    except NetworkError as error:
        return Robots(None, error.rule == "too_many_redirects", now, agent)  # so says the standard
    if 400 <= answer.status < 500:
        return Robots(None, True, now, agent)
    if answer.status != 200:
        return Robots(None, False, now, agent)
    try:
        from protego import Protego
    except ImportError:
        raise MissingPackage("--fetch", "protego", "data") from None
    return Robots(Protego.parse(answer.body.decode("utf-8", "replace")), True, now, agent)


def utc() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@dataclass(frozen=True)
class Hop:
    """One answer on the way, a redirect or the last. robots: what robots.txt says of it, robots_time: when asked."""

    url: str
    answer: Reply
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
    def is_transient(self) -> bool:
        """Whether the same request may succeed later: the network or the host failed, nothing was refused."""
        if self.rule == "robots_txt":
            return self.value == "unreachable"
        return self.rule in TRANSIENT or (self.rule == "status" and self.value in TRANSIENT_STATUS)


@dataclass
class _Host:
    lock: threading.Lock = field(default_factory=threading.Lock)
    robots: Robots | None = None
    free: float = 0.0  # when it may be asked again
    failed: int = 0


class Fetcher:
    def __init__(self, rules: Mapping[str, Any], client: HttpClient, stop: threading.Event | None = None) -> None:
        self.rules, self.client, self.stop = rules, client, stop or threading.Event()
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
        return Hop(url, answer, utc(), verdict, said.time)

    def _robots(self, origin: str) -> Robots:
        host = self._host(origin)
        with host.lock:
            if host.robots is None:
                host.robots = ask_robots(origin, self.agent, self._plain)
                host.free = time.monotonic() + self.rules["delay"]
            return host.robots

    def _plain(self, url: str) -> Reply:
        """Fetches robots.txt itself: nothing rules over it, and its redirects may lead to other hosts."""
        for _ in range(self.rules["max_redirects"] + 1):
            answer = self.client.get(url, self.headers, ROBOTS_BYTES, self.rules["max_seconds"])
            if answer.status not in REDIRECTS or not answer.header("location"):
                return answer
            url = absolute(answer.header("location"), url)
        raise NetworkError("too_many_redirects", url[:200])

    def _patient(self, origin: str, url: str, max_bytes: int, delay: float) -> Reply:
        """Makes one request in the host's turn; a second one if it asks for patience."""
        host = self._host(origin)
        pause = min(max(self.rules["delay"], delay), self.rules["max_delay"])
        for again in (True, False):
            with self._turn(host, pause):
                try:
                    answer = self.client.get(url, self.headers, max_bytes, self.rules["max_seconds"])
                except NetworkError as error:
                    host.failed += error.rule in ("unreachable", "too_slow", "unresolved", "broke_off")
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


class _Crawl:
    def __init__(self, fetcher: Fetcher, max_bytes: int, check: Check, done: dict[str, bool]) -> None:
        self.fetcher, self.max_bytes, self.check = fetcher, max_bytes, check
        self.done = done  # address -> whether it gave something good
        self.hosts: queue.Queue[list[Wanted]] = queue.Queue()
        self.results: queue.Queue[Fetched | BaseException | None] = queue.Queue(maxsize=16)

    def work(self) -> None:
        try:
            while not self.fetcher.stop.is_set():
                try:
                    things = self.hosts.get_nowait()
                except queue.Empty:
                    break
                for addresses in things:
                    self.one(addresses)
        except BaseException as error:  # it is the main thread's to raise
            self.put(error)
        finally:
            self.put(None)

    def one(self, addresses: Wanted) -> None:
        for url in addresses:
            if self.fetcher.stop.is_set():
                return
            if url not in self.done:
                fetched = self.check(self.fetcher.fetch(url, self.max_bytes))
                if fetched.rule == "stopped":
                    return
                self.done[url] = not fetched.rule
                self.put(fetched)
            if self.done[url]:
                return

    def put(self, result: Fetched | BaseException | None) -> None:
        # With a limit on the wait: where the reader has left, nobody empties the queue any more.
        while not self.fetcher.stop.is_set():
            try:
                return self.results.put(result, timeout=0.2)
            except queue.Full:
                continue


def crawl(
    wanted: Iterable[Wanted], fetcher: Fetcher, hosts: int, max_bytes: int, check: Check, done: dict[str, bool]
) -> Iterator[Fetched]:
    """Fetches all that is not `done` yet. check: adds a rule to what was fetched if it is of no use."""
    job = _Crawl(fetcher, max_bytes, check, done)
    by_host: dict[str, list[Wanted]] = {}
    for addresses in wanted:
        # A host is one thread's whole work, so no two threads wait for the pause of the same host.
        by_host.setdefault(urlsplit(addresses[0]).netloc.lower(), []).append(addresses)
    for things in sorted(by_host.values(), key=len, reverse=True):  # the longest first
        job.hosts.put(things)
    threads = [threading.Thread(target=job.work, daemon=True) for _ in range(min(max(int(hosts), 1), len(by_host)))]
    for thread in threads:
        thread.start()
    running = len(threads)
    try:
        while running:
            try:
                result = job.results.get(timeout=0.5)  # with a limit, so that Ctrl-C is heard on every system
            except queue.Empty:
                continue
            if result is None:
                running -= 1
            elif isinstance(result, BaseException):
                raise result
            else:
                yield result
    finally:
        fetcher.stop.set()
        fetcher.client.close()
        for thread in threads:
            thread.join(timeout=5)
