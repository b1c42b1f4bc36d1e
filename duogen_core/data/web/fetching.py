"""Live fetching for a run, only when asked for (`data web --fetch`): listed pages, and pictures that inputs lack.

    fetch(OUT/fetched, mark, lists, opened, preset, network, report)     resumes where it was stopped

After a fault that may pass (the network, a busy host) an address is tried again at the end, once, and by every later
start. Where more than a share of the addresses has failed that way, the run gets no plan: an error says so.

OUT/fetched/pages.warc.gz is then an input of the run, and pictures.warc.gz a second place for every input: a picture
that an input lacks is looked up there. Pictures that a rule refuses by what the page says of them are not fetched.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duogen_core.data.runs.folder import FileDigests
from duogen_core.data.runs.presets import Preset
from duogen_core.data.web import pictures
from duogen_core.data.web.encodings import decode_page, garbled
from duogen_core.data.web.image_elements import PLACEHOLDER
from duogen_core.data.web.page import HTML, Found, ImageRef, Input, Page, Walk, before_pictures, wishes_of
from duogen_core.data.web.walker import walk
from duogen_core.data.web.warc import Warc
from duogen_core.errors import DuoGenError, is_system_failure, system_failure
from duogen_core.files import read_json, write_atomically
from duogen_core.net.archive import Archive
from duogen_core.net.client import HttpClient
from duogen_core.net.crawl import Fetched, Fetcher, crawl
from duogen_core.net.links import absolute, refusal

LISTS = (".txt", ".urls")
MAX_UNREACHABLE = 0.1  # of the addresses: the share that may be left without an answer
NAMED = ("status", "robots_txt")  # rules whose value says why
ROUNDS = 2  # in one start
Report = Callable[[str, int, int, int], None]  # what, done, of how many, good ones


class WithFetched(Input):
    """An input with the pictures that were fetched for its pages."""

    def __init__(self, inner: Input, fetched: Warc) -> None:
        self.inner, self.fetched, self.path = inner, fetched, inner.path

    def names(self) -> Iterator[str]:
        return self.inner.names()

    def page(self, name: str, max_bytes: int) -> Page:
        return self.inner.page(name, max_bytes)

    def identity(self, digests: FileDigests) -> dict[str, Any]:
        return self.inner.identity(digests)

    def picture(self, page: Page, walk: Walk, source: str, max_bytes: int) -> Found:
        found = self.inner.picture(page, walk, source, max_bytes)
        if found.rule != "missing" or not address_of(page, walk, source):
            return found
        again = self.fetched.picture(page, walk, source, max_bytes)
        return found if again.rule == "missing" else again


def is_list(path: Path) -> bool:
    return path.suffix.lower() in LISTS and not path.is_dir()


def read_list(path: Path) -> list[str]:
    """Reads addresses, one a line; a line that begins with # is a remark."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DuoGenError(f"The list of pages {path} cannot be read: {error}.") from None
    addresses = []
    for number, line in enumerate(map(str.strip, lines), 1):
        if line and not line.startswith("#"):
            address = absolute(line, line)
            if reason := refusal(address):
                raise DuoGenError(f"{path}, line {number}: {line[:200]!r} is not fetched ({reason}); expected http(s).")
            addresses.append(address)
    if not addresses:
        raise DuoGenError(f"{path} holds no address; expected one a line.")
    return list(dict.fromkeys(addresses))


def address_of(page: Page, walk: Walk, source: str) -> str:
    """Returns the address of a picture on the web, or nothing."""
    if not page.url.startswith(("http://", "https://")):
        return ""
    address = absolute(source, absolute(walk.base, page.url) if walk.base else page.url)
    return "" if refusal(address) else address


def fetch(
    folder: Path,
    mark: str,
    lists: Sequence[Path],
    opened: Callable[[], Sequence[Input]],
    preset: Preset,
    network: HttpClient,
    report: Report,
    max_unreachable: float = MAX_UNREACHABLE,
) -> list[str]:
    """Fetches pages, then the pictures that these and the other inputs lack. Returns sentences about what failed.

    mark: changes with inputs and rules. max_unreachable: the share of addresses, 0 … 1, that may fail.
    """
    begun = folder / "begun.json"
    if begun.exists() and read_json(begun) != mark:
        raise DuoGenError(f"{folder} was fetched for other inputs or rules; choose another --out, or remove it.")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(begun, json.dumps(mark).encode())
    job = _Job(folder, preset, network, report, max_unreachable)
    return [note for note in (_fetch_pages(job, lists), _fetch_pictures(job, opened())) if note]


@dataclass(frozen=True)
class _Job:
    folder: Path
    preset: Preset
    network: HttpClient
    report: Report
    max_unreachable: float


def _fetch_pages(job: _Job, lists: Sequence[Path]) -> str:
    if not lists:
        return ""
    wanted = dict.fromkeys(address for path in lists for address in read_list(path))
    return _fetch(job, "pages", [(url,) for url in wanted], _html, job.preset.page["max_bytes"])


