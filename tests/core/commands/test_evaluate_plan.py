"""The command `evaluate plan`: a writer asked, a run that was stopped, plans that are there, bad input."""

from __future__ import annotations

import json

import pytest

from duogen_core.cli import main
from duogen_core.llm import opening
from duogen_core.llm.answers import Answer
from duogen_core.llm.client import Client, Endpoint
from duogen_core.net.client import EndpointError

GUIDE = {
    "title": "A paper boat",
    "cast": [{"name": "Sheet", "looks": "white paper"}],
    "parts": [
        {"text": "Fold the sheet in half.", "picture": "A white sheet of paper folded in half on a table."},
        {"text": "Fold the corners of the sheet down.", "picture": "The sheet with both corners bent to the middle."},
        {"text": "Pull the sheet open.", "picture": "The sheet has become a paper boat that stands on the table."},
    ],
}
ANSWER = {"title": "Paris", "parts": [{"text": "It is Paris."}]}
REQUESTS = "How do I fold a paper boat?\nWhat is the capital of France?\nHow do I fold a paper boat in 4 steps?\n"


class Writer:
    """Answers every guide with the same three steps, and plain questions with one sentence."""

    sees = False

    def __init__(self, fail=None):
        self.fail, self.asked = fail, []

    def __call__(self, body, on_text=None, cancelled=None):
        request = body["messages"][-1]["content"]
        self.asked.append(request)
        if self.fail and (error := self.fail(len(self.asked))):
            raise error
        return Answer(json.dumps(ANSWER if "no pictures" in request else GUIDE), "stop", 5, 5, True)


@pytest.fixture
def writer(monkeypatch, tmp_path):
    model = Writer()
    endpoint = Endpoint("http://127.0.0.1:1/v1", "m", attempts=1, answers=1)
    monkeypatch.setattr(opening, "open_model", lambda *_, **__: Client(endpoint, transport=model))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "requests.txt").write_text(REQUESTS, "utf-8")
    return model


def run(*options):
    return main(["evaluate", "plan", "--writer", "w.gguf", "--requests", "requests.txt", "--out", "out", *options])


def test_the_command_asks_scores_and_writes_report_and_page(writer, tmp_path, capsys):
    assert run("--batch", "2") == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["figures"]["whole"] == 1 and report["figures"]["plain.plain"] == 1
    assert report["figures"]["count"] == 0 and report["counts"]["count"] == 1  # three steps where four were asked for
    assert (report["benchmark"], report["writer"], report["requests"]) == ("plan", "w.gguf", 3)
    assert report["spent"]["requests"] == len(writer.asked) and len(report["cases"]) == 3
    printed, progress = capsys.readouterr()
    assert "by kind" in printed and printed.strip().endswith("report.json") and "3/3" in progress
    assert "The request asks for 4; the plan has 3 pictures." in (tmp_path / "out" / "worst.html").read_text()


def test_json_and_fewer_requests(writer, tmp_path, capsys):
    assert run("--count", "2", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["requests"] == 2 and "cases" not in printed and printed["counts"]["plain.plain"] == 1


def test_a_run_that_was_stopped_goes_on(writer, tmp_path, capsys):
    def stop(number):
        return KeyboardInterrupt() if number == 3 else None

    writer.fail = stop
    assert run("--batch", "1") == 130
    assert len((tmp_path / "out" / "plans.jsonl").read_text().splitlines()) == 2
    writer.fail, before = None, len(writer.asked)
    assert run("--batch", "1") == 0
    assert "2 of 3 are planned already" in capsys.readouterr().err and len(writer.asked) == before + 1
    assert len(json.loads((tmp_path / "out" / "report.json").read_text())["cases"]) == 3
    assert run("--seed", "1") == 2
    assert "another writer, seed or temperature" in capsys.readouterr().err
    assert run("--temperature", "0.7") == 2
    assert "another writer, seed or temperature" in capsys.readouterr().err


def test_what_a_server_did_not_answer_is_asked_again_and_counts_for_nobody(writer, tmp_path, capsys):
    writer.fail = lambda number: EndpointError("The server is busy.", again=True) if number == 2 else None
    assert run("--batch", "1") == 2
    assert "1 of 3 requests got no answer (The server is busy.)" in capsys.readouterr().err
    writer.fail = None
    assert run() == 0
    assert json.loads((tmp_path / "out" / "report.json").read_text())["counts"]["whole"] == 3


def test_a_server_that_is_not_there_ends_the_run_at_once(writer, tmp_path, capsys):
    writer.fail = lambda _: EndpointError("No server answers at 127.0.0.1:1.", again=True)
    assert run("--batch", "1") == 2
    assert "No server answers" in capsys.readouterr().err and len(writer.asked) == 1


def test_a_writer_that_fails_is_scored(writer, tmp_path):
    writer.fail = lambda number: EndpointError("The model cannot answer.", again=False) if number == 2 else None
    assert run("--batch", "1") == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["figures"]["whole"] == 0.6667
    assert [case["error"] for case in report["cases"] if case["plan"] is None] == ["The model cannot answer."]


def test_plans_that_are_there_are_scored_without_a_writer(writer, tmp_path, capsys):
    assert run() == 0
    asked = len(writer.asked)
    assert main(["evaluate", "plan", "--plans", "out/plans.jsonl", "--out", "again"]) == 0
    first, second = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("out", "again"))
    assert first["figures"] == second["figures"] and len(writer.asked) == asked


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--out", "out"], "Give --writer"),
        (["--out", "out", "--writer", "w", "--plans", "p"], "one of the two"),
        (["--out", "out", "--plans", "requests.txt", "--requests", "requests.txt"], "leave --requests out"),
        (["--out", "out", "--plans", "nothing.jsonl"], "does not exist"),
        (["--out", "out", "--plans", "requests.txt"], "not valid JSON"),
        (["--out", "out", "--writer", "w", "--requests", "nothing.txt"], "does not exist"),
        (["--out", "requests.txt", "--writer", "w"], "name of a folder"),
        (["--out", " ", "--writer", "w"], "name of a folder"),
        (["--out", "out", "--writer", "w", "--count", "0"], "--count must be at least 1"),
        (["--out", "out", "--writer", "w", "--batch", "0"], "--batch must be at least 1"),
        (["--out", "out", "--writer", "w", "--temperature", "nan"], "--temperature is nan"),
    ],
)
def test_bad_input_is_one_sentence(arguments, sentence, writer, capsys):
    assert main(["evaluate", "plan", *arguments]) == 2
    errors = capsys.readouterr().err
    assert sentence in errors and "Traceback" not in errors and not writer.asked
