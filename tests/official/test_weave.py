"""WEAVE's own scorer (github.com/weichow23/weave, eval/), unchanged, reads what we export.

Its config.py is a form to fill in (it is no Python before that) and lacks DATASET_PATH, which the scorer imports: ours
stands in front of it. The judge is a stand-in on loopback.
"""

from __future__ import annotations

import json
import random
import threading
from pathlib import Path
from typing import Any

import pytest

from duogen_core.evaluation.benchmarks.weave import GROUPS
from tests.official.harness import ANSWERS, Exported, exported, judge, official, run

CONFIG = """
ROOT_PATH = DATASET_PATH = {data!r}
OPENAI_MODEL, AZURE_API_KEY, AZURE_ENDPOINT = "judge", "none", {url!r}
WEAVE_DOMAIN = {groups!r}
WEAVE_METRICS = {{"img": ["key_point", "visual_consistency", "image_quality"], "txt": ["accuracy"]}}
"""
START = """
import runpy, sys
sys.path[:0] = sys.argv[1:3]  # our config before theirs
sys.argv = sys.argv[3:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Scoring:
    """Another score for every question, in the form that it is asked for; counts the images that it is shown."""

    def __init__(self) -> None:
        self.random = random.Random(1)
        self.lock = threading.Lock()
        self.shown: list[int] = []

    def __call__(self, body: dict[str, Any]) -> str:
        parts = body["messages"][0]["content"]
        text = " ".join(part["text"] for part in parts if part["type"] == "text")
        with self.lock:
            score = self.random.choice([0, 5, 10]) if "Standard Answer is" in text else self.random.randint(0, 10)
            self.shown.append(sum(part["type"] == "image_url" for part in parts))
        return "```json\n" + json.dumps({"score": score, "reasoning": "seen"}) + "\n```"


def scored(scorer: Path, asked: Exported, folder: Path, mode: str) -> tuple[str, Path, Scoring]:
    front, scoring = folder / "front", Scoring()
    front.mkdir(exist_ok=True)
    start = ("-c", START, front, scorer / "eval")
    with judge(scoring) as server:
        groups = {group: list(domains) for group, domains in GROUPS.items()}
        values = {"data": str(asked.requests.parent), "url": f"{server.url}/chat/completions", "groups": groups}
        (front / "config.py").write_text(CONFIG.format(**values))
        printed = run(
            folder, *start, scorer / "eval/main.py", "--input_dir", asked.place, "--output_dir", folder / mode,
            "--mode", mode,
        )  # fmt: skip
        printed += run(folder, *start, scorer / "eval/summarize.py", "--metrics_file", folder / mode / "metrics.jsonl")
    return printed, folder / mode, scoring


@pytest.mark.parametrize("by", ANSWERS)
@pytest.mark.parametrize("mode", ["umm", "img", "txt"])
def test_every_answer_is_scored_and_summed_up(mode, by, tmp_path):
    scorer = official("weichow23+weave")
    asked = exported("weave", tmp_path, by)
    printed, results, scoring = scored(scorer, asked, tmp_path, mode)
    assert f"{len(asked.items)} successful, 0 failed" in printed
    for fault in ("Error", "failed:", "Traceback", "Warning"):
        assert fault not in printed
    lines = [json.loads(line) for line in (results / "metrics.jsonl").read_text().splitlines()]
    turns = {f"{line['idx']} {key}": turn for line in lines for key, turn in line.items() if key.startswith("turn ")}
    images, texts = {"key_point", "visual_consistency", "image_quality"}, {"accuracy"}
    for item in asked.items:
        for number in range(1 + len(item.later)):
            due = images if item.due(number) else texts
            due = due if mode == "umm" or due == {"img": images, "txt": texts}[mode] else set()
            assert set(turns[f"{item.id} turn {number}"]) == due
    if mode == "umm":  # every image that a requirement names was found: one, and as many as are named
        assert sorted(scoring.shown) == sorted([0] * 4 + [1] * 6 + [2, 3, 2, 2, 2, 3] * 2)
    _, figures = asked.back(results / "metrics.jsonl")
    theirs = json.loads((results / "result.jsonl").read_text())
    assert figures["overall"] == theirs["overall"]["AVG"]
    expected = {"overall": theirs["overall"]["AVG"], **theirs["overall"]["metrics"]}
    for name, found in (theirs["domains"] | theirs["categories"]).items():
        numbers = {"overall": found["AVG"], **found["categories"]}
        expected |= {f"{name}: {metric}": number for metric, number in numbers.items() if number != "No data"}
    assert figures == expected and len(figures) >= 10
