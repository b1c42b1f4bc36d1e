"""GEdit-Bench's own test_gedit_score.py and calculate_statistics.py read what we export; the same figures come out.

Stood in for: datasets.load_dataset, by the rows themselves (the script loops over what it returns, which for a dataset
with splits is their names: with the real one it breaks); the address of OpenAI, fixed in VIEScore, by the judge on
loopback (sitecustomize). The key is in a file that the script reads where it is started. All else is official.
"""

from __future__ import annotations

import json
import re
import zlib

import pytest

from duogen_core.errors import DuoGenError
from duogen_core.evaluation.benchmarks.gedit import GROUPS
from tests.official.harness import ANSWERS, MODEL, exported, judge, official, run

STANDIN = """
import json, os, requests
post = requests.post
requests.post = lambda url, **more: post(url.replace("https://api.openai.com/v1", os.environ["JUDGE"]), **more)
import datasets
datasets.load_dataset = lambda name: json.load(open(os.environ["ROWS"], encoding="utf-8"))
"""


@pytest.mark.parametrize("by", ANSWERS)
def test_every_edit_is_scored(by, tmp_path):
    folder = official("stepfun-ai+Step1X-Edit") / "GEdit-Bench"
    asked = exported("gedit", tmp_path, by)
    (tmp_path / "standins").mkdir()
    (tmp_path / "standins/sitecustomize.py").write_text(STANDIN)
    (tmp_path / "started").mkdir()
    (tmp_path / "started/secret_t2.env").write_text("a key")
    (tmp_path / "started/viescore").symlink_to(folder / "viescore")
    rows = [dict(item.record) for item in asked.items]
    (tmp_path / "rows.json").write_text(json.dumps(rows))

    env = {"PYTHONPATH": str(tmp_path / "standins"), "ROWS": str(tmp_path / "rows.json"), "JUDGE": ""}

    def reply(body):
        said, *images = body["messages"][0]["content"]
        text = said["text"] + images[-1]["image_url"]["url"]
        numbers = [zlib.crc32(f"{k}{text}".encode()) % 11 for k in (1, 2)]
        assert len(images) == (2 if "Editing instruction" in said["text"] else 1)
        return json.dumps({"score": numbers, "reasoning": "as it is"})

    def score():
        return run(
            tmp_path / "started", folder / "test_gedit_score.py", "--model_name", MODEL, "--save_path",
            asked.place.parent, env={**env, "JUDGE": server.url},
        )  # fmt: skip

    with judge(reply) as server:
        printed = score()
    assert "Skipping" not in printed and "Error" not in printed
    assert len(server.asked) == 2 * len(asked.items)
    scores, summary = asked.back(asked.place / "gpt4o/eval_results_new")
    assert len({score.values["overall"] for score in scores}) > 5

    printed = run(
        tmp_path / "started", folder / "calculate_statistics.py", "--model_name", MODEL, "--save_path",
        asked.place.parent, "--language", "en", env=env,
    )  # fmt: skip
    whole, _, intersection = printed.partition("\nIntersection:\n")
    for part, ending, average in (
        (whole, "(en)", "Average"),
        (intersection, "(en, intersection)", "Average Intersection"),
    ):
        for line in (*GROUPS, average):
            figures = [float(one) for one in re.search(rf"^{line}: (.+)$", part, re.MULTILINE)[1].split(", ")]
            kind = f"{line}: " if line in GROUPS else ""
            ours = [summary[f"{kind}{metric} {ending}"] for metric in ("semantics", "quality", "overall")]
            assert [round(one, 3) for one in ours] == figures, line

    # Stopped before its last kind, it has no file of all kinds, and judges again what the files of single kinds have.
    (asked.place / f"gpt4o/eval_results_new/{MODEL}_combined_gpt_score.csv").unlink()
    with judge(reply) as server:
        score()
    assert len(server.asked) == 2 * len(asked.items)
    with pytest.raises(DuoGenError, match="a second time"):
        asked.back(asked.place / "gpt4o/eval_results_new")
