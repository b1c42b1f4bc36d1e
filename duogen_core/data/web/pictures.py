"""Finds, decodes and judges the pictures of a page: ImageRef -> Judged.

Each address of a picture is tried until one gives a picture that can be read. Pictures that stand on many pages, as
icons do, are decoded once: what is known of the last ones is kept, by the hash of their bytes.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from duogen_core.data.pictures.decoding import Decoder
from duogen_core.data.pictures.nsfw import Nsfw
from duogen_core.data.web import picture_rules
from duogen_core.data.web.page import Found, ImageRef, Input, Page, Verdict, Walk
from duogen_core.data.web.preset import Preset
from duogen_core.errors import DuoGenError

REMEMBERED = 2000  # refused pictures
HELD_BYTES = 48 * 2**20  # of pixels


@dataclass
class Judged:
    """A picture of a page after the rules. verdict: the rule that refused it, or None; then `seen` is there."""

    ref: ImageRef
    verdict: Verdict | None
    url: str = ""
    sha256: str = ""
    facts: dict[str, Any] | None = None
    seen: picture_rules.Seen | None = None

    def log(self) -> dict[str, Any]:
        """What the run's log says of it."""
        entry: dict[str, Any] = {"source": self.ref.sources[0][:200] if self.ref.sources else ""}
        if self.facts and "width" in self.facts:
            entry["size"] = [self.facts["width"], self.facts["height"]]
        if self.sha256:
            entry["sha256"] = self.sha256
        if self.seen and "kind" in self.seen.__dict__:  # only if a rule came to ask for it
            entry["class"], entry["certainty"] = self.seen.kind
        if self.seen and self.seen.nsfw is not None:
            entry["nsfw"] = self.seen.nsfw
        return {**entry, **({"rule": self.verdict.rule, "value": self.verdict.value} if self.verdict else {})}


class Pictures:
    def __init__(self, preset: Preset, decoder: Decoder) -> None:
        self.preset, self.decoder = preset, decoder
        self.refused: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self.held: OrderedDict[str, picture_rules.Seen] = OrderedDict()
        self.held_bytes = 0
        self.nsfw = Nsfw(preset.nsfw) if preset.nsfw["model"] else None

    def judge(self, ref: ImageRef, page: Page, walk: Walk, input_: Input) -> Judged:
        if (verdict := picture_rules.before_loading(ref, page.url, self.preset)) is not None:
            return Judged(ref, verdict)
        refused: Judged | None = None
        for source in ref.sources:
            found = self._bytes(source, page, walk, input_)
            if found.rule:
                if refused is None or not refused.sha256:  # what is there and cannot be read says more
                    refused = Judged(ref, Verdict(found.rule, False, found.value), found.url)
                continue
            sha256 = hashlib.sha256(found.data).hexdigest()
            facts, seen = self._decode(sha256, found.data)
            if seen is not None:
                verdict = picture_rules.by_facts(ref, facts, page.url, self.preset)
                verdict = verdict or picture_rules.by_pixels(seen, self.preset) or self._by_model(seen)
                self._hold(sha256, seen)
                return Judged(ref, verdict, found.url, sha256, facts, seen)
            if refused is None or not refused.sha256:
                # Its size was read before a rule of the decoder refused it, and says more.
                verdict = picture_rules.by_facts(ref, facts, page.url, self.preset) if "width" in facts else None
                verdict = verdict or Verdict(facts["rule"], False, facts.get("format", ""))
                refused = Judged(ref, verdict, found.url, sha256, facts)
        return refused or Judged(ref, Verdict("missing", False, "no address"))

    def _bytes(self, source: str, page: Page, walk: Walk, input_: Input) -> Found:
        try:
            found = input_.picture(page, walk, source, self.preset.load["max_bytes"])
        except DuoGenError as error:  # its place in the input is damaged
            return Found(rule="unreadable", value=str(error)[:300])
        if not found.rule and len(found.data) > self.preset.load["max_bytes"]:
            return Found(url=found.url, rule="too_many_bytes", value=len(found.data))
        return found

    def _decode(self, sha256: str, data: bytes) -> tuple[dict[str, Any], picture_rules.Seen | None]:
        if sha256 in self.held:
            self.held.move_to_end(sha256)
            return self.held[sha256].facts, self.held[sha256]
        if sha256 in self.refused:
            self.refused.move_to_end(sha256)
            return self.refused[sha256], None
        facts, pixels = self.decoder.decode(data)
        if pixels is None:
            self.refused[sha256] = facts
            if len(self.refused) > REMEMBERED:
                self.refused.popitem(last=False)
            return facts, None
        return facts, picture_rules.Seen(facts, pixels)

    def _by_model(self, seen: picture_rules.Seen) -> Verdict | None:
        """The last and dearest rule."""
        if self.nsfw is None:
            return None
        if seen.nsfw is None:
            seen.nsfw = self.nsfw.score(seen.pixels)
        return Verdict("nsfw", False, seen.nsfw) if seen.nsfw >= self.preset.nsfw["threshold"] else None

    def _hold(self, sha256: str, seen: picture_rules.Seen) -> None:
        if sha256 not in self.held:
            self.held_bytes += seen.pixels.nbytes
        self.held[sha256] = seen
        while self.held_bytes > HELD_BYTES and len(self.held) > 1:
            self.held_bytes -= self.held.popitem(last=False)[1].pixels.nbytes