def _fetch_pictures(job: _Job, inputs: Sequence[Input]) -> str:
    preset = job.preset
    wanted = dict.fromkeys(each for input_ in inputs for each in missing_pictures(input_, preset))

    def check(fetched: Fetched) -> Fetched:
        if fetched.rule:
            return fetched
        answer = fetched.hops[-1].answer
        wishes = wishes_of(answer.header("x-robots-tag"))
        if refused := [wish for wish in preset.page["refuse_robots"] if wish in wishes]:
            return Fetched(fetched.url, fetched.hops, "robots", ", ".join(refused))
        kind = _kind(fetched)
        return fetched if kind not in HTML else Fetched(fetched.url, fetched.hops, "wrong_type", kind)

    return _fetch(job, "pictures", list(wanted), check, preset.load["max_bytes"])


def _html(fetched: Fetched) -> Fetched:
    if fetched.rule or _kind(fetched) in HTML:
        return fetched
    return Fetched(fetched.url, fetched.hops, "wrong_type", _kind(fetched)[:100])


def _kind(fetched: Fetched) -> str:
    return fetched.hops[-1].answer.header("content-type").partition(";")[0].strip().lower()


def _fetch(
    job: _Job, name: str, wanted: list[tuple[str, ...]], check: Callable[[Fetched], Fetched], max_bytes: int
) -> str:
    """Fetches what is not done; returns a sentence about what failed for reasons that may pass, or nothing."""
    with Archive(job.folder, name) as archive:

        def open_ones() -> list[tuple[str, ...]]:
            """Returns what has nothing good yet and still has an address to try."""
            return [each for each in wanted if not any(archive.done.get(url) for url in each) and
                    any(url not in archive.done for url in each)]  # fmt: skip

        for number in range(ROUNDS):
            todo = open_ones()
            if number and todo:
                time.sleep(job.preset.fetch["delay"])  # between two requests to a host, whatever the round
            before, done = len(wanted) - len(todo), set()
            # A fresh Fetcher in each round: a host that was left alone after faults gets another chance.
            fetcher = Fetcher(job.preset.fetch, job.network, threading.Event())
            for fetched in crawl(todo, fetcher, job.preset.fetch["hosts"], max_bytes, check, dict(archive.done)):
                archive.add(fetched)
                done.add(fetched.url)
                job.report(name, before + min(len(done), len(todo)), len(wanted), archive.kept)
        failed = ([archive.transient[url] for url in each if url in archive.transient] for each in open_ones())
        left = [each[0] for each in failed if each]
    if not left:
        return ""
    reasons = Counter(f"{each.rule} {each.value}" if each.rule in NAMED else each.rule for each in left)
    told = (
        f"{len(left):,} of {len(wanted):,} {name} could not be fetched because the network or a host failed "
        f"({', '.join(f'{reason} {count:,}' for reason, count in reasons.most_common())}; the first is "
        f"{left[0].url[:200]})"
    )
    if len(left) > job.max_unreachable * len(wanted):
        raise DuoGenError(
            f"{told}, which is more than {job.max_unreachable:.0%}. What came is kept. Run the same command again to "
            "ask for them again, or go on without them with --max-unreachable 1."
        )
    return f"{told}; the run goes on without them."


def missing_pictures(input_: Input, preset: Preset) -> Iterator[tuple[str, ...]]:
    """Yields, for every picture that the rules would look at and the input lacks, its addresses, best first."""
    for name in input_.names():
        try:
            page = input_.page(name, preset.page["max_bytes"])
            if len(page.body) > preset.page["max_bytes"]:
                continue
            html = decode_page(page.body, page.content_type)
            seen = walk(html, preset.page["max_nodes"], preset.page["max_depth"])
            if before_pictures(page, seen, garbled(html), preset, {}) is not None:
                continue
        except Exception as error:  # the run itself says what is wrong with the page
            if is_system_failure(error):
                raise system_failure(error, f"the page {name}") from None
            continue
        for ref in seen.images[: preset.load["max_images"]]:
            if addresses := _missing(ref, input_, page, seen, preset):
                yield addresses


def _missing(ref: ImageRef, input_: Input, page: Page, seen: Walk, preset: Preset) -> tuple[str, ...]:
    if pictures.before_loading(ref, page.url, preset) is not None:
        return ()
    addresses = []
    for source in ref.sources:
        found = input_.picture(page, seen, source, preset.load["max_bytes"])
        # A placeholder that is there does not stand for the real picture, whose address came before it.
        if not found.rule and not (addresses and PLACEHOLDER.search(source[:1000])):
            return ()
        if found.rule == "missing" and (address := address_of(page, seen, source)):
            addresses.append(address)
    return tuple(dict.fromkeys(addresses))
