"""What writers write -> Plan: their habits understood, what is whole kept, what is no plan told in a sentence."""

from __future__ import annotations

import json

import pytest

from duogen_core.planning.plan import MAX_PARTS, Member, Part, Plan, PlannedPicture
from duogen_core.planning.reading import PlanError, PlanReader, read_plan, whole_sentences

BOAT = Plan(
    "A paper boat",
    (
        Part("Fold it in half.", PlannedPicture("A white sheet, folded in half.")),
        Part("Open it.", PlannedPicture("A boat of white paper.")),
    ),
    (Member("Sheet", "white, square"),),
)
TEXT = json.dumps({k: v for k, v in BOAT.to_json().items() if k != "style"})
STEPS = [{"text": "Fold it in half.", "picture": "A white sheet, folded in half."},
         {"text": "Open it.", "picture": "A boat of white paper."}]  # fmt: skip


@pytest.mark.parametrize(
    "written",
    [
        TEXT,
        f"```json\n{TEXT}\n```",
        f"Sure! Here is [my] plan {{as JSON}}:\n\n```\n{TEXT}\n```\nI hope it helps.",
        f"<think>They want {{a boat}}.</think>\n{TEXT}",
        TEXT.replace('", "picture"', '",\n "picture"').replace("}]}", "},]}"),
        json.dumps({"plan": json.loads(TEXT)}),
        TEXT.replace("parts", "steps").replace('"text"', '"instruction"').replace('"picture"', '"Image Description"'),
        TEXT.replace('"A white sheet, folded in half."', '{"description": "A white sheet,\\n folded in half."}'),
        TEXT[:-2],
        TEXT[:-1],
    ],
)
def test_habits_of_models_are_understood(written):
    assert read_plan(written) == BOAT


def test_raw_newlines_in_strings():
    plan = read_plan(TEXT.replace("Fold it in half.", "Fold it\nin half."))
    assert plan.parts[0].text == "Fold it\nin half."


@pytest.mark.parametrize("written", [json.dumps(STEPS), f"1. {json.dumps(STEPS)}", json.dumps({"guide": STEPS})])
def test_a_list_of_parts_without_a_title(written):
    assert read_plan(written) == Plan("", BOAT.parts)


def test_of_a_text_that_was_cut_off_the_finished_parts_count():
    whole = len(read_plan(TEXT).parts)
    for end in range(len(TEXT)):
        try:
            plan = read_plan(TEXT[:end])
        except PlanError as error:
            assert (end < TEXT.index("Open it") and "text and picture" in str(error)) or "not JSON" in str(error)
        else:
            assert plan.parts == BOAT.parts[: len(plan.parts)] and len(plan.parts) <= whole
            assert plan.cast == BOAT.cast and plan.title == BOAT.title


@pytest.mark.parametrize("nothing", ['""', "null", '"None."', '"n/a"', "[]"])
def test_a_part_without_a_picture(nothing):
    assert read_plan(f'{{"parts": [{{"text": "Paris.", "picture": {nothing}}}]}}').parts == (Part("Paris."),)


def test_the_cast_in_other_shapes():
    for cast in (
        {"Sheet": "white, square"},
        ["Sheet: white, square"],
        [{"character": "Sheet", "look": "white, square"}],
    ):
        value = {**json.loads(TEXT), "cast": cast}
        assert read_plan(json.dumps(value)).cast == BOAT.cast


@pytest.mark.parametrize(
    "written", ["", "Paris.", "{}", "[]", '{"title": "x"}', "[" * 5000, '{"parts": [' * 3000, "{" * 90000]
)
def test_what_is_no_plan(written):
    with pytest.raises(PlanError, match="JSON"):
        read_plan(written)


def test_markdown_is_a_plan_too():
    plan = read_plan("# Boat\n\n---\n\nFold it.\n\nImage: A folded sheet.\n")
    assert plan == Plan("Boat", (Part("Fold it.", PlannedPicture("A folded sheet.")),))


@pytest.mark.parametrize("size", [1, 3, 50, 10_000])
def test_parts_are_told_while_the_text_streams_each_once(size):
    told = []
    reader = PlanReader(lambda index, part: told.append((index, part)))
    for start in range(0, len(TEXT), size):
        reader.put(TEXT[start : start + size])
        if told:
            assert start + size >= TEXT.index("}, {")
    assert reader.plan() == BOAT and told == list(enumerate(BOAT.parts))


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("One. Two and", "One."),
        ("One. Two.", "One. Two."),
        ("He said “Go.” Then he", "He said “Go.”"),
        ("对折。然后", "对折。"),
        ("No end here", "No end here"),
        ("Version 1.5 is out", "Version 1.5 is out"),
    ],
)
def test_whole_sentences(text, cut):
    assert whole_sentences(text) == cut


def test_what_a_plan_cannot_hold_is_told_and_not_left_out():
    many = [{"text": f"Part {number}.", "picture": f"Picture {number}."} for number in range(MAX_PARTS + 20)]
    for value in (many, {"steps": many}):
        told = []
        reader = PlanReader(lambda index, part, told=told: told.append(index))
        reader.put(json.dumps(value))
        with pytest.raises(PlanError, match="120 parts; expected at most 100"):
            reader.plan()
        assert told == list(range(MAX_PARTS))
    with pytest.raises(PlanError, match="text of part 1 of the plan has 30,000 characters"):
        read_plan(json.dumps([{"text": "x" * 30_000}]))


def test_whether_a_reply_ended_too_early_is_known():
    for text, cut in ((TEXT, False), (TEXT[:-20], True), (json.dumps(STEPS)[:-5], True), (f"{TEXT} and so on", False)):
        reader = PlanReader()
        reader.put(text)
        reader.plan()
        assert reader.cut is cut


def test_markdown_may_speak_of_json():
    written = '# Settings\n\n---\n\nWrite {"a": [1, 2]} into the file.\n\nImage: A file of settings.\n'
    assert read_plan(written).parts[0].text == 'Write {"a": [1, 2]} into the file.'
