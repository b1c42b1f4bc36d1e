"""OpenING: where images stand, what the scorer needs of the files, and results that lack something."""

from __future__ import annotations

import json

import pytest

from duogen_core.document import Picture, Text
from duogen_core.errors import DuoGenError
from duogen_core.evaluation.benchmarks import benchmark
from tests.core.evaluation.benchmarks.layout_opening import METRICS, write_requests, write_results
from tests.core.evaluation.benchmarks.test_contract import answered, picture


@pytest.fixture
def case(tmp_path):
    bench = benchmark("opening")
    return bench, list(bench.items(write_requests(tmp_path)))


def exported(case, folder, model="duogen-tiny"):
    bench, items = case
    (folder / "out").mkdir()
    return bench.export([(item, answered(item, n)) for n, item in enumerate(items)], folder / "out", model)


def test_an_image_of_the_request_stands_where_its_text_says(case):
    parts = case[1][1].prompt.last_turn.parts
    assert [type(part) for part in parts] == [Text, Picture, Text, Text, Text, Picture]
    assert [part.text for part in parts if isinstance(part, Text)] == [
        "What is “this”", "and\nwhat is it for? 彗星", "Add a drawing,", "then one like",
    ]  # fmt: skip


def test_a_missing_image_of_the_request_is_named_with_its_item(case, tmp_path):
    (tmp_path / "images/Storytelling Tasks/thing-i-1.jpg").unlink()
    with pytest.raises(DuoGenError, match=r"thing-i-1.jpg .*line 2 \(item 0102002\)\) does not exist"):
        list(case[0].items(tmp_path / "test_data.jsonl"))


def test_an_id_that_the_scorer_would_cut_is_refused(case, tmp_path):
    file = tmp_path / "test_data.jsonl"
    file.write_text(file.read_text("utf-8").replace("0101001", "0101.001"), "utf-8")
    with pytest.raises(DuoGenError, match="total_uid is '0101.001'"):
        list(case[0].items(file))


def test_every_element_has_a_text_and_an_image_or_null(case, tmp_path):
    """The scorer stops at an element without one of them, or with a text that is no string."""
    bench, items = case
    document = items[0].prompt.begin_turn("assistant", [picture(1), picture(2), Text("a"), Text(" b"), picture(3),
                                                        Text("end")])  # fmt: skip
    place = bench.export([(items[0], document)], tmp_path, "m")
    written = json.loads((place / "m_output" / "0101001.json").read_text("utf-8"))
    assert written["total_uid"] == "0101001" and written["conversations"][0] == items[0].record["conversations"][0]
    assert written["conversations"][1]["output"] == [
        {"text": "", "image": "0101001-o-0.jpg"}, {"text": "", "image": "0101001-o-1.jpg"},
        {"text": "a b", "image": "0101001-o-2.jpg"}, {"text": "end", "image": None},
    ]  # fmt: skip


def test_the_folder_is_the_model_s_name_and_nothing_more(case, tmp_path):
    """The scorer cuts "_output" wherever it stands, so it must stand at the end alone."""
    exported(case, tmp_path, "my_output_model/1")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["my_model_1_output"]


def test_an_answer_that_names_an_image_elsewhere_is_read_from_its_own_folder(case, tmp_path):
    bench, items = case
    folder = exported(case, tmp_path) / "duogen-tiny_output"
    file = folder / "0101001.json"
    text = file.read_text("utf-8")
    file.write_text(text.replace("0101001-o-0.jpg", "./somewhere/0101001-o-0.jpg"), "utf-8")
    document = {item.id: document for item, document in bench.read(folder, items)}["0101001"]
    assert len(items[0].pictures(document)) == 2
    file.write_text(text.replace("0101001-o-0.jpg", "../../secret.jpg"), "utf-8")
    (tmp_path / "secret.jpg").write_bytes(picture(1).to_png())
    with pytest.raises(DuoGenError, match="secret.jpg .*does not exist"):
        list(bench.read(folder, items))


@pytest.mark.parametrize("change, says", [
    (lambda folder: (folder / "0101001.json").rename(folder / "777.json"), "answers '777', which no request has"),
    (lambda folder: (folder / "0101001.json").write_text("[]"), "0101001.json is no JSON object"),
    (lambda folder: (folder / "0101001.json").write_text('{"conversations": []}'), "0 entries; expected the input"),
    (lambda folder: folder.rename(folder.with_name("x")), "has 0 folders MODEL_output"),
    (lambda folder: folder.with_name("b_output").mkdir(), "has 2 folders MODEL_output"),
])  # fmt: skip
def test_submissions_that_are_refused(case, tmp_path, change, says):
    bench, items = case
    place = exported(case, tmp_path)
    change(place / "duogen-tiny_output")
    with pytest.raises(DuoGenError, match=says):
        list(bench.read(place, items))


def test_an_answer_that_could_not_be_scored_has_no_score(case, tmp_path):
    """false: the judge did not answer; a score of null: the scorer's summary leaves out all of that answer."""
    bench, items = case
    file = write_results(tmp_path, [item.id for item in items])
    entries = json.loads(file.read_text("utf-8"))
    entries[0]["score"], entries[1]["score"]["Completeness"]["Score"] = False, None
    entries[2]["data_id"] = entries[2].pop("instance_id")  # as its pairwise mode calls it
    entries[2]["score"] = {"scores": entries[2]["score"]}
    file.write_text(json.dumps(entries))
    scores = bench.results(file, items)
    assert [score.id for score in scores] == [item.id for item in items[2:]]
    summary = bench.summary(scores)
    assert summary["Correctness"] == 2.5  # 2 and 3
    assert summary["Overall"] == pytest.approx(sum(summary[name] for name in METRICS) / 7)


def test_an_answer_that_was_scored_twice_counts_twice(case, tmp_path):
    bench, items = case
    file = write_results(tmp_path, [items[0].id, items[1].id, items[0].id])
    scores = bench.results(file, items)
    assert [(score.id, score.values["Correctness"]) for score in scores] == [(items[0].id, 1.0), (items[1].id, 1.0)]
    assert [score.values["Content Richness"] for score in scores] == [7.0, 7.0]
    assert bench.summary(scores)["Correctness"] == 1.0  # 0, 1 and 2
    file = write_results(tmp_path, [items[0].id, items[0].id, items[1].id])
    assert bench.summary(bench.results(file, items))["Correctness"] == 1.0


@pytest.mark.parametrize("change, says", [
    (lambda entries: entries[1]["model"].update(name="other"), "scores of duogen-tiny and other; keep"),
    (lambda entries: entries[1].update(instance_id="777"), "entry 2 scores '777', which no request has"),
    (lambda entries: entries[0]["score"]["Completeness"].update(Score=11), "Completeness: Score is 11; expected"),
    (lambda entries: entries[0]["score"].pop("Completeness"), "entry 1: Completeness is missing"),
    (lambda entries: entries[0].pop("model"), "entry 1: model is missing"),
    (lambda entries: entries.clear(), "has no scores"),
])  # fmt: skip
def test_results_that_are_refused(case, tmp_path, change, says):
    bench, items = case
    file = write_results(tmp_path, [item.id for item in items])
    entries = json.loads(file.read_text("utf-8"))
    change(entries)
    file.write_text(json.dumps(entries))
    with pytest.raises(DuoGenError, match=says):
        bench.results(file, items)
