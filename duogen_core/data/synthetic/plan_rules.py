"""Rules for the answer that a language model planned: each a name, a threshold of the preset, and a logged value.

    for rule, value in broken(plan, request, preset.answer, subjects): ...     # lazily; the first one decides

A language model's JSON may fit its schema and still be prose, nonsense, the same picture over and over, or an echo of
orders that stood in the request. What these rules cannot see is whether an answer is true.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

from duogen_core.data.llm.messages import TEMPLATE_MARKS
from duogen_core.data.synthetic.expand import LINK, ORDER
from duogen_core.data.synthetic.plans import Plan
from duogen_core.data.synthetic.requests import KEPT, Preset, Request, Verdict
from duogen_core.data.text.similarity import Subjects, word_pairs

PICTURE_MARKS = ("![", "<img", "<BOV>", "[image", "[picture", "<image", "<picture")
PAINTER_MARKS = ("embedding:", "<lora:", "<hypernet:", "__")  # what image programs take for more than words
DATA_MARKS = ("<data", "</data")


def judge(plan: Plan, request: Request, preset: Preset, subjects: Subjects) -> Verdict:
    return next(broken(plan, request, preset.answer, subjects), KEPT)


def broken(plan: Plan, request: Request, rules: Mapping[str, Any], subjects: Subjects) -> Iterator[Verdict]:
    yield from _counts(plan, rules)
    yield from _lengths(plan, rules)
    yield from _marks(plan)
    yield from _repeats(plan, request, rules)
    covered = subjects.covered(request.text, " ".join((*plan.texts, *plan.prompts)))
    if covered < rules["min_on_subject"]:
        yield Verdict("off_subject", round(covered, 3))


def _counts(plan: Plan, rules: Mapping[str, Any]) -> Iterator[Verdict]:
    for rule, count in (("steps", len(plan.steps)), ("pictures", len(plan.prompts))):
        if count < rules[f"min_{rule}"]:
            yield Verdict(f"few_{rule}", count)
        if count > rules[f"max_{rule}"]:
            yield Verdict(f"many_{rule}", count)


def _lengths(plan: Plan, rules: Mapping[str, Any]) -> Iterator[Verdict]:
    lengths = [len(step.text) for step in plan.steps]
    if min(lengths) < rules["min_characters"]:
        yield Verdict("short_text", min(lengths))
    if max(*lengths, len(plan.closing)) > rules["max_characters"]:
        yield Verdict("long_text", max(*lengths, len(plan.closing)))
    prompts = [len(prompt) for prompt in plan.prompts]
    if min(prompts, default=rules["min_prompt"]) < rules["min_prompt"]:
        yield Verdict("short_prompt", min(prompts))
    if max(prompts, default=0) > rules["max_prompt"]:
        yield Verdict("long_prompt", max(prompts))


def _marks(plan: Plan) -> Iterator[Verdict]:
    everything = (*plan.texts, *plan.prompts)
    for text in everything:
        if found := LINK.search(text):
            yield Verdict("link", found[0][:80])
        if found := TEMPLATE_MARKS.search(text):
            yield Verdict("template_mark", found[0][:80])
        if found := ORDER.search(text):
            yield Verdict("order", found[0][:80])
        for rule, marks in (("picture_mark", PICTURE_MARKS), ("data_mark", DATA_MARKS)):
            for mark in marks:
                if mark.casefold() in text.casefold():
                    yield Verdict(rule, mark)
    for prompt in plan.prompts:
        for mark in PAINTER_MARKS:
            if mark in prompt.casefold():
                yield Verdict("painter_mark", mark)


def _repeats(plan: Plan, request: Request, rules: Mapping[str, Any]) -> Iterator[Verdict]:
    texts = [step.text for step in plan.steps]
    for rule, among, most in (
        ("same_text", texts, rules["max_same_text"]),
        ("same_prompt", plan.prompts, rules["max_same_prompt"]),
    ):
        worst = max((same(*both) for both in combinations(among, 2)), default=0.0)
        if worst >= most:
            yield Verdict(rule, round(worst, 3))
    echo = max(same(text, request.text) for text in (*texts, *plan.prompts))
    if echo >= rules["max_same_request"]:
        yield Verdict("same_request", round(echo, 3))


def same(one: str, other: str) -> float:
    """The share of word pairs that two texts have in common."""
    first, second = word_pairs(one), word_pairs(other)
    return len(first & second) / (len(first | second) or 1)
