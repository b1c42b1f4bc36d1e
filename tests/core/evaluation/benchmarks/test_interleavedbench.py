"""InterleavedBench: which images are the request's, what a submission holds, which aspects count."""

from __future__ import annotations

import json

import pytest

from duogen_core.document import Picture, Text
from duogen_core.errors import DuoGenError
from duogen_core.evaluation.benchmarks import Score, benchmark
from tests.core.evaluation.benchmarks.layout_interleavedbench import ASPECTS, write_requests, write_results
from tests.core.evaluation.benchmarks.test_contract import answered, picture


@pytest.fixture
def case(tmp_path):
    bench = benchmark("interleavedbench")
    return bench, list(bench.items(write_requests(tmp_path)))


def test_the_request_has_the_images_of_its_own_places_alone(case):
    """The further ones are those of the known answer."""
    parts = case[1][0].prompt.last_turn.parts
    assert [type(part) for part in parts] == [Text, Picture, Text, Picture, Text]
    assert [part.text for part in parts if isinstance(part, Text)] == [
        "Step 1: “mix”", ". Step 2:\nstir", " What is next?",
    ]  # fmt: skip


def test_images_are_found_beside_the_file_or_in_its_folder_of_images(case, tmp_path):
    (tmp_path / "zipped_images" / "wiki").rename(tmp_path / "wiki")
    items = list(case[0].items(tmp_path / "interleaved_bench.json"))
    assert items[0].prompt.pictures == case[1][0].prompt.pictures
    (tmp_path / "wiki" / "1_1.png").unlink()
    with pytest.raises(DuoGenError, match=r"wiki/1_1.png .*entry 1 \(item wikihow_next_step_0_1\)\) does not exist"):
        list(case[0].items(tmp_path / "interleaved_bench.json"))


def test_the_submission_is_the_requests_layout_with_the_answer(case, tmp_path):
    bench, items = case
    (tmp_path / "out").mkdir()
    given = [Text("Now <image> bake. "), picture(1), Text(" Done.")]
    file = bench.export([(items[0], items[0].prompt.begin_turn("assistant", given))], tmp_path / "out", "m")
    [entry] = json.loads(file.read_text("utf-8"))
    assert entry["conversations"][1] == {"from": "gpt", "value": "Now < image > bake. <image> Done."}
    assert entry["conversations"][0]["value"].count("<image>") == 2 and entry["goal"] == "a goal"
    assert entry["image"] == [f"images/wikihow_next_step_0_1-{name}.png" for name in ("q1", "q2", "1")]
    assert entry["model"] == "m" and all((file.parent / name).is_file() for name in entry["image"])
    [(_, back)] = bench.read(file, items)
    assert [part.text for part in items[0].parts(back) if isinstance(part, Text)] == ["Now < image > bake.", " Done."]
    assert items[0].pictures(back) == [picture(1)]


def test_images_that_no_text_places_come_at_the_end(case, tmp_path):
    bench, items = case
    (tmp_path / "out").mkdir()
    given = [Text("One "), picture(1), Text(" and two."), picture(2)]
    file = bench.export([(items[0], items[0].prompt.begin_turn("assistant", given))], tmp_path / "out", "m")
    [entry] = json.loads(file.read_text("utf-8"))
    entry["conversations"][1]["value"] = "One and two."
    file.write_text(json.dumps([entry]))
    [(_, back)] = bench.read(file, items)
    assert [type(part) for part in items[0].parts(back)] == [Text, Picture, Picture]


@pytest.mark.parametrize("change, says", [
    (lambda entry: entry["image"].pop(), "more <image> than the 3 names"),
    (lambda entry: entry["conversations"].pop(), "conversations has 1 entries"),
    (lambda entry: entry.update(id="other"), "answers 'other', which no request has"),
    (lambda entry: entry["conversations"][1].update(value=None), "value is None; expected text"),
])  # fmt: skip
def test_submissions_that_are_refused(case, tmp_path, change, says):
    bench, items = case
    (tmp_path / "out").mkdir()
    file = bench.export([(items[0], answered(items[0], 0))], tmp_path / "out", "m")
    entries = json.loads(file.read_text("utf-8"))
    change(entries[0])
    file.write_text(json.dumps(entries))
    with pytest.raises(DuoGenError, match=says):
        list(bench.read(file, items))


def test_text_is_not_scored_where_an_image_is_edited(case, tmp_path):
    """The scorer writes 0 there; counted, it would pull the means down."""
    bench, items = case
    schema = bench.asks(items[2], answered(items[2], 2))[0].schema
    assert set(schema["properties"]) == set(ASPECTS) - {"text quality", "text-image coherence"}
    scores = bench.results(write_results(tmp_path, [item.id for item in items]), items)
    assert scores[2].values["text quality"] is None and scores[2].values["helpfulness"] == 2
    assert bench.summary(scores)["text quality"] == (0 + 1 + 3) / 3


@pytest.mark.parametrize("means, overall", [
    ((1.22, 2.45, 1.62, 2.03, 1.77), 1.82), ((0.75, 3.21, 2.25, 1.53, 1.48), 1.84),
    ((4.37, 4.36, 3.51, 4.55, 3.88), 4.13),
])  # fmt: skip
def test_the_overall_figure_is_that_of_the_published_table(case, means, overall):
    """MiniGPT-5, GILL, GPT-4o with DALL-E 3 (vt-nlp.github.io/InterleavedEval)."""
    summary = case[0].summary([Score("1", "report_generation", dict(zip(ASPECTS, means)))])
    assert summary["overall"] == pytest.approx(overall, abs=0.005)


@pytest.mark.parametrize("change, says", [
    (lambda entry: entry.update(helpfulness=6), "helpfulness is 6; expected a number from 0 to 5"),
    (lambda entry: entry.update(helpfulness={"score": -1}), "helpfulness: score is -1"),
    (lambda entry: entry.pop("helpfulness"), "helpfulness is missing"),
])  # fmt: skip
def test_results_that_are_refused(case, tmp_path, change, says):
    bench, items = case
    file = write_results(tmp_path, [item.id for item in items])
    entries = json.loads(file.read_text("utf-8"))
    change(entries[0])
    file.write_text(json.dumps(entries))
    with pytest.raises(DuoGenError, match=says):
        bench.results(file, items)
