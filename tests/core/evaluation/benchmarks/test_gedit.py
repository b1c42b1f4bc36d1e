"""GEdit-Bench: images in Parquet, both languages, the official means, CSV files that were edited or written twice."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from duogen_core.errors import DuoGenError
from duogen_core.evaluation.benchmarks import benchmark
from tests.core.evaluation.benchmarks import layout_gedit as layout
from tests.core.evaluation.benchmarks.test_contract import answered

BENCH = benchmark("gedit")


@pytest.fixture
def items(tmp_path):
    return list(BENCH.items(layout.write_requests(tmp_path)))


@pytest.fixture
def results(items, tmp_path):
    return layout.write_results(tmp_path, [item.id for item in items])


def test_requests_of_both_languages_share_an_image(items):
    assert [item.id for item in items][:2] == ["en-k00", "en-k01"] and items[-1].id == "cn-k04"
    assert items[0].prompt.pictures[0] is items[13].prompt.pictures[0]
    assert not any(isinstance(value, (bytes, dict)) for item in items for value in item.record.values())


def test_every_request_has_both_images(items, tmp_path):
    """The scorer leaves out a request of which one is missing, and resizes the edited image to the other one's size."""
    (tmp_path / "out").mkdir()
    root = BENCH.export([(item, answered(item, k)) for k, item in enumerate(items)], tmp_path / "out", "my model")
    assert root == tmp_path / "out/my_model"
    for item in items:
        record = item.record
        place = root / "fullset" / record["task_type"] / record["instruction_language"]
        before = item.prompt.pictures[0]
        from PIL import Image

        with Image.open(place / f"{record['key']}_SRCIMG.png") as image:
            assert np.array_equal(np.array(image), before.pixels)
        assert (place / f"{record['key']}.png").is_file()
    assert len(list(root.rglob("*.png"))) == 2 * len(items)
    for place in (root, tmp_path / "out"):
        back = [len(item.pictures(document)) for item, document in BENCH.read(place, items)]
        assert back == [int(k % 4 != 3) for k in range(len(items))]
    (tmp_path / "out/other/fullset").mkdir(parents=True)
    with pytest.raises(DuoGenError, match="has 2 folders of models"):
        list(BENCH.read(tmp_path / "out", items))


def test_requests_as_json(tmp_path):
    """With names of images, which lie beside."""
    (tmp_path / "a.png").write_bytes(layout.picture(3).to_png())
    file = tmp_path / "requests.jsonl"
    row = {**layout.rows()[0], "input_image": "a.png", "input_image_raw": None}
    file.write_text(json.dumps(row))
    assert next(BENCH.items(file)).prompt.pictures[0] == layout.picture(3)
    for change, message in [
        ({"input_image": "b.png"}, "b.png"), ({"input_image": None}, "input_image has no bytes"),
        ({"key": "a/b"}, "key is 'a/b'"), ({"key": "../b"}, "not allowed"), ({"key": "1_SRCIMG"}, "key is"),
        ({"task_type": "crop"}, "task_type is 'crop'"), ({"instruction_language": "zh"}, "'zh'; expected en or cn"),
        ({"Intersection_exist": "yes"}, "Intersection_exist is 'yes'"), ({"instruction": None}, "instruction is None"),
    ]:  # fmt: skip
        file.write_text(json.dumps({**row, **change}))
        with pytest.raises(DuoGenError, match=message):
            list(BENCH.items(file))
    with pytest.raises(DuoGenError, match="a folder without Parquet files"):
        list(BENCH.items(tmp_path))


def test_official_sums(items, results):
    """Kinds weigh alike: text_change has two English requests, tone_transfer has one."""
    scores = BENCH.results(results, items)
    assert scores == BENCH.results(results / "m_combined_gpt_score.csv", items)
    summary = BENCH.summary(scores)
    by_id = {score.id: score.values["overall"] for score in scores}
    assert by_id["en-k03"] == math.sqrt(3 * 4)
    kinds = [by_id[f"en-k{n:02d}"] for n in range(11)]
    assert summary["overall (en, intersection)"] == pytest.approx(sum(kinds) / 11)
    kinds[9] = (kinds[9] + by_id["en-second"]) / 2
    kinds[4] = (kinds[4] + by_id["en-third.x"]) / 2
    assert summary["overall (en)"] == pytest.approx(sum(kinds) / 11)
    assert summary["text_change: overall (en)"] == pytest.approx(kinds[9])
    assert summary["quality (cn)"] == 4 and "motion_change: overall (cn, intersection)" not in summary


def test_files_of_single_kinds(items, results):
    (results / "m_combined_gpt_score.csv").unlink()
    scores = BENCH.results(results, items)
    assert sorted(score.id for score in scores) == sorted(item.id for item in items)
    assert len(BENCH.results(results / "m_text_change_gpt_score.csv", items)) == 2
    file = results / "m_text_change_gpt_score.csv"
    lines = file.read_text("utf-8").splitlines(keepends=True)
    file.write_text("".join(lines + lines[1:]), "utf-8")
    with pytest.raises(DuoGenError, match="a second time; delete the CSV files"):
        BENCH.results(results, items)


@pytest.mark.parametrize(
    "old, new, message",
    [
        (",0,4,", ",11,4,", "sementics_score is '11'"),
        (",0,4,", ",0,nan,", "quality_score is 'nan'"),
        (",0,4,", ",,4,", "sementics_score is ''"),
        ("/en/k00.png", "/en/k99.png", "which is no request's"),
        ("fullset/ps_human/en/k04.png", "fullset/ps_dog/en/k04.png", "which is no request's"),
        ("sementics_score", "semantics_score", "no column sementics_score"),
        (",en\r\n", "\r\n", "too few columns"),
    ],
)
def test_results_that_are_none(old, new, message, items, results):
    file = results / "m_combined_gpt_score.csv"
    data = file.read_bytes().decode()
    assert old in data
    file.write_bytes(data.replace(old, new, 1).encode())
    with pytest.raises(DuoGenError, match=f"m_combined_gpt_score.csv.*{message}"):
        BENCH.results(results, items)
    with pytest.raises(DuoGenError, match="no \\*_gpt_score.csv"):
        BENCH.results(results.parent, items)
    file.write_text(data.splitlines()[0] + "\n")
    with pytest.raises(DuoGenError, match="has no scores"):
        BENCH.results(results, items)


def test_a_judge_gives_the_lower_of_two(items):
    item = items[0]
    document = answered(item, 0)
    edit, alone = BENCH.asks(item, document)
    assert [name for name, _ in edit.pictures] == ["Before:", "After:"] and len(alone.pictures) == 1
    assert alone.pictures[0][1] == edit.pictures[1][1] == item.pictures(document)[0]
    said = {
        "semantics": {"reason": "r", "success": 9, "restraint": 4},
        "quality": {"reason": "r", "naturalness": 10, "artifacts": 9},
    }
    assert BENCH.score(item, document, said).values == {"semantics": 4, "quality": 9, "overall": 6}
    assert set(BENCH.score(item, item.prompt, said).values.values()) == {0}
