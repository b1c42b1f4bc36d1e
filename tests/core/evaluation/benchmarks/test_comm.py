"""CoMM: four tasks of a guide, answers of any form as numbered steps, texts that look like steps, safe pickles."""

from __future__ import annotations

import json
import re

import pytest

from duogen_core.document import Picture, Text
from duogen_core.errors import DuoGenError
from duogen_core.evaluation.benchmarks import benchmark
from tests.core.evaluation.benchmarks.layout_comm import TASKS_OF, guides, write_requests, write_results
from tests.core.evaluation.benchmarks.test_contract import answered, picture


@pytest.fixture
def case(tmp_path):
    bench = benchmark("comm")
    return bench, {item.id: item for item in bench.items(write_requests(tmp_path))}


def told(case, folder, id, *parts):
    """The model_output that this answer gets, and the names of its images."""
    bench, items = case
    (folder / "out").mkdir(exist_ok=True)
    bench.export([(items[id], items[id].prompt.begin_turn("assistant", parts))], folder / "out", "duogen-tiny")
    record = json.loads((folder / "out" / id / "results.json").read_text("utf-8"))
    return record["model_output"], record["prediction_image_list"]


def test_four_tasks_of_every_guide_with_images(case):
    assert list(case[1]) == [f"{id}_{task}" for id, tasks in TASKS_OF.items() for task in tasks]


def test_what_each_task_asks(case):
    items = case[1]

    def asked(id):
        parts = items[id].prompt.last_turn.parts
        return "".join("#" if isinstance(part, Picture) else part.text for part in parts)

    title = "“Boats” ( 1 ) and Image, 彗星"
    assert f"about {title}, under the numbers of its steps: (1) #(2) #(3) #" in asked("wiki_1_task1")
    assert asked("wiki_1_task2").count("#") == 0 and "(1) Fold ( 3 ) it.\n\nWell. (2) Turn it. (3) Let it" in asked(
        "wiki_1_task2"
    )
    assert "(1) It sleeps. ##(2) It wakes ( 2 ) up. " in asked("story-3_task3") and "runs" not in asked("story-3_task3")
    assert asked("wiki_1_task4").startswith(f"Make a guide about {title} that tells")
    assert "about" not in asked("wiki_2_task4")
    assert [items[f"story-3_task{n}"].images for n in (1, 2, 3, 4)] == [0, 4, None, None]


def test_files_of_a_sample(case, tmp_path):
    bench, items = case
    item = items["story-3_task3"]
    (tmp_path / "out").mkdir()
    bench.export([(item, answered(item, 0))], tmp_path / "out", "duogen-tiny")
    place = tmp_path / "out" / "story-3_task3"
    assert sorted(file.relative_to(place).as_posix() for file in place.rglob("*.*")) == [
        "origin/input_1.jpg", "origin/input_2.jpg", "origin/output_gt_3.png", "origin/output_gt_4.png",
        "predict_3.jpg", "predict_4.jpg", "results.json",
    ]  # fmt: skip
    record = json.loads((place / "results.json").read_text("utf-8"))
    assert record["model_input"].count("<IMAGE>") == len(record["input_image_list"]) == 2
    assert record["output_gt_image_list"] == ["output_gt_3.png", "output_gt_4.png"]
    assert record["model_output"] == (
        "(3) “fold” ( 3 ) the paper\nof turn 0. <IMAGE> (4) “fold” ( 3 ) the paper\nof turn 0. <IMAGE> The end."
    )
    assert record["prediction_image_list"] == ["predict_3.jpg", "predict_4.jpg"]


A, B = picture(1), picture(2)
CUT = [
    # The model numbers its steps; a number in brackets inside of a step is not one.
    (["First:\n(1) Fold (3) it.", A, " (2) Turn (7).", B], "(1) First: Fold ( 3 ) it. <IMAGE> (2) Turn ( 7 ). <IMAGE>"),
    (["1. Fold 2. sheets\n2) Turn.\n", A], "(1) Fold 2. sheets (2) Turn. <IMAGE>"),
    (["**Step 1:** Fold.", A, "Step 2: Turn (3) it.", B, "Step 4 is none."],
     "(1) Fold. <IMAGE> (2) Turn ( 3 ) it. <IMAGE> Step 4 is none."),
    # It does not: a text after an image begins a step.
    (["Fold.", A, "\n", B, "Turn."], "(1) Fold. <IMAGE> <IMAGE> (2) Turn."),
    ([A, "Fold."], "(1) <IMAGE> (2) Fold."),
    # Neither images nor numbers: paragraphs, or lines; then a grey image, for the scorer's sake.
    (["Fold\nit.\n\nTurn it."], "(1) Fold\nit. (2) Turn it. <IMAGE>"),
    (["Fold.\nTurn."], "(1) Fold. (2) Turn. <IMAGE>"),
    ([], "(1) <IMAGE>"),
    # What the scorer would take for something else.
    (["An <IMAGE> of [imgblock] and IMG0.", A], "(1) An Image of Imgblock and Img0. <IMAGE>"),
]  # fmt: skip


