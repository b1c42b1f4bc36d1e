"""ISG-Bench's own scorer (github.com/Dongping-Chen/ISG), unchanged, reads what we export.

It is started in a folder of its own, where it looks for its settings: ISG_eval/config.yaml there has the address of the
judge, a stand-in on loopback.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from duogen_core.evaluation.benchmarks import Score
from duogen_core.evaluation.benchmarks.isg import GROUPS
from tests.official.harness import ANSWERS, Exported, exported, judge, official, run

THEIR_NAMES = {group.replace(" ", "_"): group for group in GROUPS} | {"Style_Transer": "Style Transfer"}


class Scoring:
    """Answers each of the four kinds of question in the form that it is asked for. fails: or, at times, not."""

    def __init__(self, fails: bool = False) -> None:
        self.random = random.Random(1)
        self.lock = threading.Lock()
        self.fails = fails

    def __call__(self, body: dict[str, Any]) -> str:
        assert body["response_format"] == {"type": "json_object"}
        said = " ".join(part["text"] for part in body["messages"][0]["content"] if part["type"] == "text")
        with self.lock:
            number, yes = self.random.randint(1, 10), self.random.choice(["Yes", "No"])
            wrong = self.random.choice(["prose", "null", '{"Judge": "8"}', '{"Reason": "x"}', *[""] * 6])
        if self.fails and wrong:
            return wrong
        if "overall_score" in said:
            return json.dumps({"coherence": {"score": number, "explanation": ""}, "overall_score": number})
        return json.dumps({"Judge": number if "scale of 1-10" in said else yes, "Reason": "seen"})


def scored(scorer: Path, asked: Exported, folder: Path, *more: str, fails: bool = False) -> tuple[str, Path]:
    place = folder / "started"
    (place / "ISG_eval").mkdir(parents=True)
    shutil.copy(scorer / "ISG_eval/task_few_shot.json", place / "ISG_eval")
    with judge(Scoring(fails)) as server:
        settings = (scorer / "ISG_eval/config.yaml").read_text()
        settings = settings.replace('base_url: "https://openrouter.ai/api/v1"', f"base_url: {server.url}")
        (place / "ISG_eval/config.yaml").write_text(settings.replace('api_key: ""', "api_key: none"))
        printed = run(
            place, scorer / "ISG-eval.py", "--input_file", asked.place, "--GT_file", asked.requests,
            "--root", asked.out, *more,
        )  # fmt: skip
    (results,) = asked.out.glob("*_judge.jsonl")
    return printed, results


def same_figures(scorer: Path, asked: Exported, results: Path) -> list[Score]:
    scores, figures = asked.back(results)
    printed = run(scorer, "calculate_performance.py", "--input_file", results, "--GT_file", asked.requests)
    rows = re.findall(r"^(\S+)\s+([\d.]+)\s+([\d.]+)\s+([\d.]+)\s+([\d.]+)$", printed, re.M)
    assert len(rows) == len(GROUPS)
    compared = 0
    for name, *numbers in rows:
        for metric, number in zip(("structure", "image", "block", "holistic"), numbers):
            figure = figures.get(f"{THEIR_NAMES[name]}: {metric}", 0.0)  # where it has no item it prints 0
            assert number == f"{figure:.4f}", (name, metric)
            compared += figure > 0
    assert compared == sum(": " in name and figure > 0 for name, figure in figures.items()) >= 8
    return scores


@pytest.mark.parametrize("by", ANSWERS)
def test_every_answer_is_scored_and_summed_up(by, tmp_path):
    scorer = official("Dongping-Chen+ISG")
    asked = exported("isg", tmp_path, by)
    printed, results = scored(scorer, asked, tmp_path, "--end", str(len(asked.items)))
    for fault in ("Error", "error", "No such file", "Failed", "Traceback"):
        assert fault not in printed
    lines = {line["id"]: line["result"] for line in map(json.loads, results.read_text().splitlines())}
    assert sorted(lines) == sorted(item.id for item in asked.items)
    assert all(line["holistic"]["overall_score"] for line in lines.values())
    right = [id for id, line in lines.items() if line["structure"]]
    assert by != "contract" or sorted(right) == ["0000", "0001", "0002", "0004", "0006"]
    scores = same_figures(scorer, asked, results)
    assert {score.id: score.values["structure"] for score in scores} == {
        item.id: asked.bench.score(item, document, {}).values["structure"] for item, document in asked.answers
    }


def test_a_judge_that_fails_at_times(tmp_path):
    """What the scorer counts then, we count: the same figures."""
    scorer = official("Dongping-Chen+ISG")
    asked = exported("isg", tmp_path)
    _, results = scored(scorer, asked, tmp_path, "--end", str(len(asked.items)), fails=True)
    assert "Invalid JSON response" in results.read_text()
    same_figures(scorer, asked, results)


def test_without_end_the_last_item_is_dropped(tmp_path):
    """The reason why docs/evaluation.md says to give it."""
    scorer = official("Dongping-Chen+ISG")
    asked = exported("isg", tmp_path)
    _, results = scored(scorer, asked, tmp_path)
    assert [len(results.read_text().splitlines()), len(asked.items)] == [6, 7]
