"""The command `evaluate sketchbook`: report, overview, processes, bad input."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest
from PIL import Image

from duogen_core.checkpoint import save_checkpoint
from duogen_core.cli import main
from duogen_core.device_options import Placement
from duogen_core.errors import DuoGenError
from duogen_core.evaluation import report as reports
from duogen_core.evaluation.answering import ModelAnswer, answers
from duogen_core.settings import Settings
from duogen_core.sketchbook.evaluation import cases, evaluate
from tests.core.answerers import OnCard, die, echo, fail, refuse
from tests.core.ideal_answers import PROMISED, answered
from tests.core.tiny import random_components, request


def test_intervals():
    low, high = reports.interval(0.5, 100)
    assert 0.40 < low < 0.41 and 0.59 < high < 0.60
    assert reports.interval(1.0, 10)[1] == 1.0 and 0.6 < reports.interval(1.0, 10)[0] < 0.8
    assert reports.interval(0.0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="not in"):
        reports.figures([{"draw.right": 1.5}], ["draw.right"])


@pytest.fixture
def model(monkeypatch):
    """The command with an ideal model in place of a checkpoint; every fourth answer stops too early."""
    from types import SimpleNamespace

    from duogen_core import checkpoint
    from duogen_core.evaluation import answering

    truths = {case.prompt: case for seed in (0, 3) for _, case in cases(54, seed)}
    truths |= {case.prompt: case for _, case in cases(4, 0, ("guide", "continue"), "snow globe")}
    asked = []

    def generate(components, prompt, settings, critic=None, redraws=0):
        asked.append(settings.seed)
        case = truths[prompt]
        if len(asked) % 4 == 1:
            return answered(case, lambda parts: parts[:1], "max_tokens")
        return answered(case)

    components = SimpleNamespace(config=checkpoint.CheckpointConfig("ideal"))
    monkeypatch.setattr(checkpoint, "resolve_model", lambda name: Path(name))
    monkeypatch.setattr(checkpoint, "check_checkpoint", lambda folder: components.config)
    monkeypatch.setattr(answering, "load_placed", lambda folder, placement: components)
    monkeypatch.setattr(answering, "generate", generate)
    return asked


def test_command_writes_report_documents_and_overview(model, tmp_path, capsys):
    out, folder = tmp_path / "report.json", tmp_path / "answers"
    arguments = ["--out", str(out), "--samples", "27", "--seed", "3", "--documents", str(folder)]
    assert main(["evaluate", "sketchbook", *arguments]) == 0
    report = json.loads(out.read_text())
    assert set(report["figures"]) >= PROMISED and all(-1 <= v <= 1 for v in report["figures"].values())
    assert report["figures"]["guide.structure"] < 1.0 and report["counts"]["draw.right"] == 3
    assert report["seed"] == 3 and report["samples"] == 27 and report["model"] == "ideal"
    assert len(set(model)) == 27  # every answer has noise of its own
    printed, progress = capsys.readouterr()
    assert "guide.step_right" in printed and printed.strip().endswith("report.json")
    assert "27/27" in progress and "describe.right" in progress  # figures so far
    assert len([entry for entry in folder.iterdir() if (entry / "document.json").is_file()]) == 27
    with Image.open(folder / "overview.png") as sheet:
        assert sheet.width > 800 and sheet.height > 2000


def test_what_stops_it_is_told_on_a_line_of_its_own(model, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise DuoGenError("The disk is full.")

    monkeypatch.setattr("duogen_core.document.store.save_document", full)
    arguments = ["--out", str(tmp_path / "r.json"), "--samples", "4", "--documents", str(tmp_path / "answers")]
    assert main(["evaluate", "sketchbook", *arguments]) == 2
    assert capsys.readouterr().err.split("\n")[-2:] == ["Error: The disk is full.", ""]


def test_command_with_json_and_one_task(model, tmp_path, capsys):
    out = tmp_path / "report.json"
    assert main(["evaluate", "sketchbook", "--out", str(out), "--samples", "4", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["figures"] == json.loads(out.read_text())["figures"] and "cases" not in printed


def test_command_with_a_novel_thing(model, tmp_path, capsys):
    out = tmp_path / "report.json"
    assert main(["evaluate", "sketchbook", "--out", str(out), "--samples", "4", "--thing", "snow globe"]) == 0
    report = json.loads(out.read_text())
    assert report["thing"] == "snow globe" and report["counts"]["guide.step_right"] == 2
    assert {name.partition(".")[0] for name in report["figures"]} == {"guide", "continue"}
    assert all("snow globe" in case["ideal"] for case in report["cases"])


@pytest.mark.slow
def test_processes_answer_as_one_does(tmp_path):
    folder = save_checkpoint(random_components(), tmp_path / "model")
    chosen = cases(4, 0, ("edit", "describe"))
    found = []
    for jobs in (1, 2):
        answer = ModelAnswer(folder, Settings(max_images=1, max_new_tokens=12))
        found.append(evaluate(answer, chosen, jobs=jobs, folder=tmp_path / str(jobs)))
    one, two = ([{**case, "seconds": 0} for case in report["cases"]] for report in found)
    assert one == two and found[0]["figures"] == found[1]["figures"]
    files = [sorted((tmp_path / jobs).rglob("*.*")) for jobs in ("1", "2")]
    assert len(files[0]) >= 5
    assert [file.relative_to(tmp_path / "1") for file in files[0]] == [f.relative_to(tmp_path / "2") for f in files[1]]
    assert [file.read_bytes() for file in files[0]] == [file.read_bytes() for file in files[1]]


@pytest.mark.slow
def test_a_batch_answers_as_one_does(tmp_path):
    folder = save_checkpoint(random_components(), tmp_path / "model")
    questions = [(request(f"Draw {k} stars."), k) for k in range(5)]
    answer = ModelAnswer(folder, Settings(max_images=1, max_new_tokens=9, temperature=0.9))
    one, four, shared = ([d for d, _ in answers(answer, questions, *how)] for how in ((), (1, 1, 4), (2, 1, 2)))
    assert [document.text for document in one] == [document.text for document in four]
    assert [document.text for document in one] == [document.text for document in shared]
    assert [document.generation["seed"] for document in four] == [0, 1, 2, 3, 4]


@pytest.mark.slow
def test_each_process_has_a_card_of_its_own(tmp_path):
    questions = [(request(), number) for number in range(6)]
    for device, expected in (("card", {"card:0", "card:1"}), ("card:1", {"card:1"}), ("auto", {"cpu"})):
        answer = OnCard(tmp_path, Settings(), placement=Placement(device))
        assert {document.last_turn.text for document, _ in answers(answer, questions, 2)} == expected


@pytest.mark.slow
def test_answers_come_in_order_and_errors_through():
    questions = [(request(f"Question {k}"), k) for k in range(9)]
    alone, shared = ([document for document, _ in answers(echo, questions, jobs)] for jobs in (1, 3))
    assert alone == shared and alone[4].text == "Question 4 4"
    for answer, error, sentence in (
        (refuse, DuoGenError, "nothing to say"),
        (fail, RuntimeError, "ZeroDivisionError: by hand"),
        (die, DuoGenError, "One of the 2 worker processes was killed"),
    ):
        with pytest.raises(error, match=sentence):
            list(answers(answer, questions, 2))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--out", "nowhere/report.json"], "folder that does not exist"),
        (["--out", "."], "name of a JSON file"),
        (["--out", "r.json", "--samples", "0"], "--samples must be at least 1"),
        (["--out", "r.json", "--thing", "snow glob"], "did you mean 'snow globe'?"),
        (["--out", "r.json", "--thing", "house", "--only", "draw"], "'draw' is not about one thing"),
        (["--out", "r.json", "--jobs", "0"], "--jobs must be at least 1"),
        (["--out", "r.json", "--only", "sing"], "invalid choice"),
        (["--out", "r.json", "--model", "no-such-model"], "There is no model"),
        (["--out", "r.json", "--documents", "file"], "name of a folder"),
    ],
)
def test_bad_input_is_one_sentence(arguments, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert main(["evaluate", "sketchbook", *arguments]) == 2
    errors = capsys.readouterr().err
    assert sentence in errors and "Traceback" not in errors
    assert not (tmp_path / "r.json").exists()