@pytest.mark.parametrize("parts, expected", CUT)
def test_any_answer_becomes_numbered_steps(case, tmp_path, parts, expected):
    parts = [Text(part) if isinstance(part, str) else part for part in parts]
    output, names = told(case, tmp_path, "wiki_1_task4", *parts)
    assert output == expected
    assert output.count("<IMAGE>") == len(names)
    steps = re.findall(r"\(\d+\)\s", output)  # what the scorer cuts at
    assert steps == [f"({n}) " for n in range(1, 1 + len(steps))]


def test_a_continuation_goes_on_with_the_numbers(case, tmp_path):
    """Whether the model does or begins with 1 again."""
    for numbers in ((3, 4), (1, 2)):
        parts = [Text(f"({n}) Step of {n}. ") for n in numbers]
        output, _ = (
            told(case, tmp_path / str(numbers[0]), "story-3_task3", *parts)
            if (tmp_path / str(numbers[0])).mkdir() is None
            else (None, None)
        )
        assert output == f"(3) Step of {numbers[0]}. (4) Step of {numbers[1]}. <IMAGE>"


def test_texts_alone_and_images_alone(case, tmp_path):
    output, names = told(case, tmp_path, "story-3_task1", Text("(1) Sleep."), A, Text("(2) Wake. (3) (4) Run."))
    assert (output, names) == ("(1) Sleep. (2) Wake. (3)  (4) Run.", [])
    images = [picture(n) for n in range(6)]
    for count, expected in (
        (4, "(1) <IMAGE> <IMAGE> (2)  (3) <IMAGE> (4) <IMAGE>"),
        (2, "(1) <IMAGE> <IMAGE> (2)  (3)  (4) "),
        (6, "(1) <IMAGE> <IMAGE> (2)  (3) <IMAGE> (4) <IMAGE> <IMAGE> <IMAGE>"),
        (0, "(1) <IMAGE> (2)  (3)  (4) "),
    ):
        place = tmp_path / str(count)
        place.mkdir()
        output, names = told(case, place, "story-3_task2", Text("Here."), *images[:count])
        assert output == expected and len(names) == max(count, 1)


def test_the_image_of_an_answer_without_one_is_none_when_read(case, tmp_path):
    bench, items = case
    told(case, tmp_path, "wiki_1_task4", Text("(1) Fold."))
    ((item, document),) = bench.read(tmp_path / "out", items.values())
    assert item.id == "wiki_1_task4" and item.text(document).strip() == "(1) Fold." and not item.pictures(document)


def test_a_submission_edited_by_hand(case, tmp_path):
    bench, items = case
    told(case, tmp_path, "wiki_1_task4", Text("(1) Fold."), A)
    (tmp_path / "secret.jpg").write_bytes(picture(3).to_png())
    file = tmp_path / "out/wiki_1_task4/results.json"
    record = json.loads(file.read_text())
    for change, says in (
        ({"prediction_image_list": ["../../secret.jpg"]}, "secret.jpg"),
        ({"prediction_image_list": ["none.jpg"]}, "none.jpg"),
        ({"prediction_image_list": "predict_1.jpg"}, "expected a list of names"),
        ({"model_output": None}, "model_output"),
    ):
        file.write_text(json.dumps({**record, **change}))
        with pytest.raises(DuoGenError, match=says):
            list(bench.read(tmp_path / "out", items.values()))


def test_images_that_no_text_places_come_at_the_end(case, tmp_path):
    """Other people's submissions may list more images than they have places for."""
    bench, items = case
    told(case, tmp_path, "wiki_1_task4", Text("(1) Fold."), A, Text("(2) Turn."), B)
    file = tmp_path / "out/wiki_1_task4/results.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "model_output": "(1) Fold. <IMAGE> (2) Turn."}))
    ((item, document),) = bench.read(tmp_path / "out", items.values())
    assert [type(part) for part in item.parts(document)] == [Text, Picture, Text, Picture]
    file.write_text(json.dumps({**record, "model_output": "(1) <IMAGE> (2) <IMAGE> (3) <IMAGE>"}))  # or more places
    ((item, document),) = bench.read(tmp_path / "out", items.values())
    assert len(item.pictures(document)) == 2


