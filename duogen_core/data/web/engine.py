"""One page through all rules: WebEngine(preset).page(input, name) -> PageResult, the same at any time and anywhere.

(But for pages beyond page.max_seconds or pictures beyond load.max_seconds, caps that depend on the machine.)
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from duogen_core.data.pictures import classing
from duogen_core.data.pictures.decoding import Decoder
from duogen_core.data.pictures.duplicates import are_same
from duogen_core.data.runs import Engine, Outcome
from duogen_core.data.runs.folder import FileDigests, make_folders
from duogen_core.data.runs.presets import Preset, digest, preset_of_run
from duogen_core.data.runs.run import Run
from duogen_core.data.runs.shards import photos_as_jpeg
from duogen_core.data.web.compose import compose
from duogen_core.data.web.encodings import decode_page, garbled
from duogen_core.data.web.fetching import MAX_UNREACHABLE, Report, WithFetched, fetch, is_list, read_list
from duogen_core.data.web.inputs import open_inputs
from duogen_core.data.web.page import ImageRef, Input, Page, Verdict, Walk, after_pictures, before_pictures
from duogen_core.data.web.pictures import Judged, Pictures, read_hosts
from duogen_core.data.web.walker import TooMuch, walk
from duogen_core.data.web.warc import Warc, log_damage
from duogen_core.document import Document, Picture
from duogen_core.errors import DuoGenError, is_system_failure, system_failure
from duogen_core.net.client import HttpClient


@dataclass
class PageResult:
    """What became of a page. verdict: the rule that refused it, or None; then there is a document."""

    page: Page
    walk: Walk
    verdict: Verdict | None = None
    document: Document | None = None
    judged: dict[int, Judged] = field(default_factory=dict)  # by the picture's index in walk.items
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: Counter[str] = field(default_factory=Counter)

    def log(self) -> dict[str, Any]:
        """The line of the run's log: nothing in it depends on the machine."""
        refused = {"rule": self.verdict.rule, "value": self.verdict.value} if self.verdict else {}
        pictures = [judged.log() for judged in self.judged.values()]
        page = {"input": self.page.input, "page": self.page.name, "url": self.page.url, "title": self.walk.title}
        return {**page, "kept": self.document is not None, **refused, **self.facts, "pictures": pictures}


def _silent(_: str) -> None:
    """What workers say."""


@dataclass
class Fetching:
    """How missing pages and pictures are brought before there is a plan: only when asked for (--fetch).

    max_unreachable: the share of addresses that may be left because the network or a host failed; beyond it there is no
    plan and an error. report tells how far it is.
    """

    network: HttpClient
    report: Report = lambda *_: None
    max_unreachable: float = MAX_UNREACHABLE


