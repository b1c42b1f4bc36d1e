"""Rules for a request that a language model wrote: each a name, a threshold of the preset, and the value it decided by.

    verdict = RequestRules(preset, taxonomy).judge(request)     # a Verdict; the first rule that refuses it, or "kept"

The rules know all requests that were kept before, so the order matters: see `expand`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from duogen_core.data.llm.messages import TEMPLATE_MARKS
from duogen_core.data.synthetic.requests import KEPT, Preset, Request, Verdict
from duogen_core.data.text.similarity import NearIndex, Subjects

LINK = re.compile(r"https?://|www\.|\w+@\w+\.\w|\]\(", re.IGNORECASE)
MARKUP = re.compile(r"</?\w+[^<>]*>|```|\$\{|[{}]")
ORDER = re.compile(
    r"\b(ignore|disregard|forget|override)\b.{0,40}\b(instruction|prompt|rule|above|previous)"
    r"|\b(system prompt|developer message|as an ai\b|jailbreak)",
    re.IGNORECASE,
)


class RequestRules:
    def __init__(self, preset: Preset, seeds: Iterable[Request]) -> None:
        self.rules = preset.request
        seeds = list(seeds)
        self.pictures = re.compile(rf"\b(?:{'|'.join(map(re.escape, self.rules['picture_words']))})", re.IGNORECASE)
        self.subjects = Subjects(each.text for each in seeds)
        self.index = NearIndex(self.rules["max_same_wording"])
        self.groups: dict[tuple[str, str], list[str]] = {}
        for each in seeds:
            self.keep(each)

    def keep(self, request: Request) -> None:
        self.index.add(request.text)
        self.groups.setdefault((request.domain, request.subcategory), []).append(request.text)

    def judge(self, request: Request) -> Verdict:
        text, rules = request.text, self.rules
        if len(text) < rules["min_characters"]:
            return Verdict("too_short", len(text))
        if len(text) > rules["max_characters"]:
            return Verdict("too_long", len(text))
        for rule, pattern in (("link", LINK), ("markup", MARKUP), ("markup", TEMPLATE_MARKS), ("order", ORDER)):
            if found := pattern.search(text):
                return Verdict(rule, found[0][:80])
        if not self.pictures.search(text):
            return Verdict("asks_for_no_picture", text[:80])
        if near := self.index.find(text):
            return Verdict("same_wording", f"{near[1]:.2f} {near[0][:80]}")
        group = self.groups.get((request.domain, request.subcategory), [])
        similarity, closest = max(((self.subjects.similarity(text, each), each) for each in group), default=(0.0, ""))
        if similarity >= rules["max_same_subject"]:
            return Verdict("same_subject", f"{similarity:.2f} {closest[:80]}")
        return KEPT
