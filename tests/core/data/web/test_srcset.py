"""srcset by the HTML standard: what Chromium took of 200 generated attributes, and Chromium itself if it is there."""

from __future__ import annotations

import json
import time

import pytest

from duogen_core.data.web.image_elements import best_first, srcset
from tests.core.srcset_browser import CHOICES, browser, chosen_by_browser, generated


def ours(text: str) -> str:
    return (best_first(text) or [""])[0]


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ("a.jpg 1024w 768h, b.jpg 2048w 1536h", ["b.jpg", "a.jpg"]),
        ("data:image/png;base64,AAAA 2x, b.jpg 1x", ["data:image/png;base64,AAAA", "b.jpg"]),
        ("https://cdn.example/w_400,h_300/a.jpg 400w, https://cdn.example/w_800,h_600/a.jpg 800w",
         ["https://cdn.example/w_800,h_600/a.jpg", "https://cdn.example/w_400,h_300/a.jpg"]),
        ("a.jpg 1x, b.jpg 1x", ["a.jpg"]),
        ("a.jpg, b.jpg 500w", ["a.jpg", "b.jpg"]),
        (f"a.jpg {'9' * 6000}w, b.jpg 1e999x, c.jpg 2x", ["c.jpg"]),
        (" ,, ", []),
        ("", []),
    ],
)  # fmt: skip
def test_candidates_the_largest_first(text, addresses):
    assert best_first(text) == addresses


def test_two_hundred_attributes_are_read_as_chromium_read_them():
    table = json.loads(CHOICES.read_text("utf-8"))
    assert len(table) == 200 and [attribute for attribute, _ in table] == generated()
    assert {attribute: ours(attribute) for attribute, _ in table} == dict(table)


@pytest.mark.skipif(browser() is None, reason="no Chromium here; CHROMIUM_PATH names one")
def test_chromium_takes_the_same_of_other_attributes():
    attributes = generated(200, seed=int(time.time()))
    table = dict(zip(attributes, chosen_by_browser(attributes, browser())))
    assert {attribute: ours(attribute) for attribute in attributes} == table


def test_a_very_long_attribute_takes_time_in_proportion():
    def seconds(count: int) -> float:
        begun = time.process_time()
        srcset("a.jpg " + "1w " * count + ", (" * count)
        return time.process_time() - begun

    seconds(1000)
    assert seconds(200_000) < 60 * max(seconds(20_000), 0.01)
