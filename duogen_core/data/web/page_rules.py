"""The rules for pages: each says by what value it decides, and whether the page stays.

`before_pictures` asks those that need the walk alone, so that no image of a page of the wrong language is decoded;
`after_pictures` counts what was kept. py3langid tells languages: its model is in the package, nothing is fetched and
nothing is random.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from duogen_core.data.runs.presets import Preset
from duogen_core.data.web.page import Block, Page, Verdict, Walk
from duogen_core.errors import MissingPackage

WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*|[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
LANGUAGE_CHARACTERS = 3000  # of the text, by which its language is told


def before_pictures(page: Page, walk: Walk, garbled: float, preset: Preset, facts: dict[str, Any]) -> Verdict | None:
    """Returns the first rule that refuses the page before its pictures are looked at. Fills `facts` for the log."""
    return next((verdict for verdict in _verdicts(page, walk, garbled, preset, facts) if not verdict.keep), None)


def _verdicts(page: Page, walk: Walk, garbled: float, preset: Preset, facts: dict[str, Any]) -> Iterator[Verdict]:
    rules, blocks = preset.page, content(walk)
    text = "\n".join(block.text for block in blocks)
    facts["words"] = len(WORD.findall(text))
    facts["images"] = len(walk.images)
    yield robots(page, walk, rules)
    yield Verdict("garbled", garbled <= rules["max_garbled"], round(garbled, 4))
    outside = sum(not image.region and image.kind != "svg" for image in walk.images)
    yield Verdict("text_only", outside >= rules["min_pictures"], outside)
    yield Verdict("too_short", facts["words"] >= rules["min_words"], facts["words"])
    yield Verdict("too_long", facts["words"] <= rules["max_words"], facts["words"])
    yield linked(blocks, rules)
    yield repeated(blocks, rules)
    facts["language"], facts["certainty"] = language_of(text)
    yield language(facts["language"], facts["certainty"], rules)


def content(walk: Walk) -> list[Block]:
    """Returns the blocks outside of navigation, adverts and the like."""
    return [block for block in walk.blocks if not block.region]


def robots(page: Page, walk: Walk, rules: Mapping[str, Any]) -> Verdict:
    """Decides by what the page, or its server in X-Robots-Tag, asks of robots."""
    wishes = wishes_of(f"{page.headers.get('x-robots-tag', '')}, {walk.robots}")
    refused = [wish for wish in rules["refuse_robots"] if wish in wishes]
    return Verdict("robots", not refused, ", ".join(refused) or ", ".join(sorted(wishes)))


def wishes_of(text: str) -> set[str]:
    return {wish for part in text.lower().split(",") for wish in part.replace(":", " ").split()}


def linked(blocks: Sequence[Block], rules: Mapping[str, Any]) -> Verdict:
    """Decides by how much of the text is in links: tables of contents are no pages to learn from."""
    share = sum(block.linked for block in blocks) / max(sum(len(block.text) for block in blocks), 1)
    return Verdict("linked", share <= rules["max_linked"], round(share, 3))


def repeated(blocks: Sequence[Block], rules: Mapping[str, Any]) -> Verdict:
    """Decides by how much of the text repeats earlier lines. Short lines, such as "Note", may repeat."""
    lines = [line.strip() for block in blocks for line in block.text.split("\n") if len(line.strip()) >= 20]
    total = sum(map(len, lines))
    share = 1 - sum(map(len, set(lines))) / total if total else 0.0
    return Verdict("repeated", share <= rules["max_repeated"], round(share, 3))


def language(code: str, certainty: float, rules: Mapping[str, Any]) -> Verdict:
    if not rules["languages"]:
        return Verdict("language", True, code)
    keep = code in rules["languages"] and certainty >= rules["min_language"]
    return Verdict("language", keep, f"{code} {certainty:g}")


def after_pictures(kept: int, rules: Mapping[str, Any]) -> Verdict | None:
    if kept < rules["min_pictures"]:
        return Verdict("no_picture_left", False, kept)
    if kept > rules["max_pictures"]:
        return Verdict("too_many_pictures", False, kept)
    return None


def language_of(text: str) -> tuple[str, float]:
    """Returns the ISO 639-1 code and its probability."""
    code, probability = _identifier().classify(text[:LANGUAGE_CHARACTERS])
    return str(code), round(float(probability), 4)


@cache
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise MissingPackage("Telling languages", "py3langid", "data") from None
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
