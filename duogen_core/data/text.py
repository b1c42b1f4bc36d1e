"""Text for the data engines: how alike two texts are, the words they are about, and personal data taken out of them.

    index = NearIndex(0.6);  index.find(text) -> (earlier text, similarity) or None;  index.add(text)
    subjects = Subjects(seeds);  subjects.similarity(one, other)
    words_of("Figure 3.2 selects the layers.")     ["#3.2", "select", "layer"]

NearIndex finds near-duplicates exactly and in any order of arrival, by the share of word pairs that two texts have in
common (Jaccard). A text that shares t of its pairs with another has at least one of any (1 - t) of them + 1 in common
with it, so only its rarest pairs are looked up: exact, and fast without hashing.

Subjects sees the same matter in other words: the share of words, where a word counts the more, the fewer seeds have
it ("picture" little, "sourdough" much).

words_of is for matching a picture with its text: lower case, endings off, little words out. A crude stemmer is enough
to meet "selected" and "selects"; "Figure 3.2" and "Step 4" become one word each, since they point at a place.

remove_personal puts [email], [phone] and [ip] in the place of e-mail addresses, phone numbers and IP addresses. Phone
numbers are what is written like one: with a + and a country, with brackets round the area, or in the groups of three,
three and four digits. Dates, versions, prices and long numbers stay. Only public IP addresses go: 192.168.0.1 in a
guide to a router is the guide's content; and four small numbers go only where the words before them are of networks,
since sections and versions are written like that too.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence

WORD = re.compile(r"\w+(?:'\w+)?")


def word_pairs(text: str) -> frozenset[tuple[str, str]]:
    """Returns the pairs of words that follow each other, the beginning and the end of the text included."""
    words = WORD.findall(text.casefold())
    return frozenset(zip(["", *words], [*words, ""]))


class NearIndex:
    def __init__(self, near: float) -> None:
        self.near = near
        self.texts: list[str] = []
        self.grams: list[frozenset[Hashable]] = []
        self.places: dict[Hashable, list[int]] = defaultdict(list)

    def find(self, text: str) -> tuple[str, float] | None:
        """Returns the most similar of the earlier texts, if it is near."""
        grams = word_pairs(text)
        # Any text that is near shares at least one of these pairs, and rare ones lead to few candidates.
        rare_first = sorted(grams, key=lambda gram: (len(self.places.get(gram, ())), gram))
        looked_up = rare_first[: len(grams) - math.ceil(self.near * len(grams)) + 1]
        candidates = {place for gram in looked_up for place in self.places.get(gram, ())}
        best = max(candidates, key=lambda place: (_jaccard(grams, self.grams[place]), -place), default=None)
        if best is None or (similarity := _jaccard(grams, self.grams[best])) < self.near:
            return None
        return self.texts[best], similarity

    def add(self, text: str) -> None:
        grams = word_pairs(text)
        for gram in grams:
            self.places[gram].append(len(self.texts))
        self.texts.append(text)
        self.grams.append(grams)


class Subjects:
    """Measures how much two texts are about the same, by words weighted with their rarity among the seeds."""

    def __init__(self, seeds: Iterable[str]) -> None:
        counts: Counter[str] = Counter()
        total = 0
        for seed in seeds:
            counts.update(subject_words(seed))
            total += 1
        self.unknown = math.log(max(total, 2))
        self.weights = {word: math.log(max(total, 2) / count) for word, count in counts.items()}

    def weight(self, found: Iterable[str]) -> float:
        return sum(self.weights.get(word, self.unknown) for word in found)

    def similarity(self, one: str, other: str) -> float:
        first, second = subject_words(one), subject_words(other)
        return self.weight(first & second) / (self.weight(first | second) or 1.0)

    def covered(self, text: str, by: str) -> float:
        """Returns the share of a text's words, by weight, that another text has too."""
        found = subject_words(text)
        return self.weight(found & subject_words(by)) / (self.weight(found) or 1.0)


def subject_words(text: str) -> frozenset[str]:
    """Returns the words of a text, plurals as their singulars."""
    return frozenset(_singular(word) for word in WORD.findall(text.casefold()))


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def _jaccard(one: frozenset[Hashable], other: frozenset[Hashable]) -> float:
    return len(one & other) / (len(one | other) or 1)


