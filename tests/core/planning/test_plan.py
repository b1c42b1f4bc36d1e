"""A plan: JSON there and back, what it refuses, which pictures look at which, the schema that writers fill in."""

from __future__ import annotations

import re

import pytest
from jsonschema import Draft202012Validator

from duogen_core.errors import DuoGenError
from duogen_core.planning.plan import (
    MAX_PARTS,
    SHOWN,
    Member,
    Part,
    Plan,
    PlannedPicture,
    Reference,
    appears,
    plan_schema,
    references,
    sentence_patterns,
)
from duogen_core.planning.requests import Wish


def part(text: str, shows: str | None = None, **more) -> Part:
    return Part(text, None if shows is None else PlannedPicture(shows, **more))


FOX = Member("the Fox", "a small red fox with a green hat")
STORY = Plan(
    "The lost hat",
    (
        part("A fox had a hat.", "The Fox in a meadow."),
        part("The wind came.", "A meadow in the wind."),
        part("It searched.", "The Fox in a forest."),
        part("It was glad.", "The fox's hat on a branch, wet.", looks_at=(Reference(2, "cast"),), size=(64, 48)),
        part("The end."),
    ),
    (FOX,),
    "watercolour",
)


def test_json_there_and_back():
    assert Plan.from_json(STORY.to_json()) == STORY
    value = STORY.to_json()
    assert value["parts"][0] == {"text": "A fox had a hat.", "picture": "The Fox in a meadow."}
    assert value["parts"][3]["picture"]["looks_at"] == [{"picture": 2, "why": "cast"}]
    assert value["parts"][4]["picture"] is None


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ([], "The plan is not a JSON object"),
        ({}, "The plan has no parts"),
        ({"parts": []}, "The plan has no parts"),
        ({"parts": {}}, "The plan's parts is not a list"),
        ({"parts": [{"text": ""}]}, "Part 1 of the plan is empty"),
        ({"parts": [{"text": "a"}, {"picture": "  "}]}, "The image of part 2 of the plan says not what it shows"),
        ({"parts": [{"text": 3}]}, "The text of part 1 of the plan is not a text"),
        ({"parts": [{"text": "a", "image": "b"}]}, "unknown field 'image'"),
        ({"parts": [{"text": "a"}] * (MAX_PARTS + 100)}, "The plan has 200 parts; expected at most 100"),
        ({"parts": [{"text": "a"}], "cast": [{"name": "x"}, {"name": "X"}]}, "names 'x' twice"),
        ({"parts": [{"text": "a"}], "cast": [{"looks": "x"}]}, "has no name"),
        ({"parts": [{"text": "\ud800"}]}, "not valid Unicode"),
        ({"parts": [{"picture": {"shows": "a", "looks_at": [{"picture": 1}]}}]}, "no image comes before it"),
        ({"parts": [{"picture": "a"}, {"picture": {"shows": "a", "looks_at": [{"picture": 2}]}}]}, "images are 1 to 1"),
        ({"parts": [{"picture": {"shows": "a", "looks_at": [{"picture": "1"}]}}]}, "not an image's number"),
        ({"parts": [{"picture": {"shows": "a", "size": [64]}}]}, r"not \[width, height\]"),
        ({"parts": [{"picture": {"shows": "a", "size": [64, 100000]}}]}, "a side of 100000 pixels"),
    ],
)
def test_what_is_wrong_is_a_sentence(value, sentence):
    with pytest.raises(DuoGenError, match=sentence):
        Plan.from_json(value)


def test_pictures_look_at_the_one_before_and_where_the_cast_was_first_seen():
    assert references(STORY, 1) == ()
    assert references(STORY, 2) == (Reference(1, "before"),)
    assert references(STORY, 3) == (Reference(1, "cast"), Reference(2, "before"))
    assert references(STORY, 4) == (Reference(2, "cast"),)  # its own list


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("the Fox", "A fox's den.", True),
        ("Fox", "A foxglove.", False),
        ("der Hund", "Ein Hund am See.", True),
        ("狐狸", "一只狐狸在森林里。", True),
        ("El gato", "Un gato negro", True),
        ("a", "a", True),
    ],
)
def test_whether_a_text_names_one_of_the_cast(name, text, found):
    assert appears(Member(name), text) is found


def good(parts: int, pictures: bool = True, **more):
    part = {"text": "Fold the sheet in half."} | ({SHOWN: "A white sheet lies on a table."} if pictures else {})
    cast = {"cast": [{"name": "Sheet", "looks": "white paper"}]} if pictures else {}
    return {**more, "title": "A boat", **cast, "parts": [part] * parts}


@pytest.mark.parametrize(
    ("wish", "right", "wrong"),
    [
        (Wish("howto", 4), good(4), good(3)),
        (Wish("howto"), good(3), good(2)),
        (Wish("story"), good(6), good(7)),
        (Wish("plain"), good(1, pictures=False), good(1)),
        (Wish("howto", 2, pictures=False), good(2, pictures=False), good(2)),
        (Wish("unsure"), good(1, pictures=False, kind="plain"), good(1, kind="illustrated")),
        (Wish("unsure"), good(3, kind="illustrated"), good(3)),
        (Wish("unsure", pictures=True), good(3), good(1, pictures=False)),
    ],
)
def test_the_schema_asks_for_what_the_request_wants(wish, right, wrong):
    schema = Draft202012Validator(plan_schema(wish))
    assert schema.is_valid(right) and not schema.is_valid(wrong)
    for text in ("Half a sentence that was", "1. Fold the sheet.", "step_1.png"):
        right["parts"][0] = {**right["parts"][0], "text": text}
        assert not schema.is_valid(right)
    assert Draft202012Validator(plan_schema(wish, sentences=False)).is_valid(right)


@pytest.mark.parametrize(
    ("language", "text", "fits"),
    [
        ("en", "Fold it in half. Then add 1.5 cups!", True),
        ("en", "He said: ‘Go home now!’", True),
        ("en", "1. Fold it in half.", False),
        ("en", "Fold it at the 结 of it.", False),
        ("en", "Fold it in", False),
        ("en", "Bake it at 4.4.4.4.4.4 degrees.", False),
        ("de", "Falte das weiße Blatt.", True),
        ("ko", "종이를 반으로 접으세요.", True),
        ("zh", "对折纸张。然后打开。", True),
        ("", "对折纸张。", True),
        ("", "Fold it in half.", True),
    ],
)
def test_texts_are_whole_sentences(language, text, fits):
    assert bool(re.match(sentence_patterns(language)[0], text)) is fits


@pytest.mark.parametrize(
    ("language", "caption", "fits"),
    [
        ("en", "A white sheet lies on the table.", True),
        ("en", "A sheet.", False),
        ("en", "White-sheet-100 on the table is folded.", False),
        ("en", "sheet_1.png on a table is folded here.", False),
        ("en", "Https://a.b/c shows a sheet on the table.", False),
        ("zh", "一张白纸放在桌子上。", True),
        ("", "一张白纸放在桌子上。", True),
    ],
)
def test_captions_are_one_sentence_and_no_file(language, caption, fits):
    assert bool(re.match(sentence_patterns(language)[1], caption)) is fits
