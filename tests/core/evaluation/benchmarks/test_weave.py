"""WEAVE: which image stands where in a conversation, the names of files, and the scorer's cascade of rounded sums."""

from __future__ import annotations

import json

import numpy as np
import pytest

from duogen_core.document import Picture, Text
from duogen_core.errors import DuoGenError
from duogen_core.evaluation.benchmarks import Score, benchmark
from tests.core.evaluation.benchmarks.layout_weave import REQUESTS, user, write_requests, write_results
from tests.core.evaluation.benchmarks.test_contract import answered, picture


@pytest.fixture
def case(tmp_path):
    bench = benchmark("weave")
    return bench, list(bench.items(write_requests(tmp_path)))


def changed(folder, number, **fields):
    file = folder / "test.json"
    requests = json.loads(file.read_text("utf-8"))
    requests[number].update(fields)
    file.write_text(json.dumps(requests))
    return file


def test_an_image_of_the_user_stands_at_its_first_mention_alone(case):
    _, items = case
    first, then = items[0].prompt.last_turn.parts, items[0].later[0]
    assert [part.text if isinstance(part, Text) else "image" for part in first] == [
        "Paint the wall behind Image #1", "image", " \"blue\".\nÜnïcode 彗星.",
    ]  # fmt: skip
    # Image #2 is the model's own, and Image #1 was there before.
    assert [part.text for part in then] == ["In Image #2 , use the wall of Image #1 again."]
    fused = items[4].prompt.last_turn.parts
    assert [part.text if isinstance(part, Text) else part.pixels[0, 0, 0] for part in fused] == [
        "Put Image #2", np.random.default_rng(41).integers(0, 255, (20, 30, 3), np.uint8)[0, 0, 0],
        " into Image #1", np.random.default_rng(40).integers(0, 255, (20, 30, 3), np.uint8)[0, 0, 0], ".",
    ]  # fmt: skip


def test_how_many_images_each_turn_must_have(case):
    assert [[item.due(turn) for turn in range(1 + len(item.later))] for item in case[1]] == [
        [1, 1], [0, 1, 0], [0], [1, 0, 1], [1],
    ]  # fmt: skip


def test_names_of_files(case, tmp_path):
    """By the last part of the image's name, texts by the first image's; and what the scorer looks for besides."""
    bench, items = case
    (tmp_path / "out").mkdir()
    bench.export([(item, answered(item, n)) for n, item in enumerate(items)], tmp_path / "out", "duogen-tiny")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "ab.png", "c_1.png", "c_1_1.txt", "c_2.jpg", "lens.png", "lens_0.txt", "lens_2.txt", "maze_0.txt", "out.JPG",
        "r_2.jpg", "r_3.png",
    ]  # fmt: skip
    # The requirement of item 1 names the user's image "Image #1", not "GT #1".
    assert (tmp_path / "out/lens.png").read_bytes() == (tmp_path / "images/o/lens.png").read_bytes()
    assert (tmp_path / "out/lens_0.txt").read_text("utf-8") == "The end."
    assert (tmp_path / "out/c_1_1.txt").read_bytes() == b""  # it said nothing


def test_texts_around_an_image_are_not_run_together(case, tmp_path):
    bench, items = case
    document = items[2].prompt.begin_turn("assistant", [Text("Left."), picture(1), Text("Right.")])
    (tmp_path / "out").mkdir()
    bench.export([(items[2], document)], tmp_path / "out", "m")
    assert (tmp_path / "out/maze_0.txt").read_text("utf-8") == "Left.\n\nRight."


def test_the_last_image_of_a_reply_counts(case, tmp_path):
    bench, items = case
    document = items[4].prompt.begin_turn("assistant", [picture(1), Text("no, so:"), picture(2), Text("!")])
    (tmp_path / "out").mkdir()
    bench.export([(items[4], document)], tmp_path / "out", "duogen-tiny")
    assert Picture.from_file(tmp_path / "out/ab.png") == picture(2)
    assert bench.asks(items[4], document)[0].pictures[0][1] == picture(2)


def test_a_submission_that_lacks_a_file(case, tmp_path):
    bench, items = case
    (tmp_path / "out").mkdir()
    bench.export([(items[0], answered(items[0], 0))], tmp_path / "out", "duogen-tiny")
    (tmp_path / "out/r_2.jpg").unlink()
    ((item, document),) = bench.read(tmp_path / "out", items)
    assert item.id == "0" and [len(reply) for reply in item.replies(document)] == [0, 1]


def test_two_answers_with_one_name(case, tmp_path):
    (tmp_path / "images/other").mkdir()
    (tmp_path / "images/other/r_2.jpg").write_bytes((tmp_path / "images/r_2.jpg").read_bytes())
    file = changed(tmp_path, 4, images=["a.png", "b.png", "images/other/r_2.jpg"])
    with pytest.raises(DuoGenError, match=r"item 4\): r_2.jpg is the file of turn 0 of item 4 and of turn 0 of item 0"):
        list(case[0].items(file))


