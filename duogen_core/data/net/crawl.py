"""Many addresses: several hosts at once, of each host one thing after another. Results come as they are ready.

    for fetched in crawl(wanted, fetcher, hosts=8, max_bytes=…, good=…): ...

`wanted` are tuples of addresses of the same thing, best first: the next one is tried when one gives nothing good. An
address is asked for once, however often it is wanted. Leaving the loop cuts what is on its way.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from urllib.parse import urlsplit

from duogen_core.data.net.fetcher import Fetched, Fetcher

Wanted = tuple[str, ...]
Check = Callable[[Fetched], Fetched]


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
        while not self.fetcher.stop.is_set():
            try:
                return self.results.put(result, timeout=0.2)
            except queue.Full:
                continue


def crawl(
    wanted: Iterable[Wanted], fetcher: Fetcher, hosts: int, max_bytes: int, check: Check, done: dict[str, bool]
) -> Iterator[Fetched]:
    """Fetches all that is not `done` yet. check: gives what was fetched a rule if it is of no use."""
    job = _Crawl(fetcher, max_bytes, check, done)
    by_host: dict[str, list[Wanted]] = {}
    for addresses in wanted:
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
        fetcher.network.close()
        for thread in threads:
            thread.join(timeout=5)
