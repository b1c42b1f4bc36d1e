"""UEval: its sums, and submissions and results as others write them or edit them by hand."""

from __future__ import annotations

import json

import pytest

from duogen_core.document import Document, Text
from duogen_core.errors import DuoGenError
from duogen_core.evaluation.benchmarks import Item, Score, benchmark
from tests.core.evaluation.benchmarks.layout_ueval import write_requests, write_results
from tests.core.evaluation.benchmarks.test_contract import picture


@pytest.fixture
def ueval():
    return benchmark("ueval")


def items_of(ueval, folder):
    return list(ueval.items(write_requests(folder)))


def test_rates_are_averaged_over_the_answers_that_have_such_rubrics(ueval):
    """The overall figure is the mean of the two averages, not of all rates."""
    scores = [
        Score("1", "life", {"text": 1.0, "image": 0.5}),
        Score("2", "space", {"text": 0.0, "image": None}),
        Score("3", "life", {"text": None, "image": None}),
    ]
    assert ueval.summary(scores) == {
        "overall": 0.5, "image": 0.5, "text": 0.5, "life: image": 0.5, "life: text": 1.0, "space: text": 0.0,
    }  # fmt: skip
    assert ueval.summary(scores[2:]) == {}


def test_a_criterion_that_the_judge_is_not_sure_of_is_not_met(ueval, tmp_path):
    item = items_of(ueval, tmp_path)[2]
    said = {f"image {n}": {"met": met, "reason": met} for n, met in enumerate(["yes", "unsure", "no"], 1)}
    score = ueval.score(item, item.prompt.begin_turn("assistant", ()), said)
    assert score.values == {"text": None, "image": 1 / 3}
    assert score.reasons["image"] == "unsure no"


def test_the_published_parquet_file_gives_the_same_requests(ueval, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").Table.from_pylist(json.loads(write_requests(tmp_path).read_text("utf-8")))
    parquet.write_table(table, tmp_path / "test-00000-of-00001.parquet")
    assert list(ueval.items(tmp_path / "test-00000-of-00001.parquet")) == items_of(ueval, tmp_path)


def test_submissions_as_the_scorer_takes_them(ueval, tmp_path):
    """One name for a list of one, null for no image, a number for an id; an answer that is not there."""
    items = items_of(ueval, tmp_path)
    (tmp_path / "a.png").write_bytes(picture(1).to_png())
    file = tmp_path / "submission.json"
    file.write_text(json.dumps([{"id": 1, "text_answer": "Fold.", "image_answer": "a.png"},
                                {"id": "2", "text_answer": None, "image_answer": None}]))  # fmt: skip
    (first, one), (second, two) = ueval.read(file, items)
    assert (first.id, first.text(one), first.pictures(one)) == ("1", "Fold.", [picture(1)])
    assert (second.id, second.parts(two)) == ("2", [])


@pytest.mark.parametrize("task, told", [("Space", False), ("paper", False), ("art", True), ("", True)])
def test_the_text_is_shown_with_the_images_where_the_scorer_shows_it(ueval, tmp_path, task, told):
    file = tmp_path / "ueval.json"
    file.write_text(
        json.dumps([{"id": "1", "prompt": "Draw.", "task": task, "text_rubrics": ["a"], "image_rubrics": ["b"]}])
    )
    [item] = ueval.items(file)
    text, image = ueval.asks(item, item.prompt.begin_turn("assistant", [Text("So it is."), picture(1)]))
    assert text.data["answer"] == "So it is." and (image.data["answer"] == "So it is.") is told


def test_rubrics_that_are_no_list_are_refused(ueval, tmp_path):
    file = tmp_path / "ueval.json"
    file.write_text(json.dumps([{"id": "1", "prompt": "Draw.", "text_rubrics": 5, "image_rubrics": []}]))
    with pytest.raises(DuoGenError, match="entry 1: text_rubrics is 5; expected a list of rubrics"):
        list(ueval.items(file))


@pytest.mark.parametrize("entries, says", [
    ([{"id": "1"}, {"id": 1}], "entry 2 answers '1'.*an earlier entry"),
    ([{"id": "77"}], "answers '77', which no request has"),
    ([{"id": "1", "image_answer": ["gone.png"]}], "gone.png .*does not exist"),
    ([{"id": "1", "image_answer": {"a": 1}}], "image_answer is .*expected a list of names"),
    ([{"id": "1", "text_answer": 5}], "text_answer is 5; expected text"),
])  # fmt: skip
def test_submissions_that_are_refused(ueval, tmp_path, entries, says):
    items = items_of(ueval, tmp_path)
    file = tmp_path / "submission.json"
    file.write_text(json.dumps(entries))
    with pytest.raises(DuoGenError, match=says):
        list(ueval.read(file, items))


@pytest.mark.parametrize("change, says", [
    (lambda item: item["text_score"].update(rate=1.2), "text_score: rate is 1.2; expected a number from 0 to 1"),
    (lambda item: item["text_score"].update(rate=True), "rate is True"),
    (lambda item: item.update(id="2"), "item 2 answers '2'"),
    (lambda item: item.clear(), "item 1: id is missing"),
    (lambda item: item.pop("image_score"), "item 1: image_score is missing"),
    (lambda item: item.update(text_results=["x"]), "text_results has 'x'"),
])  # fmt: skip
def test_results_that_are_refused(ueval, tmp_path, change, says):
    items = items_of(ueval, tmp_path)
    file = write_results(tmp_path, [item.id for item in items])
    value = json.loads(file.read_text("utf-8"))
    change(value["items"][0])
    file.write_text(json.dumps(value))
    with pytest.raises(DuoGenError, match=says):
        ueval.results(file, items)


def test_results_without_any_item_are_refused(ueval, tmp_path):
    (tmp_path / "results.json").write_text('{"items": []}')
    with pytest.raises(DuoGenError, match="results.json has no scores"):
        ueval.results(tmp_path / "results.json", items_of(ueval, tmp_path))


def test_ids_that_would_be_the_same_name_of_a_file_have_files_of_their_own(ueval, tmp_path):
    items = [Item(id, Document().begin_turn("user", [Text("Draw.")])) for id in ("a/b", "a_b", "A b")]
    answers = [(item, item.prompt.begin_turn("assistant", [picture(n)])) for n, item in enumerate(items)]
    ueval.export(answers, tmp_path, "m")
    back = {item.id: item.pictures(document) for item, document in ueval.read(tmp_path, items)}
    assert back == {item.id: [picture(n)] for n, item in enumerate(items)}
