"""evaluate check: every benchmark's answers without a judge, as a file of results that the report reads."""

from __future__ import annotations

import json

import pytest

from duogen_core.cli import main
from duogen_core.document.store import save_document
from duogen_core.evaluation import checks
from duogen_core.evaluation.benchmarks import benchmark
from duogen_core.evaluation.results import read_results
from tests.core.evaluation.benchmarks.test_contract import THERE, answered, layout
from tests.core.evaluation.test_checks import save_clip


def answers(folder, name):
    """Documents that answer the small requests of a benchmark; where they are, and the requests."""
    requests = layout(name).write_requests(folder)
    for number, item in enumerate(benchmark(name).items(requests)):
        document = answered(item, number)
        about = {"benchmark": name, "id": item.id}
        document = type(document)(document.turns, {"stop_reason": "end" if number % 2 else "max_images"}, about)
        save_document(document, folder / "answers" / f"{number:03d}")
    return folder / "answers", requests


def check(name, place, requests, *more):
    arguments = ["evaluate", "check", name, str(place), "--requests", str(requests), "--quiet", *map(str, more)]
    return main(arguments)


@pytest.mark.parametrize("name", THERE)
def test_answers_of_every_benchmark(name, tmp_path, capsys):
    place, requests = answers(tmp_path, name)
    assert check(name, place, requests) == 0
    found = read_results(place / "results-checks.json")
    bench = benchmark(name)
    assert found.judge == "" and len(found.cases) == len(list(bench.items(requests)))
    assert set(found.metrics) & set(bench.metrics) == {k for k, metric in bench.metrics.items() if metric.by == "check"}
    assert not set(checks.MEASURES) & set(bench.metrics)
    for case in found.cases:
        assert case.values["images new"] in (None, 1) and "order" in case.detail["checks"]
    drawn = [case for case in found.cases if case.values["images new"] is not None]
    assert found.summary["images with content"] == 1 and drawn
    assert found.summary["ended by itself"] == pytest.approx(
        sum(k % 2 for k in range(len(found.cases))) / len(found.cases)
    )
    assert "images with content" in capsys.readouterr().out


def test_puzzles_and_options_have_their_figures(tmp_path, capsys):
    place, requests = answers(tmp_path, "unimmmu")
    assert check("unimmmu", place, requests, "--json") == 0
    summary = json.loads(capsys.readouterr().out)["summary"]
    assert summary["maze solved"] == summary["sliding text"] == summary["jigsaw text"] == 0
    assert not any(name.startswith(("math", "science", "code")) for name in summary)
    assert summary["images asked for"] == 0.75  # every fourth says nothing


def test_likeness_and_clip_and_the_report(tmp_path, capsys):
    place, requests = answers(tmp_path, "realunify")
    save_clip(tmp_path / "clip", "clip")
    out = tmp_path / "checked.json"
    assert check("realunify", place, requests, "--likeness", "--clip", tmp_path / "clip", "--out", out) == 0
    found = read_results(out)
    assert {"text and image", "likeness of steps"} <= set(found.metrics)
    assert found.about["clip"] == "clip" and found.metrics["text and image"].says.endswith("(clip)")
    assert -1 <= found.summary["text and image"] <= 1
    assert "likeness of steps" not in found.summary  # one image each
    assert main(["evaluate", "report", str(out), "--out", str(tmp_path / "report.html"), "--quiet"]) == 0
    assert "images with content" in (tmp_path / "report.html").read_text("utf-8")


def test_what_is_missing_is_said_before_anything_is_done(tmp_path, capsys):
    place, requests = answers(tmp_path, "realunify")
    assert check("realunify", place, requests, "--clip", tmp_path / "no") == 2
    assert "is no folder; expected one with config.json" in capsys.readouterr().err
    assert not (place / "results-checks.json").exists()
    assert check("realunify", tmp_path / "nowhere", requests) == 2
    assert "does not exist" in capsys.readouterr().err
    assert check("realunify", place, requests, "--out", tmp_path) == 2
    assert "is a folder; expected the name of a file" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert check("realunify", tmp_path / "empty", requests) == 2
    assert "empty" in capsys.readouterr().err
