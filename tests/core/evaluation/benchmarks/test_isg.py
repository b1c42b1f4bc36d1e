"""ISG-Bench: what counts as a block, the files that the scorer needs beside the submission, and its sums."""

from __future__ import annotations

import json

import pytest

from duogen_core.document import Text
from duogen_core.errors import DuoGenError
from duogen_core.evaluation.benchmarks import Score, benchmark
from tests.core.evaluation.benchmarks.layout_isg import write_requests, write_results
from tests.core.evaluation.benchmarks.test_contract import answered, picture


@pytest.fixture
def case(tmp_path):
    bench = benchmark("isg")
    return bench, list(bench.items(write_requests(tmp_path)))


def exported(case, folder, answers):
    (folder / "out").mkdir()
    file = case[0].export(answers, folder / "out", "duogen-tiny")
    return [json.loads(line) for line in file.read_bytes().decode("ascii").splitlines()]


def test_blanks_are_no_block_and_texts_side_by_side_are_one(case, tmp_path):
    """The scorer compares the order of types exactly: a blank between two images would be a text to it."""
    bench, items = case
    parts = [Text("Fold. "), Text("Then\n"), picture(1), Text(" \n"), Text(""), picture(2), Text("\n\n")]
    document = items[0].prompt.begin_turn("assistant", parts)
    (line,) = exported(case, tmp_path, [(items[0], document)])
    assert [block["type"] for block in line["output"]] == ["text", "image", "image"]
    assert line["output"][0]["content"] == "Fold. Then"
    fits = items[5].prompt.begin_turn("assistant", [Text("\n"), picture(1), Text(" "), picture(2)])
    assert bench.score(items[5], fits, {}).values["structure"] == 1


def test_the_submission_holds_every_file_that_the_scorer_opens(case, tmp_path):
    """Also the images of requests and golden answers, so that one folder is the scorer's --root."""
    lines = exported(case, tmp_path, [(item, answered(item, n)) for n, item in enumerate(case[1])])
    asked = [json.loads(line) for line in (tmp_path / "ISG-Bench.jsonl").read_text("utf-8").splitlines()]
    assert [{key: line[key] for key in line if key != "output"} for line in lines] == asked
    names = [
        block["content"]
        for line in lines
        for field in ("Query", "Golden", "output")
        for block in line[field]
        if block["type"] == "image"
    ]
    assert names and len({name for name in names if name.startswith("answers/")}) == 9
    for name in names:
        assert (tmp_path / "out" / name).read_bytes()
    for name in asked[0]["Query"][1:]:
        assert (tmp_path / "out" / name["content"]).read_bytes() == (tmp_path / name["content"]).read_bytes()


def test_a_missing_image_of_a_golden_answer_is_named(case, tmp_path):
    (tmp_path / "images/0003_g2.png").unlink()
    with pytest.raises(DuoGenError, match=r"line 4 \(item 0003\): the image images/0003_g2.png does not exist"):
        list(case[0].items(tmp_path / "ISG-Bench.jsonl"))


def test_a_name_outside_of_the_folder_is_refused(case, tmp_path):
    file = tmp_path / "ISG-Bench.jsonl"
    (tmp_path.parent / "secret.png").write_bytes(picture(1).to_png())
    file.write_text(file.read_text("utf-8").replace("images/0003_g2.png", "../secret.png"), "utf-8")
    with pytest.raises(DuoGenError, match="secret.png' is not allowed"):
        list(case[0].items(file))


def test_a_judge_is_asked_what_the_scorer_asks(case):
    bench, items = case
    keys = [ask.key for ask in bench.asks(items[0], answered(items[0], 0))]
    # Not: a question that waits for another one, one about a block that is not there, a broken one.
    assert keys == ["image 1", "image 3", "block 1", "block 2", "block 3", "block 4", "holistic"]
    asks = {ask.key: ask for ask in bench.asks(items[0], answered(items[0], 0))}
    assert len(asks["holistic"].pictures) == 1 + 2 + 2
    assert asks["block 2"].data["question"] == "Does the first piece come before the second piece?"
    assert [line for line, _ in asks["block 1"].pictures] == ["The second piece:"]
    assert asks["block 4"].data["second"].startswith("Show in two images")
    wrong = items[1].prompt.begin_turn("assistant", [Text("Only text.")])
    assert [ask.key for ask in bench.asks(items[1], wrong)] == ["holistic"]


