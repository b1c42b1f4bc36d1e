"""What documents are compared by: lines, shingles of words and numbers, in any script.

    tokens("Bake it at 220°")      ["bake", "it", "at", "220"]
    shingles(lines, 2)             uint32 hashes of all pairs of words that follow each other in a line, each once
    numbers(lines)                 uint32 hashes of the tokens with a digit; the numbers of a list do not count

Paragraphs in another order give the same shingles, since none reaches over the end of a line. Chinese, Japanese, Thai
and other scripts without spaces have no words to find without a dictionary: there each character is a token, and a
shingle has 2 n - 1 of them where others have n words, because a word has about two characters.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b

import numpy as np

UNSPACED = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u30ff\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\ua9e0-\ua9ff\uf900-\ufaff\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
MARKS = "\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0900-\u0963\u0966-\u0dff"  # which \w lacks, inside of words
TOKEN = re.compile(rf"[{UNSPACED}]|(?:(?![{UNSPACED}])[\w{MARKS}])+(?:['’]\w+)?")
ONE = re.compile(rf"[{UNSPACED}]")
LISTED = re.compile(r"^[\s#>*+-]*\d{1,3}[.):、．]\s*")  # at the beginning of a line
DIGIT = re.compile(r"\d")
MIX = np.uint64(0x9E3779B97F4A7C15)
END = np.uint64(0xD1B54A32D192ED03)  # stands after a line that is shorter than a shingle


def tokens(line: str) -> list[str]:
    return TOKEN.findall(unicodedata.normalize("NFKC", line).casefold().replace("’", "'"))


@lru_cache(2**18)
def _hash_of(token: str) -> tuple[int, bool]:
    return hash64(token), ONE.match(token) is not None


def hash64(text: str) -> int:
    """The same in every process."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def shingles(lines: Sequence[Sequence[str]], words: int) -> np.ndarray:
    """lines: of tokens. words: that make a shingle."""
    longest = 2 * words - 1
    hashes: list[int] = []
    sizes: list[int] = []  # of the shingle that begins here; 0 where none does
    for line in lines:
        found = [_hash_of(token) for token in line]
        size = [longest if one else words for _, one in found]
        # A shingle may not reach over the end of the line; one that begins a shorter line is that line.
        fits = [n if at + n <= len(found) else 0 for at, n in enumerate(size)]
        if found and not any(fits):
            fits[0] = len(found)
        hashes += [value for value, _ in found]
        sizes += fits
    values, lengths = np.array(hashes, np.uint64), np.array(sizes, np.int64)
    made = []
    for length in np.unique(lengths[lengths > 0]):
        starts = np.flatnonzero(lengths == length)
        total = np.full(len(starts), END if length < words else MIX, np.uint64)
        for step in range(int(length)):
            total = _mixed(total * MIX + values[starts + step])
        made.append((total >> np.uint64(32)).astype(np.uint32))
    return np.unique(np.concatenate(made)) if made else np.empty(0, np.uint32)


def _mixed(values: np.ndarray) -> np.ndarray:
    values = (values ^ (values >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
    return values ^ (values >> np.uint64(29))


def numbers(lines: Sequence[str]) -> np.ndarray:
    with_digits = (LISTED.sub("", line) for line in lines if DIGIT.search(line))
    found = {token for line in with_digits for token in tokens(line) if DIGIT.search(token)}
    return np.unique(np.array([hash64(token) & 0xFFFFFFFF for token in found], np.uint32))
