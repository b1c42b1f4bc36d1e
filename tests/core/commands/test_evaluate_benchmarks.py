"""evaluate run, export, import and judge on the command line, with the bundled model, on UEval's layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from duogen_core.cli import main
from duogen_core.document import Text
from duogen_core.evaluation.results import read_results
from tests.core.endpoint_server import completion, endpoint_server
from tests.core.evaluation.benchmarks.layout_ueval import REQUESTS, write_requests, write_results

IDS = [entry[0] for entry in REQUESTS]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """A run of the bundled model, beside its requests."""
    folder = tmp_path_factory.mktemp("ueval")
    requests = str(write_requests(folder))
    common = ["--max-tokens", "60", "--max-images", "1", "--steps", "2", "--quiet"]
    assert main(["evaluate", "run", "ueval", "--requests", requests, "--out", str(folder / "run"), *common]) == 0
    return folder


def evaluate(*arguments: object) -> int:
    return main(["evaluate", *map(str, arguments), "--quiet"])


def test_run_says_what_it_made(run_folder, capsys):
    entries = json.loads((run_folder / "run" / "submission" / "submission.json").read_text())
    assert [entry["id"] for entry in entries] == IDS
    code = evaluate("run", "ueval", "--requests", run_folder / "ueval.json", "--out", run_folder / "run", "--json",
                    "--max-tokens", 60, "--max-images", 1, "--steps", 2)  # fmt: skip
    figures = json.loads(capsys.readouterr().out)
    assert code == 0 and figures["answers"] == figures["requests"] == 4 and figures["failed"] == 0
    assert figures["model"] == "duogen-tiny" and Path(figures["submission"]).is_file()


def test_export_and_import_give_the_same_submission(run_folder, tmp_path, capsys):
    requests = run_folder / "ueval.json"
    given = run_folder / "run" / "submission"
    assert evaluate("import", "ueval", given, "--requests", requests, "--out", tmp_path / "back") == 0
    assert evaluate("export", "ueval", tmp_path / "back", "--requests", requests, "--out", tmp_path / "sub") == 0
    for file in given.rglob("*.*"):
        assert (tmp_path / "sub" / file.relative_to(given)).read_bytes() == file.read_bytes()
    assert "without" not in capsys.readouterr().out


def test_export_says_how_many_requests_have_no_answer(run_folder, tmp_path, capsys):
    from duogen_core.document.store import save_document
    from duogen_core.evaluation.benchmarks import benchmark

    second = list(benchmark("ueval").items(run_folder / "ueval.json"))[1]
    save_document(second.prompt.begin_turn("assistant", [Text("Ice.")]), tmp_path / "mine" / second.id)
    common = ("--requests", run_folder / "ueval.json", "--out", tmp_path / "sub", "--json")
    assert evaluate("export", "ueval", tmp_path / "mine", *common) == 0
    assert json.loads(capsys.readouterr().out)["without_answer"] == 3


def test_official_results_are_read_back(run_folder, tmp_path, capsys):
    results = write_results(tmp_path, IDS)
    requests = run_folder / "ueval.json"
    assert evaluate("judge", "ueval", run_folder / "run", "--requests", requests, "--official", results) == 0
    found = read_results(run_folder / "run" / "results-official.json")
    assert found.model == "duogen-tiny" and [case.id for case in found.cases] == IDS
    assert found.summary["text"] == pytest.approx(1 / 3) and found.summary["image"] == 0
    document = found.document(found.cases[0])  # the answer is found by way of the results
    assert document.meta["id"] == "1"
    assert "overall" in capsys.readouterr().out


def test_a_judge_at_an_endpoint_with_its_price(run_folder, capsys):
    met = completion(json.dumps({"reason": "So it is.", "met": "yes"}))
    requests, run = run_folder / "ueval.json", run_folder / "run"
    with endpoint_server(met) as server:
        how = ("--requests", requests, "--endpoint", server.url, "--llm", "org/judge:8b", "--price", "1,2", "--json")
        assert evaluate("judge", "ueval", run, *how) == 0
        assert len(server.asked) == 9
    figures = json.loads(capsys.readouterr().out)
    assert figures["summary"]["overall"] == 1.0 and figures["unjudged"] == 0
    assert figures["spent"]["cost"] == pytest.approx(9 * (7 * 1 + 3 * 2) / 1e6)
    assert figures["tokens"] == {"prompt": 63, "completion": 27}
    assert Path(figures["results"]) == run / "results-org-judge-8b.json"
    assert (run / "judged-org-judge-8b" / "answers.jsonl").is_file()


def test_requests_without_an_answer_are_told_with_the_scores(run_folder, tmp_path, capsys, monkeypatch):
    """They are in no mean, and a model that fails at the hard ones must not seem the better for it."""
    from duogen_core.errors import DuoGenError
    from duogen_core.evaluation import models

    answer = models.Model.answer

    def fails(self, item, seed):
        if item.id == "2":
            raise DuoGenError("It cannot.")
        return answer(self, item, seed)

    monkeypatch.setattr(models.Model, "answer", fails)
    requests, run = ("--requests", run_folder / "ueval.json"), tmp_path / "run"
    assert evaluate("run", "ueval", *requests, "--out", run, "--max-tokens", 9, "--max-images", 1, "--steps", 1) == 0
    with endpoint_server(completion(json.dumps({"reason": "So it is.", "met": "yes"}))) as server:
        assert evaluate("judge", "ueval", run, *requests, "--endpoint", server.url, "--llm", "j") == 0
    assert "Without an answer, and in no mean: 1 request." in capsys.readouterr().out
    assert read_results(run / "results-j.json").about["failed"] == 1
    assert evaluate("check", "ueval", run, *requests) == 0
    assert read_results(run / "results-checks.json").about["failed"] == 1


def test_a_judge_called_as_another_file_is_called_replaces_nothing(run_folder, tmp_path, capsys):
    requests, run = run_folder / "ueval.json", run_folder / "run"
    results = write_results(tmp_path, IDS)
    assert evaluate("judge", "ueval", run, "--requests", requests, "--official", results) == 0
    before = (run / "results-official.json").read_bytes()
    with endpoint_server(completion(json.dumps({"reason": "So it is.", "met": "yes"}))) as server:
        for name in ("Official", "checks"):
            how = ("--requests", requests, "--endpoint", server.url, "--llm", name)
            assert evaluate("judge", "ueval", run, *how) == 0
            found = read_results(run / f"results-{name}-judge.json")
            assert found.judge == name and found.summary["overall"] == 1
    assert (run / "results-official.json").read_bytes() == before and not (run / "results-checks.json").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "uval", "--requests", "{requests}", "--out", "{out}"], "choose from ueval"),
        (["run", "ueval", "--out", "{out}"], "--requests is missing: the official file of UEval"),
        (["run", "ueval", "--requests", "{requests}", "--out", "{out}", "--limit", "0"], "--limit is 0"),
        (["run", "ueval", "--requests", "{requests}", "--out", "{out}", "--name", " "], "--name is ' '"),
        (["import", "ueval", "{run}", "--requests", "{requests}", "--out", "{out}", "--name", ""], "--name is ''"),
        (["export", "ueval", "{run}", "--requests", "{requests}", "--out", "{out}", "--name", "n" * 201], "most 200"),
        (
            ["run", "ueval", "--requests", "{requests}", "--out", "{out}", "--workflow", "x.json", "--model", "m"],
            "leave out --writer, --model",
        ),
        (["run", "ueval", "--requests", "{requests}", "--out", "{out}", "--painter", "comfyui:x"], "give one, or name"),
        (["run", "ueval", "--requests", "{requests}", "--out", "{out}", "--workflow", "no.json"], "no.json"),
        (["export", "ueval", "{run}", "--requests", "{requests}", "--out", "."], "the name of a new folder"),
        (["export", "ueval", "{run}", "--requests", "{requests}", "--out", " "], "the name of a folder"),
        (["run", "ueval", "--requests", "{requests}", "--out", ""], "the name of a folder"),
        (["import", "ueval", "{run}", "--requests", "{requests}", "--out", ""], "the name of a folder"),
        (["judge", "ueval", "{out}", "--requests", "{requests}", "--llm", "x", "--endpoint", "http://127.0.0.1:1/v1"],
         "is no run"),
        (["judge", "ueval", "{run}", "--requests", "{requests}"], "Name a judge"),
        (["judge", "ueval", "{run}", "--requests", "{requests}", "--mllm", "m", "--llm", "x"], "name one of the two"),
        (["judge", "ueval", "{run}", "--requests", "{requests}", "--official", "no.json"], "does not exist"),
        (["import", "ueval", "no-such", "--requests", "{requests}", "--out", "{out}"], "does not exist"),
        (["export", "ueval", "{run}", "--requests", "{requests}", "--out", "{run}"], "is there already"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(run_folder, tmp_path, capsys, arguments, sentence):
    places = {"requests": run_folder / "ueval.json", "out": tmp_path / "out", "run": run_folder / "run"}
    assert evaluate(*(argument.format(**places) for argument in arguments)) == 2
    said = capsys.readouterr().err.strip()
    assert sentence in said and "Traceback" not in said and len(said.splitlines()) == 1


def test_a_workflow_that_is_no_graph(run_folder, tmp_path, capsys):
    file = tmp_path / "graph.json"
    for nodes, sentence in (
        ({"nodes": [], "links": []}, "saved for the editor"),
        ({"1": {"class_type": "X", "inputs": {"text": "hello"}}}, "has no ${prompt}"),
        ({"1": {"class_type": "X", "inputs": {"text": "${prompt} ${steps}"}}}, "placeholder ${steps}"),
        ({"1": {"text": "${prompt}"}}, "not an API-format workflow"),
    ):
        file.write_text(json.dumps(nodes))
        out = ("--requests", run_folder / "ueval.json", "--out", tmp_path / "out")
        assert evaluate("run", "ueval", *out, "--workflow", file) == 2
        assert sentence in capsys.readouterr().err


def test_requests_of_another_benchmark(run_folder, tmp_path, capsys):
    file = tmp_path / "other.json"
    file.write_text(json.dumps([{"total_uid": "1", "conversations": []}]))
    assert evaluate("run", "ueval", "--requests", file, "--out", tmp_path / "out") == 2
    assert "expected a file of UEval's requests" in capsys.readouterr().err
    file.write_text(json.dumps([json.loads((run_folder / "ueval.json").read_text())[0]] * 2))
    assert evaluate("run", "ueval", "--requests", file, "--out", tmp_path / "out") == 2
    assert "two requests with the id '1'" in capsys.readouterr().err
