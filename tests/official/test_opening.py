"""OpenING's own scripts (github.com/LanceZPF/OpenING), unchanged, read what we export.

They ask addresses that are written into them; `requests` is sent to a judge on loopback instead (REDIRECT, in front by
PYTHONPATH). They look for everything in the folder they are started in, so that folder is made here: their prompts,
our small requests, our submission. What the summary script plots goes nowhere (MPLBACKEND).
"""

from __future__ import annotations

import csv
import json
import random
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from duogen_core.document import Document
from duogen_core.evaluation.benchmarks import Item, benchmark
from duogen_core.evaluation.benchmarks.opening import METRICS
from tests.official.harness import ANSWERS, Exported, exported, judge, official, run

REDIRECT = """
import os
import requests

ask = requests.sessions.Session.request
requests.sessions.Session.request = lambda self, method, url, **more: ask(self, method, os.environ["JUDGE"], **more)
"""


def started(scorer: Path, asked: Exported, folder: Path) -> Path:
    """The folder to start in: the submission, and beside it what the scripts look for by name (and case)."""
    place = asked.place
    shutil.copytree(scorer / "prompts", place / "prompts")
    (place / "Interleaved_Arena").mkdir()
    for name in ("OpenING-Benchmark", "OpenING-benchmark"):  # some look for one, some for the other
        shutil.copytree(asked.requests.parent / "images", place / name / "images")
        shutil.copy(asked.requests, place / name)
        shutil.copy(scorer / "prompts" / "judge_system.txt", place / name)
    (folder / "front").mkdir()
    (folder / "front" / "sitecustomize.py").write_text(REDIRECT)
    return place


class Scoring:
    """Gives every answer seven other scores, by a function call, as the scorer asks for it."""

    def __init__(self) -> None:
        self.random = random.Random(1)
        self.lock = threading.Lock()

    def __call__(self, body: dict[str, Any]) -> dict[str, Any]:
        assert body["function_call"] == {"name": "evaluate_multimodal_content"}
        wanted = body["functions"][0]["parameters"]["required"]
        assert set(wanted) == set(METRICS)
        with self.lock:
            scores = {name: {"Score": self.random.randint(0, 10), "Justification": f"for {name}"} for name in wanted}
        call = {"name": "evaluate_multimodal_content", "arguments": json.dumps(scores)}
        return {"role": "assistant", "content": None, "function_call": call}


def shown(body: dict[str, Any]) -> tuple[str, int]:
    content = body["messages"][1]["content"]
    return " ".join(part["text"] for part in content if part["type"] == "text"), sum(
        part["type"] == "image_url" for part in content
    )


@pytest.mark.parametrize("by", ANSWERS)
def test_every_answer_is_scored_and_summed_up(by, tmp_path):
    scorer = official("LanceZPF+OpenING")
    asked = exported("opening", tmp_path, by)
    place = started(scorer, asked, tmp_path)
    with judge(Scoring()) as server:
        env = {"JUDGE": f"{server.url}/chat/completions", "PYTHONPATH": str(tmp_path / "front"), "MPLBACKEND": "Agg"}
        printed = run(place, scorer / "GPT_score_A.py", "--output_dir", ".", env=env)
    for fault in ("ERROR", "Error", "Warning: No output", "failed"):
        assert fault not in printed
    assert len(server.asked) == len(asked.items)
    for (item, document), body in zip(asked.answers, server.asked):
        text, images = shown(body)
        assert images == len(item.prompt.pictures) + len(item.pictures(document)), item.id
        assert all(part.text.strip() in text for part in item.parts(document) if hasattr(part, "text"))

    arena = place / "Interleaved_Arena"
    scores, summary = asked.back(arena / "gpt-score_results_new.json")
    assert all(score.reasons["Completeness"] == "for Completeness" for score in scores)

    shutil.copy(arena / "gpt-score_results_new.json", arena / "gpt-score_results.json")  # the name the summary reads
    printed = run(place, scorer / "summarize_GPT_scores.py", env=env)
    assert f"Number of entries after filtering: {len(asked.items)}" in printed
    theirs = dict(line.strip().split(": ") for line in printed.splitlines() if line.startswith("  "))
    assert set(theirs) == {*METRICS, "Overall"}
    for name, figure in theirs.items():  # each rounded to two digits, Overall of the rounded ones
        assert summary[name] == pytest.approx(float(figure), abs=0.0051 if name != "Overall" else 0.0101), name


def test_the_published_results_give_the_published_table(tmp_path):
    """Eleven models' scores as their authors published them, and the table that their own summary made of these."""
    arena = official("LanceZPF+OpenING") / "Interleaved_Arena"
    entries = json.loads((arena / "gpt-score_results.json").read_text("utf-8"))
    items = [Item(id, Document()) for id in sorted({entry["data_id"] for entry in entries})]
    with (arena / "model_score_summaries.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 11
    for row in table:
        file = tmp_path / "one.json"
        file.write_text(json.dumps([entry for entry in entries if entry["model"]["name"] == row["Model_Name"]]))
        summary = benchmark("opening").summary(benchmark("opening").results(file, items))
        for name in METRICS:
            assert summary[name] == pytest.approx(float(row[name]), abs=0.0051), (row["Model_Name"], name)
        assert summary["Overall"] == pytest.approx(float(row["Overall"]), abs=0.0101)


def test_the_pairwise_scripts_find_the_answers_of_two_models(tmp_path):
    """GPT_score_A.py by pairs (it writes the models' ids, too), and GPT_judge_AB.py."""
    scorer = official("LanceZPF+OpenING")
    asked = exported("opening", tmp_path)
    asked.bench.export(asked.answers[::-1], asked.out, "other")
    place = started(scorer, asked, tmp_path)
    models = [{"id": "0", "name": "duogen-tiny"}, {"id": "1", "name": "other"}]
    pairs = [{"data_id": item.id, "model_A": models[0], "model_B": models[1]} for item in asked.items]
    for name in ("data_instance_modelAB_new.json", "new_data_instance_modelAB.json"):
        (place / "Interleaved_Arena" / name).write_text(json.dumps(pairs))

    def reply(body: dict[str, Any]) -> Any:
        return scoring(body) if "functions" in body else "A"

    scoring = Scoring()
    with judge(reply) as server:
        env = {"JUDGE": f"{server.url}/chat/completions", "PYTHONPATH": str(tmp_path / "front")}
        printed = run(place, scorer / "GPT_score_A.py", "--mode", "pairwise_file", env=env)
        printed += run(place, scorer / "GPT_judge_AB.py", env=env)
    assert "ERROR" not in printed and "FAIL" not in printed and "failed" not in printed
    assert len(server.asked) == 3 * len(asked.items)
    for (item, document), body in zip(asked.answers, server.asked[2 * len(asked.items) :]):
        assert shown(body)[1] == len(item.prompt.pictures) + 2 * len(item.pictures(document))

    arena = place / "Interleaved_Arena"
    judged = json.loads((arena / "gpt-judge_results.json").read_text("utf-8"))
    assert [(one["data_id"], one["winner"]) for one in judged] == [(item.id, "A") for item in asked.items]
    both = json.loads((arena / "gpt-score_results_new.json").read_text("utf-8"))
    for model in models:
        file = tmp_path / f"{model['name']}.json"
        file.write_text(json.dumps([entry for entry in both if entry["model"] == model]))
        assert len(asked.back(file)[0]) == len(asked.items)