class WebEngine(Engine):
    """Items are [number of the input, name of the page].

    OUT/index/000.sqlite  of a WARC file (`warc`); digests.json, of what stood in the inputs (`runs.folder`)
    OUT/inputs.jsonl      a line an input, if a WARC file among them is damaged: where, and how
    OUT/fetched/          what --fetch brought, before there was a plan (`fetching`)
    """

    kind, things, size_name = "web", "pages", "shard_pages"
    keeps_lock = True

    def __init__(
        self,
        preset: Preset,
        paths: Sequence[str] = (),
        folder: Path | None = None,
        fetching: Fetching | None = None,
        say: Callable[[str], None] = _silent,
    ) -> None:
        """paths: WARC files, folders and files of pages, lists of addresses. folder: of the run."""
        self.preset, self.paths, self.folder, self.fetching, self.say = preset, tuple(paths), folder, fetching, say
        self.lists = [path for path in map(Path, paths) if is_list(path)]
        for path in map(Path, paths):
            if folder and path.is_dir() and path.resolve() in (folder.resolve(), *folder.resolve().parents):
                raise DuoGenError(
                    f"{folder} lies in the input {path}, where it would be read as input; choose another --out."
                )

    @classmethod
    def of_run(cls, run: Run) -> WebEngine:
        return cls(preset_of_run("web", run.details["preset"]), run.details["paths"], run.folder)

    @cached_property
    def decoder(self) -> Decoder:
        return Decoder({**self.preset.load, "stored_side": self.preset.picture["stored_side"]})

    @cached_property
    def pictures(self) -> Pictures:
        return Pictures(self.preset, self.decoder)

    @cached_property
    def inputs(self) -> list[Input]:
        planned = self.folder is not None and (self.folder / "run.json").exists()
        return self._opened(self.folder, finished=True, planned=planned) if self.paths else []

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "fetching": None, "say": _silent}

    def identity(self) -> dict[str, Any]:
        if self.lists and not self.fetching:
            raise DuoGenError(f"{self.lists[0]} is a list of pages on the web; they are fetched only with --fetch.")
        self.digests = FileDigests(self.folder / "index" / "digests.json")
        hosts = self.preset.advert["hosts"]
        return {
            "inputs": [{"path": str(each.path), **each.identity(self.digests)} for each in self._opened(None)],
            "fetch": digest([read_list(path) for path in self.lists]) if self.fetching else None,
            "preset": self.preset.to_json(),
            "nsfw": classing.identity(self.preset.nsfw, self.digests),
            "ad_hosts": digest(sorted(read_hosts(hosts))) if hosts else None,
        }

    def prepare(self, folder: Path, identity: Mapping[str, Any]) -> None:
        make_folders(folder, ("index",))
        self.digests.save()
        if how := self.fetching:
            self.notes = fetch(
                folder / "fetched", digest(identity), self.lists, lambda: self._opened(folder), self.preset,
                how.network, how.report, how.max_unreachable,
            )  # fmt: skip

    def items(self) -> Iterator[list[Any]]:
        for number, each in enumerate(self.inputs):
            yield from ([number, name] for name in each.names())
        self.notes = [*self.notes, *log_damage(self.folder / "inputs.jsonl", self.inputs)]

    def group(self, item: list[Any]) -> int:
        return item[0]

    def details(self) -> dict[str, Any]:
        return {"paths": list(self.paths), "preset": self.preset.to_json()}

    def do(self, item: list[Any]) -> Outcome:
        found = self.page(self.inputs[item[0]], item[1])
        documents = [("", found.document)] if found.document is not None else []
        return Outcome(found.log(), documents, seconds=found.seconds)

    def encode(self, picture: Picture) -> tuple[bytes, str]:
        return photos_as_jpeg(self.preset.picture["photo_quality"])(picture)

    def page(self, input_: Input, name: str) -> PageResult:
        started = time.perf_counter()
        try:
            page = input_.page(name, self.preset.page["max_bytes"])
        except DuoGenError as error:
            nothing = Page(str(input_.path), name, name, b"")
            return PageResult(nothing, Walk(()), Verdict("unreadable", False, str(error)[:300]))
        except (OSError, MemoryError) as error:
            raise system_failure(error, f"the page {name}") from None
        outcome = PageResult(page, Walk(()))
        try:
            self._through(outcome, input_, started)
        except TooMuch as error:
            outcome.verdict = Verdict(error.rule, False, error.value)
        except DuoGenError:
            raise
        except Exception as error:  # one page in a million must not end the run; the log says which and what
            if is_system_failure(error):
                raise system_failure(error, f"the page {page.name}") from None
            outcome.verdict = Verdict("failed", False, f"{type(error).__name__}: {error}"[:300])
        outcome.document = None if outcome.verdict else outcome.document
        return outcome

    def _through(self, outcome: PageResult, input_: Input, started: float) -> None:
        page, rules = outcome.page, self.preset.page
        if len(page.body) > rules["max_bytes"]:
            outcome.verdict = Verdict("too_many_bytes", False, rules["max_bytes"])
            return
        html = decode_page(page.body, page.content_type)
        outcome.walk = walk(html, rules["max_nodes"], rules["max_depth"])
        outcome.seconds["walk"] = time.perf_counter() - started
        begun = time.perf_counter()
        outcome.verdict = before_pictures(page, outcome.walk, garbled(html), self.preset, outcome.facts)
        outcome.seconds["page rules"] = time.perf_counter() - begun
        if outcome.verdict:
            return
        begun = time.perf_counter()
        outcome.verdict = self._judge(outcome, input_, started + rules["max_seconds"])
        for judged in outcome.judged.values():
            if judged.seen is not None:
                judged.seen.drop_fingerprints()
        outcome.seconds["pictures"] = time.perf_counter() - begun
        begun = time.perf_counter()
        kept = {index: judged for index, judged in outcome.judged.items() if judged.verdict is None}
        outcome.verdict = outcome.verdict or after_pictures(len(kept), rules)
        if outcome.verdict is None:
            outcome.document, removed = compose(page, outcome.walk, kept, outcome.facts, self.preset)
            outcome.facts["removed"] = dict(sorted(removed.items()))
        outcome.seconds["compose"] = time.perf_counter() - begun

    def _judge(self, outcome: PageResult, input_: Input, deadline: float) -> Verdict | None:
        """Judge the pictures in order; a copy of the kept one just before is refused."""
        last: Judged | None = None
        looked_at = 0
        for index, item in enumerate(outcome.walk.items):
            if not isinstance(item, ImageRef):
                continue
            looked_at += 1
            if looked_at > self.preset.load["max_images"]:
                return Verdict("too_many_images", False, len(outcome.walk.images))
            if time.perf_counter() > deadline:
                return Verdict("too_slow", False, self.preset.page["max_seconds"])
            judged = self.pictures.judge(item, outcome.page, outcome.walk, input_)
            outcome.judged[index] = judged
            if judged.verdict is not None:
                continue
            if last is not None and (same := self._same(last, judged)) is not None:
                judged.verdict = same
            else:
                last = judged
        return None

    def _same(self, last: Judged, judged: Judged) -> Verdict | None:
        if last.sha256 == judged.sha256:
            return Verdict("duplicate", False, 0.0)
        same, difference = are_same(last.seen.fingerprints, judged.seen.fingerprints, self.preset.duplicate)
        return Verdict("duplicate", False, difference) if same else None

    def _opened(self, folder: Path | None, finished: bool = False, planned: bool = False) -> list[Input]:
        """The inputs, and what was fetched for them; with indices if there is a folder.

        finished: all was fetched. planned: there is a plan, whose pages stand at the places that the indices say.
        """
        given = [path for path in self.paths if not is_list(Path(path))]
        inputs = open_inputs(given) if given else []
        if folder is None:
            return inputs
        fetched = folder / "fetched"
        if (fetched / "pages.warc.gz").exists():
            inputs.append(Warc(fetched / "pages.warc.gz"))
        for number, each in enumerate(inputs):
            if isinstance(each, Warc):
                self._index(each, folder / "index" / f"{number:03d}.sqlite", planned)
        if finished and (fetched / "pictures.warc.gz").exists():
            pictures = Warc(fetched / "pictures.warc.gz")
            self._index(pictures, folder / "index" / "pictures.sqlite", planned)
            inputs = [WithFetched(each, pictures) for each in inputs]
        return inputs

    def _index(self, warc: Warc, index: Path, planned: bool) -> None:
        if planned and index.exists():
            return warc.use_finished_index(index)
        if not index.exists():
            self.say(f"Indexing {warc.path} …")
        warc.use_index(index)
