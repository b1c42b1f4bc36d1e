"""What a request wants, found by code and not by a model: a guide, a story or a plain answer; how many parts; pictures.

    wish_of("How do I fold a paper boat in 4 steps?")  ->  Wish("howto", 4, None, "en")

In: a request as text, or a whole Document, whose last user turn is the request. Out: a Wish. Small models plan far
better when they are told kind and count than when they are to find them out (docs/planning.md), and most requests say
both in plain words: those words stand in `request_words.py`, a table for each language. Where they say nothing, the
kind is "unsure" and the writer decides, which is worth more than a guess.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Literal

from duogen_core.planning.language import language_of, plain
from duogen_core.planning.request_words import LANGUAGES, Words

if TYPE_CHECKING:
    from duogen_core.document import Document

Kind = Literal["howto", "story", "plain", "unsure"]
READ = 3000  # characters at either end of a long request; the wish stands before or behind what is pasted
MOST_COUNTED = 999
DRAWN = 4  # how strong a word of drawing is, beside those of `Words.kinds`


@dataclass(frozen=True)
class Wish:
    """kind: "unsure" where code cannot tell. count: how many parts were asked for; least and most where the request
    names a limit in place of a number ("at most 5 steps"). pictures: where the request says so outright. language: an
    ISO 639-1 code, "" where the request is too short to tell.

    A drawing ("Draw a cat on a roof") and an edit ("Make the roof blue", with a picture) are neither a guide nor a
    story: kind "unsure", count 1, pictures True, which is one part with one picture, whatever the writer takes it for.
    """

    kind: Kind = "unsure"
    count: int | None = None
    pictures: bool | None = None
    language: str = ""
    least: int | None = None
    most: int | None = None

    @property
    def pictured(self) -> bool | None:
        """Whether the answer is to have pictures; None: the writer decides. What the user says outright comes first."""
        if self.pictures is not None:
            return self.pictures
        if self.count is not None and self.kind == "unsure":
            return True
        return {"howto": True, "story": True, "plain": False, "unsure": None}[self.kind]

    def parts(self, fewest: int, most: int) -> tuple[int, int]:
        """Returns how few and how many parts may come; fewest and most: where the request does not say."""
        if self.count is not None:
            return self.count, self.count
        least, limit = self.least or min(fewest, self.most or fewest), self.most or max(most, self.least or most)
        return min(least, limit), limit


def wish_of(request: Document | str) -> Wish:
    """Returns what the last turn of the user wants; where that says no kind or language, the turns before it do."""
    if isinstance(request, str):
        return _wish(request)
    asked = [turn for turn in request.turns if turn.role == "user"]
    if not asked:
        return Wish()
    wish, text = _wish(asked[-1].text), plain(asked[-1].text).lower()
    tables = [LANGUAGES[wish.language]] if wish.language in LANGUAGES else list(LANGUAGES.values())
    last = next(k for k in reversed(range(len(request.turns))) if request.turns[k] is asked[-1])
    seen = any(turn.pictures for turn in request.turns[: last + 1])
    # "Make the roof blue": one picture, made of one that is there. As a how-to it would be a guide to painting roofs.
    edit = seen and wish.kind in ("unsure", "plain") and wish.count is None
    if edit and any(words.edit.search(text) for words in tables):
        return replace(wish, kind="unsure", count=1, pictures=wish.pictures is not False)
    for turn in reversed(asked[:-1]):
        before = _wish(turn.text)
        if not wish.language:
            wish = replace(wish, language=before.language)
        # "Shorter, please: 3 steps" goes on with the guide; "Draw a cat" does not.
        if wish.kind == "unsure" and before.kind != "unsure" and not (wish.count == 1 and wish.pictures):
            wish = replace(wish, kind=before.kind)
    return wish


def _wish(request: str) -> Wish:
    if len(request) > 2 * READ:
        request = f"{request[:READ]}\n{request[-READ:]}"
    language = language_of(request)
    # A request of few words may have none that tells its language; then the first table that knows one of its words.
    tried = [language] if language else list(LANGUAGES)
    for one in tried:
        if one not in LANGUAGES:  # numbers and words such as "guide" and "comic" are the same in many languages
            wish = replace(_by("en", request), language=one)
            return wish if wish.kind in ("howto", "story") else replace(wish, kind="unsure")
        wish = _by(one, request)
        if wish != Wish():
            return replace(wish, language=one)
    return Wish(language=language)


# A quotation is talked about and asks for nothing.
QUOTED = re.compile(
    "|".join(f"{a}[^{b}\n]{{1,1500}}{b}" for a, b in ('""', "“”", "«»", "「」", "『』", "《》", "``"))
    + r"|„[^“”\n]{1,1500}[“”]|(?<!\w)'[^'\n]{3,1500}'(?!\w)"
)
SENTENCES = re.compile(r"(?<=[.!?])\s+|[\n;。！？；]+|(?<=[.!?]):\s")


def _by(language: str, request: str) -> Wish:
    words = LANGUAGES[language]
    lines = re.sub(r"[\r\n]+", " \n ", request)
    text = "\n".join(plain(line) for line in lines.split("\n")).lower()
    unquoted = QUOTED.sub(' "…" ', text)
    if not re.search(r"\w", unquoted.replace('"…"', "")):
        unquoted = text.strip("\"'“”„«»「」『』《》")
    sentences = [one.strip(" ,") for one in SENTENCES.split(unquoted) if one.strip(" ,.!?")]
    whole = " ".join(sentences)
    pictures = _pictures(words, sentences)
    if any(words.task.search(one) for one in sentences[:2]):
        return Wish("plain", pictures=None if pictures is True and not words.draw.search(sentences[0]) else pictures)
    kind = _kind(words, sentences)
    if kind == "howto" and words.code and words.code.search(whole) and not pictures:
        kind = "plain"  # a program is no picture; a guide with screenshots was asked for as such
    counts = [] if kind == "plain" and not pictures else list(_counts(language, sentences))
    count, least, most = _chosen(counts)
    if pictures is None and any(rank == len(words.units) - 1 for rank, *_ in counts):
        pictures = True  # "in six pictures"
    if kind == "unsure" and count is None and least is None and most is None and any(map(words.draw.search, sentences)):
        pictures = pictures is not False
        count = 1 if any(map(words.one.search, sentences)) else None
    if kind in ("unsure", "plain") and pictures and any(re.search(_HOW_IT_WORKS, one) for one in sentences):
        kind = "howto"
    return Wish(kind, count, pictures, "", least, most)


# "How does a volcano erupt, with pictures": pictures in turn, as a guide has.
_HOW_IT_WORKS = (
    r"\bhow\s(?:does|do|did|is|are|an?|the)\b|\bwie\s(?:funktioniert|entsteh|arbeitet)|\bc[oó]mo\s(?:funciona|se\sforma)"
    r"|(?:怎么|如何|怎样)(?:工作|形成|运作)"
)


def _kind(words: Words, sentences: list[str]) -> Kind:
    """In a sentence the strongest words decide: "Who wrote the story of …" is a question. Of several sentences the
    first that asks for a guide or a story does, whatever is told besides; where none does, a plain question."""
    verdicts: list[tuple[int, Kind]] = []
    for sentence in sentences:
        found = [
            (-strength, kind == "plain", match.start(), kind)
            for kind, strength, pattern in words.kinds
            if (match := pattern.search(sentence))
        ]
        if drawn := words.draw.search(sentence):  # "Can you draw me a dinosaur?" is no question
            found.append((-DRAWN, False, drawn.start(), "unsure"))
        if found:
            strength, _, _, kind = min(found)
            verdicts.append((-strength, kind))  # type: ignore[arg-type]
    asked = [(strength, kind) for strength, kind in verdicts if kind != "plain" and strength >= 4]
    if asked:
        certain = [kind for _, kind in asked if kind != "unsure"]
        return certain[0] if certain else "unsure"
    if any(kind == "plain" for _, kind in verdicts):
        return "plain"
    return verdicts[0][1] if verdicts else "unsure"  # a noun alone: "the manual is missing"


def _pictures(words: Words, sentences: list[str]) -> bool | None:
    said: bool | None = None
    for sentence in sentences:
        if words.no_pictures.search(sentence):
            said = False
        elif words.pictures.search(words.not_wanted.sub(" ", sentence) if words.not_wanted else sentence):
            said = True if said is None else said
    return said


# ------------------------------------------------------------ how many parts

Counted = tuple[int, int, "int | None", "int | None", "int | None"]  # rank of the unit, sentence, count, least, most


@cache
def _counting(language: str) -> tuple[tuple[int, re.Pattern], ...]:
    """Returns the patterns of counted units of a language, each with the rank of its unit."""
    words = LANGUAGES[language]
    names = "|".join(sorted(map(re.escape, words.numbers), key=len, reverse=True))
    if words.spaced:
        number = rf"(?:(?<![\w.,:#$€£/])\d{{1,3}}(?![\d%°]|[.,:]\d)|(?<![\w-])(?:{names})(?!\w))"
        gap, end = r"(?:\s?\(\d+\))?[\s-]*", r"(?!\w)"
    else:
        number, gap, end = rf"(?<!第)(?:(?<![\d.])\d{{1,3}}(?![\d%°]|\.\d)|(?:{names}))", r"\s*", ""
    before = (
        rf"(?:(?P<least>{words.least})|(?P<most>{words.most})|(?P<over>{words.more_than})|(?P<under>{words.fewer}))"
    )
    found = []
    for unit in words.units:
        # "3 or more steps" and "3 steps or more"
        limits = rf"(?:\s*(?:(?P<more%d>{words.or_more})|(?P<less%d>{words.or_less})))?"
        counted = rf"(?:(?P<first>{number}){words.to})?(?P<number>{number}){limits % (1, 1)}{gap}{words.between}"
        found.append(rf"(?:{before}\s*)?{counted}(?:{unit}){end}{limits % (2, 2)}")
        if words.spaced:  # "panels: 6", "number of steps = 4"
            found.append(rf"\b(?:{unit})\s?[:=(]\s?(?P<number>{number})(?=\s*(?:$|[).,;!?]))")
    per_unit = 2 if words.spaced else 1
    return tuple((place // per_unit, re.compile(pattern)) for place, pattern in enumerate(found))


_STAIRS = re.compile(r"\b(?:stairs?|staircase|ladder|treppe\w*|leiter|escalera\w*)\b|楼梯")


def _counts(language: str, sentences: list[str]) -> Iterator[Counted]:
    words = LANGUAGES[language]
    for number, sentence in enumerate(sentences):
        for rank, pattern in _counting(language):
            for match in pattern.finditer(sentence):
                groups, rest = match.groupdict(), sentence[match.end() :]
                if words.each and words.each.search(rest):
                    continue
                value = _value(words, match["number"])
                if value is None or not 1 <= value <= MOST_COUNTED:
                    continue
                if rank == 0 and _STAIRS.search(sentence[: match.start()]):
                    continue
                if words.not_wanted and any(
                    one.start() < match.end() <= one.end() for one in words.not_wanted.finditer(sentence)
                ):
                    continue
                first = _value(words, groups.get("first"))
                said = {name.rstrip("12") for name, text in groups.items() if text}
                if first is not None and first < value:
                    yield rank, number, None, first, value
                elif "under" in said:
                    yield rank, number, None, None, max(value - 1, 1)
                elif "over" in said:
                    yield rank, number, None, min(value + 1, MOST_COUNTED), None
                elif "most" in said or "less" in said:
                    yield rank, number, None, None, value
                elif "least" in said or "more" in said:
                    yield rank, number, None, value, None
                else:
                    yield rank, number, value, None, None
        for match in words.joined.finditer(sentence) if words.joined else ():
            yield 2, number, words.numbers[match["number"]], None, None
        yield from _of_each(words, number, sentence)


_EACH = re.compile(
    r"\b(?:each|every|all)\s(?:one\s)?(?:of\s)?(?:the\s|these\s|those\s|my\s|our\s)?(?P<number>\w+)\s(?!each)[a-z]+s\b"
    r"|\bjede[rsmn]?\s(?:der|dieser)\s(?P<de>\w+)\s\w+|\bcada\suno?a?\sde\s(?:los|las|estos|estas)\s(?P<es>\w+)\s\w+"
)


def _of_each(words: Words, number: int, sentence: str) -> Iterator[Counted]:
    """ "A picture for each of the four seasons": as many as there are of them."""
    if not any(re.search(rf"\b(?:{unit})" if words.spaced else unit, sentence) for unit in words.units):
        return
    for pattern, count in words.groups:
        if pattern.search(sentence):
            yield len(words.units), number, count, None, None
            return
    if match := _EACH.search(sentence):
        value = _value(words, next((one for one in match.groups() if one), None))
        if value is not None and value > 1:
            yield len(words.units), number, value, None, None


def _value(words: Words, text: str | None) -> int | None:
    if not text:
        return None
    text = text.strip()
    return int(text) if text.isdecimal() else words.numbers.get(text)


def _chosen(counts: list[Counted]) -> tuple[int | None, int | None, int | None]:
    """Of several numbers the one of the finest division, there the last: what a user complains of comes before it."""
    if not counts:
        return None, None, None
    rank = min(one[0] for one in counts)
    return max((one for one in counts if one[0] == rank), key=lambda one: one[1])[2:]
