"""Documents like those of `data web`, with near-duplicates planted among them: for the tests and tests/bench/dedup.py.

A document is a pure function of (seed, number). The language is made up: function words of English, other words of
syllables, by Zipf's law.

What is unlike, and must stay:
    own       sentences of its own about one of many topics
    template  sentences from the topic's patterns, with other words and numbers in their gaps: two pages of a topic
              share a third or more of their patterns
    spec      the same twelve sentences as other pages of the site; only the name and the numbers differ
    chinese   sentences without spaces
Every page stands between its site's own lines (menu, notice, footer), a third of the pages show the site's logo, some
a stock photo of few pages or only that.

What is planted (copies of another page, on another site, with its lines, under other addresses):
    shuffled  paragraphs in another order
    reworded  every eighth word of the vocabulary replaced, by a fixed table; capitals and stops changed
    rescaled  images at another size and JPEG quality
    all       the three together
    pictures  the same images rescaled, other text: only the set of images tells
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from duogen_core.data.pictures.duplicates import picture_hash
from duogen_core.data.runs import Engine, Outcome
from duogen_core.document import Document, Picture, Text, Turn

_FUNCTION = (
    "the of and to a in is it you that for on with as be at this from or an by not if then your can will which when "
    "into before after until more one all out up so about each over only them other some two its no"
)
FUNCTION = _FUNCTION.split()
CONSONANTS, VOWELS = "bdfgklmnprstvw", ("a", "e", "i", "o", "u", "ai", "ea", "oo")
SYLLABLES = [consonant + vowel for consonant in (*CONSONANTS, "sh", "ch", "tr", "st", "pl", "gr") for vowel in VOWELS]
COPIES = ("shuffled", "reworded", "rescaled", "all", "pictures")
KINDS = ("own", "own", "own", "own", "template", "template", "spec", "chinese")
SHARE = 0.1  # of all documents that are copies of another one
VOCABULARY, HAN = 6000, 1800
PER_TOPIC = 60  # pages


def number_of(*key: Any) -> int:
    return int.from_bytes(blake2b(repr(key).encode(), digest_size=8).digest(), "big")


@lru_cache(None)
def words() -> tuple[list[str], list[float]]:
    rng = Random(1)
    made = list(dict.fromkeys("".join(rng.choices(SYLLABLES, k=rng.randint(2, 3))) for _ in range(VOCABULARY)))
    return [*FUNCTION, *made], list(np.cumsum([1 / (rank + 8) for rank in range(len(FUNCTION) + len(made))]))


@lru_cache(None)
def han() -> tuple[list[str], list[float]]:
    return [chr(0x4E00 + 7 * k) for k in range(HAN)], list(np.cumsum([1 / (k + 20) for k in range(HAN)]))


@lru_cache(4096)
def synonym(word: str) -> str:
    """The table by which texts are reworded: one word in eight has another one."""
    if number_of("reworded", word) % 8:
        return word
    known = han()[0] if ord(word[0]) > 0x3000 else words()[0]
    return known[number_of("other", word) % len(known)]


@lru_cache(2048)
def topic(seed: int, number: int) -> tuple[list[str], list[list[str]]]:
    """Words of a topic, and its patterns of sentences: words, with # for a number and * for a word of the topic."""
    rng = Random(number_of("topic", seed, number))
    own = rng.sample(words()[0][len(FUNCTION) :], 90)
    patterns = []
    for _ in range(40):
        pattern = sentence(rng, own)
        for place in rng.sample(range(len(pattern)), max(len(pattern) // 4, 2)):
            pattern[place] = rng.choice("##*")
        patterns.append(pattern)
    return own, patterns


def sentence(rng: Random, own: list[str]) -> list[str]:
    known, weights = words()
    return [
        rng.choice(own) if rng.random() < 0.25 else word
        for word in rng.choices(known, cum_weights=weights, k=rng.randint(7, 20))
    ]


def filled(pattern: Iterable[str], rng: Random, own: list[str]) -> list[str]:
    return [str(rng.randint(3, 4000)) if w == "#" else rng.choice(own) if w == "*" else w for w in pattern]


@dataclass(frozen=True)
class Made:
    """A document before it is written. paragraphs: of sentences of words. images: seeds of pictures."""

    kind: str
    group: int  # number of the document that it is a copy of; its own, where it is none
    topic: int
    site: int
    title: str
    paragraphs: tuple[tuple[tuple[str, ...], ...], ...]
    images: tuple[tuple[str, str], ...]  # what a picture shows, and its address
    scale: float = 1.0
    spaced: bool = True


def made(seed: int, number: int, count: int) -> Made:
    """The document of this number of `count`."""
    rng = Random(number_of("page", seed, number))
    if number and rng.random() < SHARE:
        return copied(seed, number, count, rng)
    return original(seed, number, count)


def original(seed: int, number: int, count: int) -> Made:
    rng = Random(number_of("original", seed, number))
    topics = max(count // PER_TOPIC, 3)
    about, kind = rng.randrange(topics), rng.choice(KINDS)
    site = rng.randrange(max(count // 200, 2))
    own, patterns = topic(seed, about)
    if kind == "chinese":
        known, weights = han()
        sentences = [tuple(rng.choices(known, cum_weights=weights, k=rng.randint(12, 30))) for _ in range(12)]
    elif kind == "spec":
        site = about % max(count // 200, 2)
        name = (rng.choice(own), rng.choice(own))
        sentences = [tuple(filled(each, rng, name)) for each in patterns[:12]]
    elif kind == "template":
        sentences = [tuple(filled(each, rng, own)) for each in rng.sample(patterns, 14)]
    else:
        sentences = [tuple(sentence(rng, own)) for _ in range(rng.randint(9, 22))]
    paragraphs = [tuple(sentences[at : at + 3]) for at in range(0, len(sentences), 3)]
    images = [(f"{seed}-{number}-{k}", f"https://site{site}.test/{number}-{k}.jpg") for k in range(rng.randint(1, 4))]
    if rng.random() < 0.06:  # a stock photo that a few pages show, one in three of them nothing else
        stock = rng.randrange(max(count // 100, 1))
        images = [*(images if rng.random() < 0.66 else []), (f"stock{stock}", f"https://stock.test/{stock}.jpg")]
    title = " ".join(rng.choices(own, k=4)) if kind != "chinese" else "".join(sentences[0][:8])
    return Made(kind, number, about, site, title, tuple(paragraphs), tuple(images), spaced=kind != "chinese")


def copied(seed: int, number: int, count: int, rng: Random) -> Made:
    of = rng.randrange(number)
    while made(seed, of, count).group != of:  # a copy itself
        of = rng.randrange(number)
    page, how = original(seed, of, count), rng.choice(COPIES)
    site = rng.randrange(max(count // 200, 2))
    paragraphs = list(page.paragraphs)
    if how == "pictures":
        own, _ = topic(seed, rng.randrange(max(count // PER_TOPIC, 3)))
        paragraphs = [tuple(tuple(sentence(rng, own)) for _ in range(3)) for _ in range(5)]
        page = replace(page, spaced=True)
        if len(page.images) < 2:
            page = replace(page, images=tuple((f"{seed}-{of}-{k}", "") for k in range(3)))
            how = "shuffled"  # one image is no set: then the text is that of the other page
            paragraphs = list(original(seed, of, count).paragraphs)
            page = replace(original(seed, of, count), site=site)
    if how in ("shuffled", "all"):
        rng.shuffle(paragraphs)
    if how in ("reworded", "all"):
        paragraphs = [tuple(tuple(map(synonym, each)) for each in paragraph) for paragraph in paragraphs]
    scale = rng.choice((0.5, 0.7, 1.5)) if how in ("rescaled", "all", "pictures") else 1.0
    images = [(what, f"https://site{site}.test/copy{number}-{k}.jpg") for k, (what, _) in enumerate(page.images)]
    return replace(page, kind=how, group=of, site=site, paragraphs=tuple(paragraphs), images=tuple(images), scale=scale)


def site_lines(seed: int, site: int) -> tuple[list[str], list[str]]:
    """The lines above and below every page of a site."""
    rng = Random(number_of("site", seed, site))
    own = rng.sample(words()[0], 30)
    lines = [" ".join(sentence(rng, own)).capitalize() + "." for _ in range(9)]
    return lines[:4], lines[4:]


def document(seed: int, number: int, count: int, with_hash: bool = True) -> Document:
    page = made(seed, number, count)
    above, below = site_lines(seed, page.site)
    rng = Random(number_of("shown", seed, number))
    gap, stop = (" ", ".") if page.spaced else ("", "。")
    reworded = page.kind in ("reworded", "all")
    texts = []
    for paragraph in page.paragraphs:
        said = [gap.join(each) for each in paragraph]
        texts.append(gap.join((each if reworded else each.capitalize()) + (";" if reworded else stop) for each in said))
    parts: list[Text | Picture] = [Text("\n".join(above))]
    images = [picture(what, url, page.scale, with_hash) for what, url in page.images]
    if rng.random() < 0.33:
        images.append(picture(f"logo{page.site}", f"https://site{page.site}.test/logo.png", 1.0, with_hash))
    for k, text in enumerate(texts):
        parts.append(Text(text))
        if k < len(images):
            parts.append(images[k])
    parts += images[len(texts) :]
    parts.append(Text("\n".join(below)))
    url = f"https://site{page.site}.test/page/{number}.html"
    meta = {"url": url, "time": "2024-05-01T10:00:00Z", "planted": page.kind, "group": page.group}
    return Document((Turn("user", (Text(page.title),)), Turn("assistant", tuple(parts))), meta=meta)


def picture(what: str, url: str, scale: float, with_hash: bool) -> Picture:
    rng = np.random.default_rng(number_of("picture", what))
    small = Image.fromarray(rng.integers(0, 255, (6, 8, 3), np.uint8))
    pixels = np.asarray(small.resize((int(96 * scale), int(72 * scale)), Image.Resampling.BICUBIC))
    return Picture(pixels, {"url": url, **({"phash": f"{picture_hash(pixels):016x}"} if with_hash else {})})


class Given(Engine):
    """A run of these documents."""

    kind, things, size_name = "given", "documents", "shard_documents"

    def __init__(self, documents: Sequence[Document]) -> None:
        self.documents = documents

    def identity(self) -> dict[str, Any]:
        return {"documents": len(self.documents)}

    def items(self) -> range:
        return range(len(self.documents))

    def do(self, item: int) -> Outcome:
        return Outcome({"kept": True}, [("", self.documents[item])])


class Planted(Engine):
    """A run of such documents, made by the same machinery as those of `data web`."""

    kind, things, size_name = "planted", "documents", "shard_documents"
    keeps_lock = True

    def __init__(self, seed: int, count: int, first: int = 0, last: int | None = None, with_hash: bool = True) -> None:
        self.seed, self.count, self.first, self.with_hash = seed, count, first, with_hash
        self.last = count if last is None else last

    def identity(self) -> dict[str, Any]:
        return {"seed": self.seed, "count": self.count, "first": self.first, "last": self.last, "hash": self.with_hash}

    def items(self) -> range:
        return range(self.last - self.first)

    def do(self, item: int) -> Outcome:
        return Outcome({"kept": True}, [("", document(self.seed, self.first + item, self.count, self.with_hash))])

    def encode(self, picture: Picture) -> tuple[bytes, str]:
        buffer = io.BytesIO()
        Image.fromarray(picture.pixels).save(buffer, "JPEG", quality=80 if picture.pixels.shape[0] != 72 else 90)
        return buffer.getvalue(), "jpg"


def score(seed: int, count: int, gone: dict[int, str]) -> dict[str, Any]:
    """What was found and lost. gone: numbers of documents that did not stay -> the rule."""
    groups: dict[int, list[tuple[int, str]]] = {}
    for number in range(count):
        page = made(seed, number, count)
        groups.setdefault(page.group, []).append((number, page.kind))
    planted = found = 0
    missed: dict[str, int] = {}
    of_kind: dict[str, int] = {}
    unlike = 0
    lost: dict[str, int] = {}
    for group, members in groups.items():
        left = [(number, kind) for number, kind in members if number not in gone]
        planted += len(members) - 1
        found += min(len(members) - len(left), len(members) - 1)
        for _, kind in members:
            of_kind[kind] = of_kind.get(kind, 0) + 1
        if len(left) > 1:  # what is more than one is a copy that was not found
            for _, kind in [each for each in left if each[0] != group][: len(left) - 1]:
                missed[kind] = missed.get(kind, 0) + 1
        unlike += 1
        if not left:
            kind = dict(members)[group]
            lost[kind] = lost.get(kind, 0) + 1
    return {
        "documents": count,
        "planted": planted,
        "found": found / max(planted, 1),
        "missed": missed,
        "unlike": unlike,
        "lost": sum(lost.values()) / unlike,
        "lost_kinds": lost,
        "kinds": of_kind,
    }
