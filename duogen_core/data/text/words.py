"""Text -> the words that say what it is about, to compare texts: lower case, endings off, little words out.

A crude stemmer is enough to meet "selected" and "selects"; "Figure 3.2" and "Step 4" become one word each, since they
point at a place.
"""

from __future__ import annotations

import re

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
