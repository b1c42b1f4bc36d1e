"""MMIE: what its scorer needs of a submission, and the scores in its judge's words."""

from __future__ import annotations

import json

import pytest

from duogen_core.document import Text
from duogen_core.errors import DuoGenError
from duogen_core.evaluation.benchmarks import benchmark
from tests.core.evaluation.benchmarks.layout_mmie import write_requests, write_results
from tests.core.evaluation.benchmarks.test_contract import answered, picture


@pytest.fixture
def case(tmp_path):
    bench = benchmark("mmie")
    return bench, list(bench.items(write_requests(tmp_path)))


def exported(case, folder):
    bench, items = case
    (folder / "out").mkdir()
    return bench.export([(item, answered(item, n)) for n, item in enumerate(items)], folder / "out", "duogen-tiny")


def test_the_kind_is_told_by_the_id_in_the_scorer_s_order(case, tmp_path):
    bench, items = case
    assert [item.category for item in items] == ["SA", "PBL", "MSR", "PBL", "SA"]
    file = tmp_path / "one.json"
    file.write_text(json.dumps([{"id": "MSR-SA", "question": [{"text": "a"}]}]))
    assert next(bench.items(file)).category == "SA"
    file.write_text(json.dumps([{"id": "other-1", "question": [{"text": "a"}]}]))
    with pytest.raises(DuoGenError, match="the id is 'other-1'; expected one with SA, PBL or MSR"):
        list(bench.items(file))


def test_a_missing_image_is_named_with_its_item(case, tmp_path):
    (tmp_path / "images" / "1.png").unlink()
    with pytest.raises(DuoGenError, match=r"images/1.png .*entry 1 \(item SA-1-tale\)\) does not exist"):
        list(case[0].items(tmp_path / "mmie.json"))


def test_the_submission_holds_all_that_the_scorer_reads(case, tmp_path):
    """It stops at an answer without a gt_answer of one text, and looks for all images under one folder."""
    file = exported(case, tmp_path)
    entries = json.loads(file.read_text("utf-8"))
    assert entries[2]["gt_answer"] == [{"text": "It is 90°: B", "image": None}]
    assert entries[0]["gt_answer"] == entries[3]["answer"] == [{"text": None, "image": None}]
    assert all(entry["model"] == "duogen-tiny" for entry in entries)
    names = [one["image"] for entry in entries for one in entry["question"] + entry["answer"] if one["image"]]
    assert len(set(names)) == len(names) == 7 + 8
    assert all((file.parent / name).is_file() for name in names)
    assert entries[1]["answer"][-1] == {"text": "The end.", "image": None}


def test_a_place_of_an_image_in_words_is_none(case, tmp_path):
    """The scorer's model would put an image wherever a text says <image>, and all images would be one too far."""
    bench, items = case
    document = items[1].prompt.begin_turn("assistant", [Text("First <image> of two. "), picture(1)])
    (tmp_path / "sub").mkdir()
    file = bench.export([(items[1], document)], tmp_path / "sub", "m")
    assert json.loads(file.read_text("utf-8"))[0]["answer"][0]["text"] == "First < image > of two. "


def test_an_answer_may_be_a_text_alone(case, tmp_path):
    bench, items = case
    file = tmp_path / "data.json"
    file.write_text(json.dumps([{"id": "PBL-4", "answer": "Draw it."}]))
    [(item, document)] = bench.read(file, items)
    assert (item.id, item.text(document)) == ("PBL-4", "Draw it.")


@pytest.mark.parametrize("change, says", [
    (lambda entries: entries[1].update(id="SA-1-tale"), "entry 2 answers 'SA-1-tale'.*earlier entry"),
    (lambda entries: entries[1].update(id="SA-77"), "answers 'SA-77', which no request has"),
    (lambda entries: entries[0].update(answer=[{"text": 5}]), "text is 5; expected text"),
    (lambda entries: entries[0].pop("answer"), "answer is missing"),
    (lambda entries: entries[0]["answer"][0].update(image="images/gone.png"), "gone.png .*does not exist"),
])  # fmt: skip
def test_submissions_that_are_refused(case, tmp_path, change, says):
    bench, items = case
    file = exported(case, tmp_path)
    entries = json.loads(file.read_text("utf-8"))
    change(entries)
    file.write_text(json.dumps(entries))
    with pytest.raises(DuoGenError, match=says):
        list(bench.read(file, items))


@pytest.mark.parametrize("said, score", [
    ("### Feedback\nFine: 9 of 10.\n### Score\n4", 4), ("### Score: 3.5 of 6", 4), ("### Score 2.5", 2),
    ("### Score\n**0**", 0), ("### Score\n-1", None), ("### Score\n7", None), ("Score 5", None), ("", None),
])  # fmt: skip
def test_the_score_is_the_first_number_after_its_mark(case, tmp_path, said, score):
    bench, items = case
    file = write_results(tmp_path, [items[0].id])
    entries = json.loads(file.read_text("utf-8"))
    entries[0]["gpt_feedback"] = said
    file.write_text(json.dumps(entries))
    assert [one.values["score"] for one in bench.results(file, items)] == ([] if score is None else [score])


def test_a_score_of_hundreds_of_digits_is_none(case, tmp_path):
    bench, items = case
    file = write_results(tmp_path, [items[0].id])
    file.write_text(json.dumps([{"id": items[0].id, "gpt_feedback": "### Score " + "9" * 400}]))
    assert bench.results(file, items) == []


def test_the_figures_are_the_means_of_all_and_of_each_kind(case, tmp_path):
    bench, items = case
    file = write_results(tmp_path, [item.id for item in items])
    scores = bench.results(file, items)
    assert bench.summary(scores) == {"score": 1.8, "MSR: score": 4.0, "PBL: score": 1.5, "SA: score": 1.0}
    assert scores[0].reasons == {"score": "Good."}
    file.write_text("[]")
    with pytest.raises(DuoGenError, match="has no answers"):
        bench.results(file, items)


def test_a_model_s_answer_is_never_taken_for_the_known_one(case, tmp_path):
    """A file that was to be scored is read, too: its answers are some model's."""
    file = tmp_path / "data.json"
    entry = {"id": "MSR-1", "question": [{"text": "2 + 2?"}], "answer": [{"text": "5", "image": None}]}
    for known, told in ((None, None), ([], None), ([{"text": "4"}], "4")):
        file.write_text(json.dumps([{**entry, "gt_answer": known}]))
        [item] = case[0].items(file)
        [ask] = case[0].asks(item, answered(item, 0))
        assert ask.data.get("reference") == told
    file.write_text(json.dumps([entry]))  # as published: it is the known one
    [item] = case[0].items(file)
    assert case[0].asks(item, answered(item, 0))[0].data["reference"] == "5"


def test_the_known_answer_is_told_to_a_judge_of_problems_alone(case):
    bench, items = case
    asks = [bench.asks(item, answered(item, 0))[0] for item in items]
    assert ["reference" in ask.data for ask in asks] == [False, False, True, False, False]
    assert [len(ask.pictures) for ask in asks] == [4, 2, 3, 2, 6]