def test_scores_of_a_judge(case):
    bench, items = case
    said = {
        "image 1": {"answer": "yes", "reason": "a"}, "image 3": {"answer": "no", "reason": "b"},
        "block 1": {"score": 9, "reason": "c"}, "block 2": {"score": 4, "reason": "d"},
        "holistic": {"overall_score": 6, "reason": "e"},
    }  # fmt: skip
    score = bench.score(items[0], answered(items[0], 0), said)
    assert score.values == {"structure": 1, "image": 1 / 4, "block": 6.5, "holistic": 6}
    wrong = items[0].prompt.begin_turn("assistant", [Text("Only text.")])
    score = bench.score(items[0], wrong, {"holistic": said["holistic"]})
    assert score.values == {"structure": 0, "image": 0, "block": 1, "holistic": 6}
    score = bench.score(items[2], answered(items[2], 2), {"holistic": said["holistic"]})
    assert score.values == {"structure": 1, "image": None, "block": 1, "holistic": 6}  # it has no questions of images
    score = bench.score(items[4], answered(items[4], 0), {"holistic": said["holistic"]})
    assert score.values == {"structure": 1, "image": 0, "block": None, "holistic": 6}  # and none of blocks


def test_what_the_scorer_counts_where_something_is_missing(case, tmp_path):
    bench, items = case
    scores = bench.results(write_results(tmp_path, [item.id for item in items]), items)
    assert scores[0].values == {"structure": 1, "block": 6.5, "image": 1 / 4, "holistic": 7}
    assert scores[1].values == {"structure": 0, "block": 1, "image": 0, "holistic": 1}
    assert scores[2].values == {"structure": 0, "block": 1, "image": None, "holistic": 7}


def said(*judged):
    return {"structure": True, "block": [{"VQA_judge_Score": one} for one in judged]}


@pytest.mark.parametrize("change, metric, value", [
    (said({"Judge": 4}, {"error": "Invalid JSON response"}, {"Judge": 9}), "block", 6.5),
    (said({"Judge": 4}, None), "block", 1),
    (said({"Judge": 4}, {"Judge": "9"}), "block", 1),
    (said({"Judge": 4}, {"Judge": None}), "block", 1),
    (said({"error": "Invalid JSON response"}), "block", 1),
    (said(), "block", None),
    ({"image": [{"judge": {"Judge": "YES"}}, {"judge": {"error": "x"}}]}, "image", 0.5),
    ({"holistic": {"error": "x"}}, "holistic", 1),
    ({"holistic": None}, "holistic", 1),
    ({"error": "a file was missing"}, "holistic", 7),
])  # fmt: skip
def test_what_the_scorer_counts_where_its_judge_failed(case, tmp_path, change, metric, value):
    file = write_results(tmp_path, [case[1][0].id])
    line = json.loads(file.read_text())
    file.write_text(json.dumps({**line, "result": {**line["result"], **change}}))
    (score,) = case[0].results(file, case[1])
    assert score.values[metric] == value
    file.write_text(json.dumps({**line, "output": [{"type": "text", "content": ""}]}))
    (score,) = case[0].results(file, case[1])
    assert score.values["holistic"] == 1


@pytest.mark.parametrize("change, says", [
    ({"holistic": {"overall_score": 11}}, "overall_score is 11; expected a number from 1 to 10"),
    ({"block": [{"VQA_judge_Score": {"Judge": 0}}], "structure": True}, "Judge is 0; expected a number from 1 to 10"),
])  # fmt: skip
def test_results_out_of_scale(case, tmp_path, change, says):
    file = write_results(tmp_path, [case[1][0].id])
    line = json.loads(file.read_text())
    file.write_text(json.dumps({**line, "result": {**line["result"], **change}}))
    with pytest.raises(DuoGenError, match=says):
        case[0].results(file, case[1])


def test_a_result_that_was_added_twice_or_is_none(case, tmp_path):
    bench, items = case
    file = write_results(tmp_path, [items[0].id])
    file.write_text(file.read_text() * 2)
    with pytest.raises(DuoGenError, match="line 2 scores '0000'.* adds to its file when it runs again"):
        bench.results(file, items)
    line = json.loads(file.read_text().splitlines()[0])
    file.write_text(json.dumps({key: line[key] for key in ("id", "output")}))
    with pytest.raises(DuoGenError, match="has no result; expected the file ..._judge.jsonl"):
        bench.results(file, items)


def test_sums(case):
    """A category's figure is the mean of its items, the overall one of the categories: as in the published table."""

    def score(category, *values):
        return Score("x", category, dict(zip(("structure", "block", "image", "holistic"), values)))

    figures = case[0].summary([
        score("VQA", 1, 5, None, 9), score("3D Scene", 1, 3, 0.5, 2), score("3D Scene", 0, 1, None, 4),
        score("3D Scene", 1, None, 1, 6), score("Riddles", 0, 1, 0, 1),
    ])  # fmt: skip
    assert figures["3D Scene: structure"] == 2 / 3 and figures["structure"] == (1 + 2 / 3) / 2
    assert figures["3D Scene: block"] == 2 and figures["block"] == 3.5
    assert figures["3D Scene: image"] == 0.5 == figures["image"] and "VQA: image" not in figures
    assert figures["holistic"] == (9 + 4) / 2
    assert figures["Riddles: holistic"] == 1  # a kind of somebody's own, which the scorer leaves out of its sums
