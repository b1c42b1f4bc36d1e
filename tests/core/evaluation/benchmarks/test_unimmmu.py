"""Uni-MMMU: the traps of its scorer, and puzzles that are checked without a judge."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from duogen_core.document import Picture, Text
from duogen_core.errors import DuoGenError
from duogen_core.evaluation.benchmarks import unimmmu_puzzles as puzzles
from duogen_core.evaluation.benchmarks.unimmmu import UniMMMU
from tests.core.evaluation.benchmarks.test_contract import layout, picture

LAYOUT = layout("unimmmu")
BENCH = UniMMMU()


@pytest.fixture
def data(tmp_path):
    return LAYOUT.write_requests(tmp_path / "home")


def item(data, id):
    return next(one for one in BENCH.items(data) if one.id.startswith(id))


def said(item, moves, images=()):
    parts = [*(Picture(np.array(image)) for image in images), Text(f"<ANSWER_JSON>{json.dumps(moves)}</ANSWER_JSON>")]
    return item.prompt.begin_turn("assistant", parts)


def edit(file, change):
    value = json.loads(file.read_text("utf-8"))
    change(value)
    file.write_text(json.dumps(value), "utf-8")


def test_one_file_is_one_task(data):
    assert [one.id for one in BENCH.items(data / "math_data/filtered.json")] == ["math/geo_1__1", "math/geo_1__1_b"]
    assert {one.category for one in BENCH.items(data / "maze")} == {"maze"}
    assert len(list(BENCH.items(data.parent))) == len(list(BENCH.items(data))) == 12


def test_cases_have_the_numbers_of_the_scorer(data):
    """It counts samples that nothing can be asked of."""
    assert [one.id for one in BENCH.items(data / "science/dim_all.json")] == ["science/case_02", "science/case_03"]


def test_the_example_is_no_request(data):
    items = list(BENCH.items(data / "maze"))
    assert [one.id for one in items] == ["maze/case_00001", "maze/case_00002"]
    assert len(items[0].prompt.pictures) == 4 and '["up", "left"]' in items[0].prompt.text
    shutil.rmtree(data / "maze/maze_6x6_00015_steps")
    assert len(next(iter(BENCH.items(data / "maze"))).prompt.pictures) == 1


def test_any_way_to_the_goal_solves_a_maze(data):
    """The official figures compare with one solution; a detour that is no fault gets there, too."""
    one = item(data, "maze/case_00001")
    detour = ["right", "left", *one.record["moves"]]
    values = BENCH.score(one, said(one, detour), {}).values
    assert values["maze solved"] == 1 and values["maze text exact"] == 0 and values["maze image"] == 0
    for moves in (["down", *one.record["moves"]], one.record["moves"][:-1], [], ["fly"], [{"to": 1}]):
        assert BENCH.score(one, said(one, moves), {}).values["maze solved"] == 0


def test_images_are_compared_step_by_step(data):
    one = item(data, "maze/case_00001")
    images = LAYOUT.maze_images("00001")[1:]
    values = BENCH.score(one, said(one, one.record["moves"], images[:3]), {}).values
    assert values["maze image"] == pytest.approx(3 / 12) and values["maze image exact"] == 0
    assert values["maze readable"] == 1
    images[4] = LAYOUT.draw_maze(LAYOUT.MAZES["00002"][0], (5, 5))  # another maze
    values = BENCH.score(one, said(one, one.record["moves"], images), {}).values
    assert values["maze image"] == pytest.approx(11 / 12) and values["maze readable"] == pytest.approx(11 / 12)


def test_a_move_is_called_as_in_the_solutions(data):
    """By the tile or by the empty place: prompt and check follow the data."""
    one = item(data, "sliding/case_demo_3x3_00012")
    assert "named by where this tile goes" in one.prompt.text
    assert BENCH.score(one, said(one, ["left", "left", "up"]), {}).values["sliding solved"] == 1
    assert BENCH.score(one, said(one, ["right", "right", "down"]), {}).values["sliding solved"] == 0
    there_and_back = ["left", "right", "left", "left", "up"]
    assert BENCH.score(one, said(one, there_and_back), {}).values["sliding solved"] == 1
    edit(
        data / "sliding/demo_3x3_steps_words_00012.json",
        lambda value: value.update(steps_words=["right", "right", "down"]),
    )
    one = item(data, "sliding/case_demo_3x3_00012")
    assert "named by where the empty place goes" in one.prompt.text
    assert BENCH.score(one, said(one, ["right", "right", "down"]), {}).values["sliding solved"] == 1
    edit(data / "sliding/demo_3x3_steps_words_00012.json", lambda value: value.update(steps_words=["down"]))
    one = item(data, "sliding/case_demo_3x3_00012")
    assert BENCH.score(one, said(one, ["down"]), {}).values["sliding solved"] is None


def test_moves_are_taken_from_the_last_list():
    assert puzzles.moves_in('<ANSWER_JSON>["up"]</ANSWER_JSON> no: <answer_json> [" Down ", 3] </answer_json>') == [
        "down",
        "3",
    ]
    for text in ("", "up, down", "<ANSWER_JSON>[up]</ANSWER_JSON>", "<ANSWER_JSON>" + "[" * 9000 + "]</ANSWER_JSON>"):
        assert puzzles.moves_in(text) == []


def test_a_text_is_one_candidate_and_nothing_is_a_wrong_answer(data, tmp_path):
    """The scorer cuts candidates at a line of five dashes, and takes none at all from an empty folder."""
    one, other = list(BENCH.items(data / "maze"))
    dashes = one.prompt.begin_turn("assistant", [Text("a\n\n\n\n-----\n\n\n\n\n\n-----\n\n\n\nb")])
    BENCH.export([(one, dashes), (other, other.prompt)], tmp_path, "m")
    base = tmp_path / "outputs/m/maze"
    text = (base / "case_00001/model_text.txt").read_text("utf-8")
    assert "\n\n\n-----\n\n\n" not in text and text.split() == ["a", "-----", "-----", "b"]
    assert (base / "case_00002/model_text.txt").read_text("utf-8") == ""
    assert (base / "case_00002/cand_01").is_dir()


def test_the_scorer_finds_the_puzzles(data, tmp_path):
    """By a name from the folder that holds data/, so nothing of this machine is in a submission."""
    items = [item(data, "maze"), item(data, "sliding"), item(data, "code")]
    base = BENCH.export([(one, said(one, [])) for one in items], tmp_path, "m")
    assert str(tmp_path) not in "".join(file.read_text("utf-8") for file in base.rglob("*.json"))
    for one, key in zip(items, ("step0", "init_png", "png")):
        name = json.loads((base / one.id / "result.json").read_text("utf-8"))[key]
        assert (data / "svg" / name if key == "png" else data.parent / name).is_file()


@pytest.mark.parametrize("name, change, message", [
    ("math_data/filtered.json", lambda v: v["geo 1"]["1"].update(original_image="../../x.png"), "not allowed"),
    ("math_data/filtered.json", lambda v: v["geo 1"]["1"].update(auxiliary_image="no.png"), "geo 1, 1.*does not exist"),
    ("math_data/filtered.json", lambda v: v["geo 1"].update({"1 b": v["geo 1"]["1/b"]}), "two requests with the id"),
    ("jigsaw_dataset_2x2ref/metadata.json", lambda v: v["items"][0].update(id="a/b"), "cannot be the name of a folder"),
    ("jigsaw_dataset_2x2ref/metadata.json", lambda v: v["items"][0].update(id=".."), "cannot be the name of a folder"),
    ("jigsaw_dataset_2x2ref/metadata.json", lambda v: v["items"][1].update(label=2), "a label 0 or 1"),
    ("svg/metadata.json", lambda v: v["samples"][0].update(svg="../maze/x.json"), "not allowed"),
    ("svg/metadata.json", lambda v: v["samples"][0].update(svg="a\0b"), "not allowed"),
    ("science/dim_all.json", lambda v: v[0].update(samples=None), "block 1: samples is None"),
    ("science/dim_all.json", lambda v: v[0]["samples"][-1].update(output_prompt=[1]), "output_prompt is"),
    ("math_data/filtered.json", lambda v: v["geo 1"]["1"].update(solution_en=5), "geo 1, 1: solution_en is 5"),
    ("maze/maze_6x6_steps_00001.json", lambda v: v.update(steps_long=["north"]), "expected up, down"),
    ("sliding/summary_steps_le_8.json", lambda v: v["items"][0].update(steps_dir="data/sliding/x"), "NAME_3x3_NNNNN"),
])  # fmt: skip
def test_bad_requests_are_named(data, name, change, message):
    from duogen_core.evaluation.benchmarks import by_id

    edit(data / name, change)
    place = data / "maze" if name.startswith("maze") else data / name
    with pytest.raises(DuoGenError, match=message):
        by_id(place, BENCH.items(place))


def test_a_submission_edited_by_hand(data, tmp_path):
    items = list(BENCH.items(data / "maze"))
    base = BENCH.export([(one, said(one, [], LAYOUT.maze_images("00001"))) for one in items], tmp_path, "m")
    assert len(list(BENCH.read(tmp_path, items))) == len(list(BENCH.read(base, items))) == 2
    (data.parent / "secret.png").write_bytes(picture(1).to_png())
    first = base / "maze/case_00001/cand_01/maze_step_0000_step_0001.png"
    first.unlink()
    first.symlink_to(data.parent / "secret.png")
    with pytest.raises(DuoGenError, match="leaves"):
        list(BENCH.read(tmp_path, items))
    shutil.rmtree(base / "maze/case_00001")
    assert [one.id for one, _ in BENCH.read(tmp_path, items)] == ["maze/case_00002"]
    (base / "maze/case_00099").mkdir()
    with pytest.raises(DuoGenError, match="case_00099 answers a request that is not there"):
        list(BENCH.read(tmp_path, items))
    with pytest.raises(DuoGenError, match="none of the folders"):
        list(BENCH.read(data / "science", items))


def test_results_out_of_scale(data, tmp_path):
    items = list(BENCH.items(data))
    place = LAYOUT.write_results(tmp_path, [one.id for one in items])
    table = place / "maze/manifest_eval.csv"
    good = table.read_text("utf-8")
    assert BENCH.summary(BENCH.results(place, items))["maze image exact"] == 0.5  # two candidates of each
    for bad, says in (
        (good.replace("0.25", "1.25"), ", line 2: img_frame_acc"),
        (good.replace("0.25", ""), ", line 2: img_frame_acc"),
        (good.replace("img_frame_acc", "x"), " has no column img_frame_acc"), (good[:-9], "too few columns"),
        (good + "x" * 200_000, "cannot be read as CSV: field larger"),
    ):  # fmt: skip
        table.write_text(bad, "utf-8")
        with pytest.raises(DuoGenError, match=f"manifest_eval.csv.*{says}"):
            BENCH.results(place, items)
    table.write_text(good, "utf-8")
    edit(place / "code/eval_details.json", lambda v: v[0]["image_evals"][0].update(position_accuracy=6))
    with pytest.raises(DuoGenError, match="position_accuracy is 6"):
        BENCH.results(place, items)
    edit(place / "code/eval_details.json", lambda v: v[0]["image_evals"][0].update(position_accuracy=10**400))
    with pytest.raises(DuoGenError, match="position_accuracy is 1000"):
        BENCH.results(place, items)
    for name, value in (("text_eval", 5), ("image_evals", "none"), ("image_evals", [1])):
        edit(place / "code/eval_details.json", lambda v, change={name: value}: v[0].update(change))
        with pytest.raises(DuoGenError, match=f"{name} (is|has)"):
            BENCH.results(place, items)
        edit(place / "code/eval_details.json", lambda v, change={name: None}: v[0].update(change))


def test_results_of_other_requests(data, tmp_path):
    """Named, not left out; but the science scorer counts samples that nothing can be asked of, and the folder has the
    other tasks, too."""
    items = list(BENCH.items(data))
    place = LAYOUT.write_results(tmp_path, [one.id for one in items])
    edit(place / "science/eval_details.json", lambda v: v.append({**v[0], "case_id": "case_01"}))
    assert {score.id for score in BENCH.results(place, items)} == {one.id for one in items}
    mazes = [one for one in items if one.category == "maze"]
    assert {score.category for score in BENCH.results(place, mazes)} == {"maze"}
    for change in (lambda v: v.append(v[0]), lambda v: v[0].update(id="geo_9__1")):
        good = (place / "math/eval_details.json").read_text("utf-8")
        edit(place / "math/eval_details.json", change)
        with pytest.raises(DuoGenError, match="scores 'math/.*which no request has, or an earlier entry"):
            BENCH.results(place, items)
        (place / "math/eval_details.json").write_text(good, "utf-8")


def test_a_puzzle_without_its_images(data):
    """The scorer tells the first one by 0000 in its name."""
    [folder, *_] = sorted((data / "sliding").glob("demo_3x3_00012_steps"))
    for file in sorted(folder.glob("*.png"))[1:]:
        file.rename(file.with_name(f"0000_{file.name}"))
    with pytest.raises(DuoGenError, match="has no images of the steps"):
        list(BENCH.items(data))
    shutil.rmtree(data / "maze")
    (data / "maze").write_text("no folder")
    with pytest.raises(DuoGenError, match="has no maze_6x6_NNNNN_steps"):
        list(BENCH.items(data / "maze"))


def test_a_judge_is_not_asked_for_what_is_not_there(data):
    """No image is wrong, not unknown; a description that is not there cannot fit."""
    for id, wrong in (("math", "math image"), ("science", "science image"), ("code", "code shapes")):
        one = item(data, id)
        asks = BENCH.asks(one, one.prompt)
        assert [ask.key for ask in asks] == ["text"]
        reply = dict.fromkeys(asks[0].schema["properties"], 1) | {"reason": "so"}
        values = BENCH.score(one, one.prompt, {"text": reply}).values
        assert values[wrong] == 0
        assert values.get("code text", 0) == 0
        assert set(BENCH.score(one, one.prompt, {}).values.values()) <= {None}


def test_jigsaws(data):
    """The choice, strictly; and how alike both drawings are to what had to be drawn, in its order."""
    one = item(data, "jigsaw/ex_00001")
    folder = data / "jigsaw_dataset_2x2ref/ex_00001"
    wholes = [Picture.from_file(folder / f"{name}.png") for name in ("gt_bad", "gt_ok")]  # its label is 1

    def values(*parts):
        found = BENCH.score(one, one.prompt.begin_turn("assistant", parts), {}).values
        return found["jigsaw text"], found["jigsaw likeness"]

    def chosen(said):
        return Text(f"<FINAL_ANSWER_JSON>{said}</FINAL_ANSWER_JSON>")

    assert values(*wholes, chosen('{"choice": 1, "rationale": "x"}')) == (1, pytest.approx(1))
    for said in ('{"choice": 0}', '{"choice": "1"}', "{choice: 1}", "1", '{"choice": [1]}'):
        assert values(*wholes[::-1], chosen(said))[0] == 0
    assert values(*wholes[::-1])[1] < 0.2
    assert values(wholes[0])[1] == values(*wholes, wholes[0])[1] == 0
