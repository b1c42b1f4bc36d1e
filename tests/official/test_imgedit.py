"""ImgEdit's own basic_bench.py, step1_get_avgscore.py and step2_typescore.py read what we export.

Stood in for: the address "url" that basic_bench.py has in its source (sitecustomize gives its OpenAI client that of the
judge on loopback). All else is official, its prompts and its edit types too.
"""

from __future__ import annotations

import base64
import io
import json
import zlib

import pytest

from tests.core.evaluation.benchmarks import layout_imgedit as layout
from tests.official.harness import ANSWERS, exported, judge, official, run

STANDIN = """
import os, openai
begin = openai.OpenAI.__init__
def init(self, *, api_key, base_url):
    begin(self, api_key=api_key, base_url=os.environ["JUDGE"], max_retries=0)
openai.OpenAI.__init__ = init
"""


@pytest.fixture
def scored(tmp_path):
    """Runs all three scripts on requests and images; returns the folder of what they wrote, and what was asked."""
    folder = official("PKU-YuanGroup+ImgEdit") / "Benchmark/Basic"
    (tmp_path / "standins").mkdir()
    (tmp_path / "standins/sitecustomize.py").write_text(STANDIN)

    def reply(body):
        text, before, after = body["messages"][0]["content"]
        number = 1 + zlib.crc32(after["image_url"]["url"].encode()) % 5
        aspects = [line.split(":")[0] for line in text["text"].splitlines() if line.endswith("A number from 1 to 5.")]
        assert len(aspects) == 3 and before["image_url"]["url"] != after["image_url"]["url"]
        lines = [f"{aspect}: {max(1, number - k)}" for k, aspect in enumerate(aspects)]
        return "\n".join(["Brief reasoning: as it is.", *lines])

    def score(requests, images):
        with judge(reply) as server:
            env = {"JUDGE": server.url, "PYTHONPATH": str(tmp_path / "standins")}
            said = run(
                folder, "basic_bench.py", "--result_img_folder", images, "--edit_json", requests,
                "--origin_img_root", requests.parent, "--prompts_json", "prompts.json", "--num_processes", 4, env=env,
            )  # fmt: skip
        assert "Error" not in said and "not found" not in said
        run(folder, "step1_get_avgscore.py", "--result_json", images / "result.json",
            "--average_score_json", tmp_path / "average_score.json")  # fmt: skip
        run(folder, "step2_typescore.py", "--average_score_json", tmp_path / "average_score.json",
            "--basic_edit", requests, "--typescore_json", tmp_path / "typescore.json")  # fmt: skip
        return server.asked

    return score


@pytest.mark.parametrize("by", ANSWERS)
def test_every_edit_is_scored(by, scored, tmp_path):
    asked = exported("imgedit", tmp_path, by)
    requests = scored(asked.requests, asked.place)
    assert len(requests) == len(layout.REQUESTS)
    for body in requests:
        for part in body["messages"][0]["content"][1:]:
            from PIL import Image

            Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].partition(",")[2]))).load()
    for place in (asked.place, tmp_path / "average_score.json"):
        scores, summary = asked.back(place)
        official_scores = json.loads((tmp_path / "average_score.json").read_text())
        assert {score.id: score.values["score"] for score in scores} == official_scores
        types = json.loads((tmp_path / "typescore.json").read_text())
        assert len(types) == 9 and len(set(types.values())) > 2
        assert {kind: round(summary[f"{kind}: score"], 2) for kind in types} == types
    scores, _ = asked.back(asked.place)
    assert all(score.values["instruction"] >= score.values["naturalness"] for score in scores)
