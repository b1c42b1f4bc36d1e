"""What a model's text must be to be taken: rules with a name, a threshold and a value; and the prompts of the steps.

    Values()                       collects the values of all rules that were asked, for the log
    values.ask("rewrite.length", 0.2, low=0.3)    raises RefusedAnswer("rewrite.length", 0.2, "…") out of bounds

A refusal is an AnswerError: the client shows its sentence to the model and asks again. Prompts are plain files in
prompts/, read once; their digest tells one run's from another's.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from duogen_core.data.runs import Refused
from duogen_core.data.text import remove_personal, words_of
from duogen_core.llm.answers import AnswerError
from duogen_core.llm.messages import PROMPTS, TEMPLATE_MARKS, load_prompt
from duogen_core.mllm.prompted import OPENING

FOLDER = Path(__file__).with_name("prompts")


@cache
def prompt(name: str) -> str:
    return load_prompt(FOLDER / f"{name}.txt")


def prompts_digest() -> str:
    """Changes when any prompt does, those of the client included."""
    total = hashlib.sha256()
    for file in [*sorted(FOLDER.glob("*.txt")), *sorted(PROMPTS.glob("*.txt"))]:
        total.update(f"{file.name}\0{load_prompt(file)}\0".encode())
    return total.hexdigest()[:16]


# ------------------------------------------------------------ the rules

LINK = re.compile(
    r"\b(?:[a-z][a-z0-9+.-]{1,15}://|www\.|mailto:|javascript:|data:[a-z]+/)\S+"
    r"|\]\(\s*[^)\s]+"
    r"|\b[a-z0-9-]{2,63}(?:\.[a-z0-9-]{2,63})*\.(?:com|org|net|io|ru|cn|info|biz|xyz|top|site|online|app|dev)\b(?:/\S*)?",
    re.IGNORECASE,
)
LEAK = re.compile(r"</?data\b|\bid=\"[0-9a-f]{16}\"|\[image \d+|<script|<iframe|<img\b", re.IGNORECASE)
BEGIN_PICTURE = re.compile(re.escape(OPENING), re.IGNORECASE)
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
PERSONAL = ("email", "phone", "ip")


class RefusedAnswer(AnswerError, Refused):
    """An answer that a rule refuses: the client shows the model the sentence; the log has the rule and the value."""

    def __init__(self, rule: str, value: Any, sentence: str) -> None:
        super().__init__(sentence)
        self.rule, self.value = rule, value


class Values:
    """The values that rules measured, by rule; of several pieces the one nearest to refusal counts."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def ask(self, rule: str, value: float, sentence: str, low: float | None = None, high: float | None = None) -> None:
        """The value of a rule, which must lie within its bounds."""
        value = round(value, 4)
        worst = max if low is None else min
        self.found[rule] = worst(self.found.get(rule, value), value)
        if (low is not None and value < low) or (high is not None and value > high):
            raise RefusedAnswer(rule, value, sentence)


def check_ids(rule: str, named: Sequence[int], given: Sequence[int]) -> None:
    """The pictures of the input, each once, in their order."""
    if list(named) != list(given):
        raise RefusedAnswer(
            rule, list(named)[:64], f"The images must be {list(given)}, each once and in this order, not {list(named)}."
        )


def check_clean(stage: str, text: str, source: str) -> None:
    """No link, no personal data, no mark of a chat template or of the prompt that the source does not have."""
    known = {link.lower().rstrip(".,;:!?") for link in LINK.findall(source)}
    new = [link for link in LINK.findall(text) if link.lower().rstrip(".,;:!?") not in known]
    if new:
        raise RefusedAnswer(f"{stage}.new_links", new[0][:200], "The text has an address that is not in the material.")
    for mark in (TEMPLATE_MARKS, BEGIN_PICTURE, LEAK):
        found = mark.search(text)
        if found and not (mark is LEAK and found[0].lower() in source.lower()):  # a page about HTML has <img
            raise RefusedAnswer(
                f"{stage}.marks", found[0][:60], f"The text holds {found[0][:60]!r}, which belongs to no text."
            )
    before = remove_personal(source, PERSONAL)[1].total()
    if (personal := remove_personal(text, PERSONAL)[1].total()) > before:
        raise RefusedAnswer(
            f"{stage}.personal", personal, "The text has an e-mail address, phone number or IP address."
        )


def length_ratio(text: str, source: str) -> float:
    return len(text.split()) / max(len(source.split()), 1)


def overlap(text: str, source: str) -> float:
    """Share of the text's different words that stand in the source."""
    words = set(words_of(text))
    return len(words & set(words_of(source))) / len(words) if words else 1.0


def new_numbers(text: str, source: str) -> float:
    """Share of the text's numbers that stand nowhere in the source; the numbers of list items are no facts."""
    found = NUMBER.findall(re.sub(r"^\s*\d+[.)] ", "", text, flags=re.MULTILINE))
    known = set(NUMBER.findall(source))
    return sum(number not in known for number in found) / len(found) if found else 0.0
