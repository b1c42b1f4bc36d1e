"""What a judge's reply must be, and how it is shown an answer."""

from __future__ import annotations

import jsonschema
import pytest

from duogen_core.document import Text
from duogen_core.evaluation.benchmarks.asking import marked, reply_schema, whole
from duogen_core.evaluation.benchmarks.reading import paired
from tests.core.evaluation.benchmarks.test_contract import picture


@pytest.mark.parametrize("reply, fits", [
    ({"reason": "so", "score": 6}, True), ({"reason": "so", "score": 0}, True), ({"reason": "so", "score": 7}, False),
    ({"reason": "so", "score": -1}, False), ({"reason": "so", "score": 2.5}, False), ({"score": 6}, False),
    ({"reason": "so"}, False), ({"reason": "so", "score": 6, "more": 1}, False),
    ({"reason": "x" * 9, "score": 6}, False),
])  # fmt: skip
def test_a_reply_has_a_reason_and_the_scale(reply, fits):
    schema = reply_schema({"score": whole(0, 6)}, most=8)
    assert list(schema["properties"]) == ["reason", "score"]
    assert jsonschema.Draft202012Validator(schema).is_valid(reply) is fits


def test_images_are_numbered_and_shown_in_their_order():
    one, other = picture(1), picture(2)
    text, seen = marked([Text(" Fold. "), one, Text(" \n"), other, Text("Turn.")], first=3)
    assert text == "Fold.\n[Image 3]\n[Image 4]\nTurn."
    assert seen == [("Image 3:", one), ("Image 4:", other)]
    assert marked([]) == ("(nothing)", [])


def test_a_text_goes_with_the_image_after_it():
    one, other = picture(1), picture(2)
    assert paired([Text("a"), Text("b"), one, other, Text("c")]) == [("ab", one), ("", other), ("c", None)]
    assert paired([]) == []