_LITTLE_WORDS = (
    "a all also an and are as at be been being but by can do does for from has have here how i if in into is it its "
    "may more no not of on one or other our see so than that the their them then there these they this to use used "
    "using was we were what when which will with you your"
)
LITTLE = frozenset(_LITTLE_WORDS.split())
POINTER = re.compile(r"\b(?:figure|fig\.?|image|picture|screenshot|step)\s*(\d+(?:[.-]\d+)*)", re.IGNORECASE)
LETTERS = re.compile(r"[^\W\d_]\w+")
ENDINGS = (("ies", "y"), ("ing", ""), ("ed", ""), ("es", ""), ("s", ""))


def words_of(text: str) -> list[str]:
    pointers = [f"#{number.replace('-', '.')}" for number in POINTER.findall(text)]
    words = LETTERS.findall(POINTER.sub(" ", text).lower())
    return pointers + [stem(word) for word in words if word not in LITTLE]


def stem(word: str) -> str:
    for ending, put in ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
            word = word.removesuffix(ending) + put
            break
    return word[:-1] if len(word) > 3 and word.endswith("e") else word


# ------------------------------------------------------------ personal data

EMAIL = re.compile(
    r"(?<![\w.+-])[\w.+-]{1,64}(?:@|\s?[\[(]\s?at\s?[\])]\s?)[\w-]{1,63}(?:\.[\w-]{1,63}){0,4}"
    r"(?:\.|\s?[\[(]\s?dot\s?[\])]\s?)[A-Za-z]{2,24}\b",
    re.IGNORECASE,
)
PHONE = re.compile(
    r"(?<![\w.+/-])(?:"
    r"\+\d{1,3}(?:[ .()/-]{0,2}\d){7,12}"
    r"|(?:1[ .-])?\(\d{2,5}\) ?\d{2,4}[ .-]?\d{3,4}(?:[ .-]?\d{2,4})?"
    r"|(?:1[ .-])?\d{3}([ .-])\d{3}\1\d{4}"
    r"|(?:0|00)\d{1,4}[ /-]\d{3,4}[ -]?\d{3,5}"
    r")(?![\w/-]|\.\d)"
)
IPV4 = re.compile(r"(?<![\w.-])\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\d)")
IPV6 = re.compile(r"(?<![\w:.])(?:[0-9a-f]{0,4}:){3,7}[0-9a-f]{0,4}(?![\w:])", re.IGNORECASE)

VERSION = re.compile(r"(?:version|release|v\.?|ver\.?)\s*$", re.IGNORECASE)
NETWORK = re.compile(r"\b(?:ip|address|addresses|host|server|dns|ping|ssh|from|gateway|proxy)\b|://", re.IGNORECASE)


def remove_personal(text: str, kinds: Sequence[str]) -> tuple[str, Counter[str]]:
    """Returns the text without personal data of these kinds, and how many of each were taken out."""
    found: Counter[str] = Counter()

    def counted(kind: str):
        def replace(match: re.Match[str]) -> str:
            if kind == "ip" and not _is_address(match):
                return match.group()
            found[kind] += 1
            return f"[{kind}]"

        return replace

    if "email" in kinds and ("@" in text or "at" in text):
        text = EMAIL.sub(counted("email"), text)
    if "ip" in kinds:  # before phone numbers, whose groups of digits an address could be taken for
        text = IPV6.sub(counted("ip"), IPV4.sub(counted("ip"), text))
    if "phone" in kinds:
        text = PHONE.sub(counted("phone"), text)
    return text, found


def _is_address(match: re.Match[str]) -> bool:
    """Tells a public address from the number of a version or a section (### 3.12.1.1.)."""
    text, before = match.group(), match.string[max(match.start() - 40, 0) : match.start()]
    try:
        if not ipaddress.ip_address(text).is_global:
            return False
    except ValueError:
        return False
    if ":" in text:
        return True
    return not VERSION.search(before) and (max(map(int, text.split("."))) >= 100 or bool(NETWORK.search(before)))
