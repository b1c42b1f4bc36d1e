"""One page through all rules: Engine(preset).page(input, name) -> Outcome, the same at any time and on any machine.

(But for pages beyond page.max_seconds or pictures beyond load.max_seconds, caps that depend on the machine.)
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from duogen_core.data.pictures.decoding import Decoder
from duogen_core.data.pictures.duplicates import are_same
from duogen_core.data.web import page_rules
from duogen_core.data.web.compose import compose
from duogen_core.data.web.encodings import decode_page, garbled
from duogen_core.data.web.page import ImageRef, Input, Page, Verdict, Walk
from duogen_core.data.web.pictures import Judged, Pictures
from duogen_core.data.web.preset import Preset
from duogen_core.data.web.walker import TooMuch, walk
from duogen_core.document import Document
from duogen_core.errors import DuoGenError, is_system_failure, system_failure


@dataclass
class Outcome:
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


class Engine:
    """Holds the decoder's process and what is remembered of pictures; close it, or use it in a with statement."""

    def __init__(self, preset: Preset) -> None:
        self.preset = preset
        self.decoder = Decoder({**preset.load, "stored_side": preset.picture["stored_side"]})
        self.pictures = Pictures(preset, self.decoder)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.decoder.close()

    def page(self, input_: Input, name: str) -> Outcome:
        started = time.perf_counter()
        try:
            page = input_.page(name, self.preset.page["max_bytes"])
        except DuoGenError as error:
            nothing = Page(str(input_.path), name, name, b"")
            return Outcome(nothing, Walk(()), Verdict("unreadable", False, str(error)[:300]))
        except (OSError, MemoryError) as error:
            raise system_failure(error, f"the page {name}") from None
        outcome = Outcome(page, Walk(()))
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

    def _through(self, outcome: Outcome, input_: Input, started: float) -> None:
        page, rules = outcome.page, self.preset.page
        if len(page.body) > rules["max_bytes"]:
            outcome.verdict = Verdict("too_many_bytes", False, rules["max_bytes"])
            return
        html = decode_page(page.body, page.content_type)
        outcome.walk = walk(html, rules["max_nodes"], rules["max_depth"])
        outcome.seconds["walk"] = time.perf_counter() - started
        begun = time.perf_counter()
        outcome.verdict = page_rules.before_pictures(page, outcome.walk, garbled(html), self.preset, outcome.facts)
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
        outcome.verdict = outcome.verdict or page_rules.after_pictures(len(kept), rules)
        if outcome.verdict is None:
            outcome.document, removed = compose(page, outcome.walk, kept, outcome.facts, self.preset)
            outcome.facts["removed"] = dict(sorted(removed.items()))
        outcome.seconds["compose"] = time.perf_counter() - begun

    def _judge(self, outcome: Outcome, input_: Input, deadline: float) -> Verdict | None:
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
