"""evaluate judge geneval --detector: a tiny random DETR looks at the images of a submission."""

from __future__ import annotations

import json

import pytest

from duogen_core.cli import main
from duogen_core.evaluation.benchmarks import benchmark
from duogen_core.evaluation.results import read_results
from tests.core.evaluation.benchmarks.test_contract import answered
from tests.core.evaluation.test_detector import save_detr

REQUESTS = [
    {"tag": "single_object", "include": [{"class": "dining table", "count": 1}], "prompt": "a photo of a dining table"},
    {"tag": "colors", "include": [{"class": "cup", "count": 1, "color": "red"}], "prompt": "a photo of a red cup"},
    {"tag": "counting", "include": [{"class": "dog", "count": 2}], "exclude": [{"class": "dog", "count": 3}],
     "prompt": "a photo of two dogs"},
]  # fmt: skip


def evaluate(*arguments: object) -> int:
    return main(["evaluate", *map(str, arguments), "--quiet"])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("geneval")
    file = folder / "asked.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in REQUESTS))
    bench = benchmark("geneval")
    (folder / "submission").mkdir()
    bench.export([(item, answered(item, k)) for k, item in enumerate(bench.items(file))], folder / "submission", "m")
    how = ("--requests", file, "--out", folder / "run", "--name", "theirs")
    assert evaluate("import", "geneval", folder / "submission", *how) == 0
    save_detr(folder / "tiny-detr")
    return folder


def test_a_detector_in_place_of_a_judge(place, capsys):
    how = ("geneval", place / "run", "--requests", place / "asked.jsonl", "--detector", place / "tiny-detr", "--json",
           "--device", "cpu")  # fmt: skip
    assert evaluate("judge", *how, "--sure", "0.1,0.2") == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["judge"] == figures["detector"] == "tiny-detr" and figures["sure"] == [0.1, 0.2]
    assert figures["colours"] == "nearest named" and figures["answers"] == 12 and figures["unjudged"] == 0
    found = read_results(place / "run/results-tiny-detr.json")
    assert found.model == "theirs"
    by_id = {case.id: case for case in found.cases}
    objects = [one for case in found.cases for one in case.detail["objects"]]
    assert objects and {one["class"] for one in objects} <= {"dining table", "cup", "dog"}
    assert {case.values["correct"] for case in found.cases} == {0.0, 1.0}
    # The last of four has no image: nothing is in it.
    assert all(
        by_id[f"0000{k}-3"].values["correct"] == 0 and not by_id[f"0000{k}-3"].detail["objects"] for k in range(3)
    )
    # Other thresholds are another judging.
    assert evaluate("judge", *how, "--sure", "0.1,0.3") == 2
    assert "sure" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--detector", "no-such"], "no-such is no folder"),
        (["--detector", "{detr}", "--llm", "x"], "--detector takes the place of a judge"),
        (["--detector", "{detr}", "--sure", "0.3"], "expected two numbers"),
        (["--detector", "{detr}", "--sure", "3,4"], "sure between 0 and 1"),
        (["--detector", "{detr}", "--colours", "{detr}"], "expected clip or siglip"),
        (["--colours", "{detr}"], "name it with --detector"),
        (["--detector", "{detr}", "--official", "{detr}"], "leave out --endpoint, --llm, --mllm and --detector"),
    ],
)
def test_bad_input_is_one_sentence(place, tmp_path, capsys, arguments, sentence):
    given = [argument.format(detr=place / "tiny-detr") for argument in arguments]
    assert (
        evaluate("judge", "geneval", place / "run", "--requests", place / "asked.jsonl", "--out", tmp_path, *given) == 2
    )
    said = capsys.readouterr().err.strip()
    assert sentence in said and "Traceback" not in said and len(said.splitlines()) == 1


def test_a_class_that_it_does_not_know_stops_the_judging(place, tmp_path, capsys):
    """Not one answer after the other."""
    file = tmp_path / "asked.jsonl"
    record = {"tag": "single_object", "include": [{"class": "kite", "count": 1}], "prompt": "a photo of a kite"}
    file.write_text(json.dumps(record))
    bench = benchmark("geneval")
    (tmp_path / "sub").mkdir()
    bench.export([(item, answered(item, 0)) for item in bench.items(file)], tmp_path / "sub", "m")
    assert (
        evaluate("import", "geneval", tmp_path / "sub", "--requests", file, "--out", tmp_path / "run", "--name", "m")
        == 0
    )
    how = ("--requests", file, "--detector", place / "tiny-detr", "--device", "cpu")
    assert evaluate("judge", "geneval", tmp_path / "run", *how) == 2
    assert "does not know the class 'kite'" in capsys.readouterr().err
