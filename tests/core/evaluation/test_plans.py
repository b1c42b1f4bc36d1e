"""The requests of `evaluate plan`, its scores, its files and its page."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from duogen_core.errors import DuoGenError
from duogen_core.evaluation.plans import (
    Request,
    Written,
    chosen,
    evaluate,
    kept,
    line_of,
    our_requests,
    page,
    read_plans,
    read_requests,
    score,
    table,
)
from duogen_core.planning.plan import Member, Part, Plan, PlannedPicture
from duogen_core.planning.requests import Wish, wish_of


def plan(*parts, title="A boat", cast=()):
    made = (Part(text, None if shows is None else PlannedPicture(shows)) for text, shows in parts)
    return Plan(title, tuple(made), tuple(Member(*one) for one in cast))


BOAT = plan(
    ("Fold the sheet in half.", "A white sheet of paper lying folded in half on a wooden table."),
    ("Fold both corners down.", "The folded sheet with both upper corners bent to the middle, a hat of paper."),
    ("Pull the sides apart.", "A finished paper boat standing on the wooden table."),
)
HOW = Request("How do I fold a paper boat?", Wish("howto", None, None, "en"))
PLAIN = Request("What is the capital of France?", Wish("plain", None, None, "en"))


def test_our_requests_are_those_the_issue_names():
    requests = our_requests()
    assert Counter(one.wish.kind for one in requests) == {"howto": 60, "story": 20, "plain": 20}
    assert sum(one.wish.language != "en" for one in requests) == 10
    assert sum(one.wish.count is not None for one in requests) == 25
    assert len({one.text for one in requests}) == 100
    found = [wish_of(one.text) for one in requests]
    agree = [(a.kind, a.count) == (one.wish.kind, one.wish.count) for a, one in zip(found, requests)]
    assert sum(agree) >= 98
    assert all(a.kind in (one.wish.kind, "unsure") for a, one in zip(found, requests))


def test_any_number_of_them_is_spread_over_the_kinds():
    requests = our_requests()
    some = chosen(requests, 36, 1)
    assert Counter(one.wish.kind for one in some) == {"howto": 12, "story": 12, "plain": 12}
    assert some == chosen(requests, 36, 1) and some != chosen(requests, 36, 2)
    assert len(chosen(requests, None, 0)) == len(chosen(requests, 500, 0)) == 100


def test_scores_of_one_plan():
    faults, checks, captions = score(Written(HOW, BOAT))
    assert not faults and checks == {"whole": 1, "pictured": 1, "language": 1, "mixed": 0}
    assert len(captions) == 3 and captions[0] == {
        "repeated": 0, "copied": 0, "same_words": 0, "instruction": 0, "complete": 1, "named": 1,
    }  # fmt: skip
    assert score(Written(HOW, None, "no answer"))[1] == {"whole": 0, "pictured": 0}
    five = Request("How do I fold a paper boat in 5 steps?", Wish("howto", 5, None, "en"))
    assert score(Written(five, BOAT))[1] == {"whole": 1, "pictured": 1, "count": 0, "language": 1, "mixed": 0}
    assert score(Written(PLAIN, BOAT))[1] == {"whole": 1, "plain": 0, "language": 1, "mixed": 0}
    cut = plan(("Fold the sheet,", BOAT.pictures[0].shows), *((p.text, p.picture.shows) for p in BOAT.parts[1:]))
    assert score(Written(HOW, cut))[1]["whole"] == 0
    text_only = plan(*((part.text, None) for part in BOAT.parts))
    assert (
        score(Written(HOW, text_only))[1]["pictured"]
        == score(Written(HOW, plan(*[("A.", "A boat.")])))[1]["pictured"]
        == 0
    )
    german = Request("Wie falte ich ein Papierboot?", Wish("howto", None, None, "de"))
    assert score(Written(german, BOAT))[1]["language"] == 0
    crew = plan(
        ("Milo waits.", "A grey mouse named Milo waits on a pier."),
        ("Milo rows.", "A boat on a lake at noon."),
        ("It rains.", "Rain falls on a lake."),
        cast=[("Milo", "a grey mouse")],
    )
    captions = score(Written(Request("A story about Milo", Wish("story")), crew))[2]
    assert [one.get("cast") for one in captions] == [1, 0, None]
    copied = score(Written(HOW, BOAT), ["a finished paper boat standing there"])[2]
    assert [one["copied"] for one in copied] == [0, 0, 1]


def test_the_report_has_a_mean_a_number_and_an_interval_of_each_score():
    report = evaluate([Written(HOW, BOAT, seconds=2.0), Written(PLAIN, BOAT), Written(HOW, None, "no answer")])
    assert report["figures"]["whole"] == 0.6667 and report["counts"]["whole"] == 3
    assert report["figures"]["howto.whole"] == 0.5 and report["figures"]["plain.plain"] == 0
    assert report["counts"]["named"] == 6 and report["counts"]["howto.named"] == 3
    assert report["extra"]["seconds"] == 2.0 and report["extra"]["kind and count found by code"] == 1.0
    low, high = report["intervals"]["whole"]
    assert low < 0.6667 < high
    printed = table(report)
    assert "0.667     3" in printed and "0.500 (n 2)" in printed and "repeated" in printed and "story" not in printed
    assert table(evaluate([]))


def test_plans_are_kept_line_by_line(tmp_path):
    file = tmp_path / "plans.jsonl"
    assert kept(file, "w", 0) == {}
    lines = line_of(Written(HOW, BOAT, seconds=1.5), "w", 0) + line_of(Written(PLAIN, None, "no <answer>"), "w", 0)
    file.write_bytes(lines + b'{"request": "cut off by a k')
    assert kept(file, "w", 0) == {
        HOW.text: Written(HOW, BOAT, "", 1.5), PLAIN.text: Written(PLAIN, None, "no <answer>")
    }  # fmt: skip
    assert file.read_bytes() == lines and read_plans(file)[0].plan == BOAT
    for other in (("x", 0), ("w", 1), ("w", 0, 0.7)):
        with pytest.raises(DuoGenError, match="another writer, seed or temperature"):
            kept(file, *other)


@pytest.mark.parametrize(
    "asked",
    ["How do I fold a hat in at most 5 steps?", "A story in at least 4 scenes.", "How do I fold a hat in 150 steps?",
     "How do I fold a hat, without pictures?", "Teach me juggling in more than 998 steps, please."],
)  # fmt: skip
def test_a_request_reads_back_as_it_was_written(asked, tmp_path):
    file = tmp_path / "plans.jsonl"
    request = Request(asked, wish_of(asked))
    assert request.wish != Wish(request.wish.kind, None, None, request.wish.language)
    file.write_bytes(line_of(Written(request, BOAT), "w", 0))
    assert kept(file, "w", 0)[asked].request == request


def test_requests_of_others(tmp_path):
    file = tmp_path / "requests.txt"
    file.write_text('How do I fold a hat in 4 steps?\n\n{"request": "Hats", "kind": "story", "count": 2}\n', "utf-8")
    first, second = read_requests(file)
    assert (first.wish.kind, first.wish.count) == ("howto", 4)
    assert (second.text, second.wish.kind, second.wish.count) == ("Hats", "story", 2)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("", "is empty"),
        ("{}", "line 1 has no request"),
        ('{"request": 1}', "line 1 has no request"),
        ('{"request": "x", "kind": "poem"}', "kind is 'poem'; expected one of"),
        ('{"request": "x", "count": 1000}', "count is 1000"),
        ('{"request": "x", "count": true}', "count is True"),
        ('{"request": "x", "language": 7}', "language is 7"),
        ('{"request": "x", "pictures": "no"}', "pictures is 'no'"),
        ('{"request": "x"', "not valid JSON"),
        ("x" * 30_000, "30,000 characters"),
    ],
)
def test_bad_requests_are_one_sentence(line, sentence, tmp_path):
    file = tmp_path / "requests.txt"
    file.write_text(line, "utf-8")
    with pytest.raises(DuoGenError, match=sentence):
        read_requests(file)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({"request": "x"}, "line 1 has no plan"),
        ({"request": "x", "plan": {"parts": []}}, "line 1: The plan has no parts"),
        ({"request": "x", "plan": [1]}, "line 1: The plan is not a JSON object"),
    ],
)
def test_bad_plans_are_one_sentence(value, sentence, tmp_path):
    file = tmp_path / "plans.jsonl"
    file.write_text(json.dumps(value), "utf-8")
    with pytest.raises(DuoGenError, match=sentence):
        read_plans(file)


def test_the_page_shows_the_worst_first_and_runs_nothing():
    evil = "<script>alert(1)</script>"
    worst = plan((f"{evil} it is", f"{evil} it is"), title=evil, cast=[(evil, evil)])
    report = {"writer": evil, **evaluate([Written(HOW, BOAT), Written(HOW, worst), Written(PLAIN, None, evil)])}
    shown = page(report)
    assert "<script" not in shown and "&lt;script&gt;" in shown
    assert shown.index("No plan:") < shown.index("same_words:") and "2 of 3 plans have faults" in shown
    assert BOAT.parts[1].text not in shown
    assert page({"writer": "w", **evaluate([])})