@pytest.mark.parametrize("fields, says", [
    ({"images": ["a.png"]}, "expected a text, or an image with the number of one of 1"),
    ({"images": ["a.png", "b.png", "../x.png"], "chats": REQUESTS[4]["chats"][1:]}, "not from user and assistant"),
    ({"images": ["a.png", "none.png", "ab.png"]}, "none.png does not exist beside the requests"),
    ({"images": ["a.png", "b.png", "x/.."]}, "'..' is not allowed"),
    ({"chats": [user(f"Look at Image #{'7' * 5000} ."), REQUESTS[4]["chats"][1]]}, "speaks of Image #777777777, and"),
    ({"images": ["a.png", "x" * 3000, "ab.png"]}, "does not exist beside the requests"),
    ({"chats": [user("Look at Image #7 ."), REQUESTS[4]["chats"][1]]}, "speaks of Image #7, and there are 3 images"),
])  # fmt: skip
def test_requests_that_cannot_be(case, tmp_path, fields, says):
    with pytest.raises(DuoGenError, match=says):
        list(case[0].items(changed(tmp_path, 4, **fields)))


def test_requirements_show_their_images_in_order(case):
    bench, items = case
    document = answered(items[0], 0)
    asks = {ask.key: ask for ask in bench.asks(items[0], document)}
    assert list(asks) == [f"turn {n} {metric}" for n in (0, 1) for metric in list(bench.metrics)[:3]]
    ask = asks["turn 1 key_point"]
    assert ask.data["requirements"] == "1. The wall is as in [Image 2].\n2. Who is as in [Image 3].\n3. No text."
    mine = items[0].pictures(document)
    given = items[0].prompt.pictures[0]
    assert [one for _, one in ask.pictures] == [mine[1], given, mine[0]]
    assert [one for _, one in asks["turn 1 image_quality"].pictures] == [mine[1]]


def test_an_image_that_was_not_made_is_grey_to_a_judge_and_none_to_a_reader(case, tmp_path):
    bench, items = case
    document = answered(items[3], 3)
    (tmp_path / "out").mkdir()
    bench.export([(items[3], document)], tmp_path / "out", "duogen-tiny")
    ((_, back),) = bench.read(tmp_path / "out", items)
    assert not items[3].pictures(back)
    asks = {ask.key: ask for ask in bench.asks(items[3], document)}
    assert (asks["turn 0 key_point"].pictures[0][1].pixels == 128).all()
    assert asks["turn 1 accuracy"].data["answer"] == "(nothing)"


def test_scores_of_a_judge(case):
    bench, items = case
    said = {
        "turn 0 key_point": {"score": 8, "reason": "a"}, "turn 2 key_point": {"score": 3, "reason": "b"},
        "turn 1 accuracy": {"score": 5, "reason": "c"},
    }  # fmt: skip
    score = bench.score(items[3], answered(items[3], 0), said)
    assert score.values == {"key_point": 5.5, "visual_consistency": None, "image_quality": None, "accuracy": 5}
    assert score.detail["turns"] == {"key_point": [8, 3], "accuracy": [5]} and score.reasons["key_point"] == "a b"


def test_sums_are_over_turns_and_rounded_on_the_way(case):
    def score(category, **turns):
        return Score("x", category, {}, detail={"turns": turns})

    images = {"visual_consistency": [5, 5], "image_quality": [1, 2]}
    figures = case[0].summary([
        score("maze", key_point=[7, 7], **images), score("maze", accuracy=[10]), score("edit", key_point=[2], **images),
        score("optics", accuracy=[5, 0, 0]), score("new", accuracy=[10]),
    ])  # fmt: skip
    assert figures["key_point"] == round(16 / 3 / 10, 3) == 0.533 and figures["accuracy"] == 0.5
    assert figures["overall"] == round(0.4 * 0.533 + 0.1 * 0.5 + 0.2 * 0.15 + 0.3 * 0.5, 3)
    assert figures["edit: overall"] == figures["Creation: overall"] == round(0.5 * 0.2 + 0.2 * 0.5 + 0.3 * 0.15, 3)
    assert figures["Game: overall"] == round(0.4 * 0.7 + 0.1 * 0.5 + 0.2 * 0.15 + 0.3 * 1, 3)
    assert figures["optics: overall"] == round(5 / 3 / 10, 3)  # without images it is the plain mean
    assert figures["new: accuracy"] == 1


def test_results_out_of_scale_twice_or_of_no_request(case, tmp_path):
    bench, items = case
    file = write_results(tmp_path, ["0"])
    line = file.read_text()
    for text, says in (
        (line * 2, "line 2 scores '0', which no request has or an earlier line scores"),
        (line.replace('"score": 3', '"score": 12'), "score is 12; expected a number from 0 to 10"),
        ("", "is empty"),
    ):
        file.write_text(text)
        with pytest.raises(DuoGenError, match=says):
            bench.results(file, items)