def test_nothing_in_a_pickle_is_run(tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return (print, ("run!",))

    import torch

    for value, says in (
        ([{"data_id": Evil()}], "cannot be read as CoMM's test_data.pth"),
        ({"a": 1}, "expected CoMM's list of guides"),
        ([1], "entry 1"),
    ):
        torch.save(value, tmp_path / "test_data.pth")
        with pytest.raises(DuoGenError, match=says):
            list(benchmark("comm").items(tmp_path / "test_data.pth"))
    assert "run!" not in capsys.readouterr().out
    for data in (b"no zip", b"PK\5\6" + bytes(18)):
        (tmp_path / "test_data.pth").write_bytes(data)
        with pytest.raises(DuoGenError, match="cannot be read as CoMM's test_data.pth"):
            list(benchmark("comm").items(tmp_path / "test_data.pth"))


def test_the_list_as_json_is_the_same(case, tmp_path):
    (tmp_path / "again").mkdir()
    (tmp_path / "again/test.json").write_text(json.dumps(guides(tmp_path / "again")))
    items = list(case[0].items(tmp_path / "again/test.json"))
    assert [item.prompt for item in items] == [item.prompt for item in case[1].values()]


@pytest.mark.parametrize("change, says", [
    ({"data_id": "a_task2"}, "expected a name of a folder without task1"),
    ({"data_id": "../a"}, "not allowed"),
    ({"step_info": [[{"type": "image", "image_path": "x/none.png"}]]}, "none.png"),
    ({"step_info": [[{"type": "image", "image_path": "../test.json"}]]}, "not allowed"),
    ({"step_info": [[{"type": "video"}]]}, "'video'; expected text or image"),
    ({"step_info": ["text"]}, "expected a list of lists"),
])  # fmt: skip
def test_requests_that_cannot_be(tmp_path, change, says):
    found = guides(tmp_path)
    (tmp_path / "test.json").write_text(json.dumps([{**found[0], **change}]))
    with pytest.raises(DuoGenError, match=says):
        list(benchmark("comm").items(tmp_path / "test.json"))


def test_ten_images_of_the_user_are_no_task3(tmp_path):
    """The scorer leaves such a request out."""
    found = guides(tmp_path)
    image = found[0]["step_info"][0][1]
    for count, tasks in ((9, 4), (10, 3)):
        steps = [[image] * count, [image]]
        (tmp_path / "test.json").write_text(json.dumps([{**found[0], "step_info": steps}]))
        assert len(list(benchmark("comm").items(tmp_path / "test.json"))) == tasks


def test_what_the_scorer_counts_where_something_is_missing(case, tmp_path):
    bench, items = case
    place = write_results(tmp_path, ["wiki_1_task2", "wiki_1_task4", "wiki_1_task1"])
    scores = {score.id: score for score in bench.results(place, list(items.values()))}
    assert scores["wiki_1_task4"].values == {
        "style_consistency": 9, "entity_consistency": 8, "trend_consistency": 0, "overall_consistency": 0,
        "text_fidelity": 5, "completeness": 4, "image_quality": 6,
    }  # fmt: skip
    assert scores["wiki_1_task1"].values == {"completeness": 2, "text_fidelity": 7}
    assert bench.summary(scores.values())["task2: image_quality"] == 0
    (place / "some/out/wiki_1_task2/evaluation_results.json").write_text(
        '{"coherence_score": {"style_consistency": 3}}'
    )
    (place / "some/out/wiki_1_task4/evaluation_results.json").write_text('"Invalid input string"')
    assert [score.id for score in bench.results(place, list(items.values()))] == ["wiki_1_task1"]
    (place / "some/out/wiki_1_task4/evaluation_results.json").write_text('{"completeness": {"Score": 11}}')
    with pytest.raises(DuoGenError, match="completeness is 11; expected a number from 0 to 10"):
        bench.results(place, list(items.values()))


def test_results_of_two_runs(case, tmp_path):
    place = write_results(tmp_path, ["wiki_1_task4"])
    (place / "some/out/wiki_1_task4").rename(place / "some/wiki_1_task4")
    (tmp_path / "more").mkdir()
    write_results(tmp_path / "more", ["wiki_1_task4"]).rename(place / "again")
    with pytest.raises(DuoGenError, match="which no request has or another file there scores"):
        case[0].results(place, list(case[1].values()))


def test_scores_of_a_judge(case):
    bench, items = case
    item = items["wiki_1_task4"]
    asks = bench.asks(item, answered(item, 0))
    assert [ask.key for ask in asks] == ["images", "fidelity"]
    numbers = {name: 3 for name in asks[0].schema["required"] if name != "reason"}
    score = bench.score(item, answered(item, 0), {
        "images": {"reason": "a", **numbers}, "fidelity": {"reason": "b", "text_fidelity": 8},
    })  # fmt: skip
    assert score.values["text_fidelity"] == 8 and all(score.values[name] == 3 for name in numbers) and len(numbers) == 6
    assert "completeness" not in bench.asks(items["wiki_1_task2"], answered(item, 0))[0].schema["required"]
    assert [ask.key for ask in bench.asks(items["wiki_1_task1"], answered(item, 0))] == ["texts"]
