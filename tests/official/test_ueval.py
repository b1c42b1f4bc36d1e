"""UEval's own scorer (github.com/zlab-princeton/UEval, `ueval_eval.py`), unchanged, reads what we export.

It asks Gemini through google-genai: here that is a server on loopback which speaks of that interface what the scorer
needs (answers, uploaded files, cached prompts), with the scorer's caches and without them. `datasets` loads the
requests from a local folder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from typing import Any

import pytest

from tests.official.harness import exported, official, run, serving


class Gemini:
    """Meets every second criterion, is not sure of every third; counts the images it is shown."""

    def __init__(self) -> None:
        self.url = ""
        self.judged: list[str] = []
        self.images = 0
        self.uploads = 0
        self.caches = 0

    def __call__(self, method: str, path: str, headers: Mapping[str, str], data: bytes) -> tuple[dict[str, str], Any]:
        if method == "DELETE":
            return {}, {}
        if "/upload/" in path:
            if headers.get("X-Goog-Upload-Command") == "start":
                return {"X-Goog-Upload-URL": f"{self.url}/upload/v1beta/files?upload_id=1"}, {}
            self.uploads += 1
            file = {"name": "files/one", "uri": f"{self.url}/files/one", "mimeType": "image/png", "state": "ACTIVE"}
            return {"X-Goog-Upload-Status": "final"}, {"file": file}
        body = json.loads(data)
        if "cachedContents" in path:
            self.caches += 1
            return {}, {"name": f"cachedContents/{self.caches}", "model": body["model"]}
        parts = [part for content in body["contents"] for part in content["parts"]]
        self.images += sum("inlineData" in part for part in parts)
        self.judged.append(parts[0]["text"].rpartition("# Rubric Item\n")[2].strip())
        number = len(self.judged)
        met = '"not sure"' if number % 3 == 0 else "true" if number % 2 else "false"
        said = f'```json\n{{"criteria_met": {met}, "explanation": "because of {number}"}}\n```'
        return {}, {
            "candidates": [{"content": {"role": "model", "parts": [{"text": said}]}, "finishReason": "STOP"}],
            "usageMetadata": {"promptTokenCount": 1, "candidatesTokenCount": 1, "totalTokenCount": 2},
        }


@pytest.mark.parametrize("by, cached", [("contract", False), ("contract", True), ("bundled", False)])
def test_the_official_scorer_reads_all_of_it(by, cached, tmp_path):
    scorer = official("zlab-princeton+UEval")
    asked = exported("ueval", tmp_path, by)
    (tmp_path / "data").mkdir()
    shutil.copy(asked.requests, tmp_path / "data" / "test.json")
    gemini = Gemini()
    with serving(gemini) as gemini.url:
        printed = run(
            asked.out, scorer / "ueval_eval.py",
            "--model_output_path", asked.place, "--output_path", tmp_path / "results.json",
            "--hf_dataset", tmp_path / "data", *([] if cached else ["--no_cache"]),
            env={"GEMINI_API_KEY": "none", "GOOGLE_GEMINI_BASE_URL": gemini.url, "HF_HOME": str(tmp_path / "hf")},
        )  # fmt: skip

    rubrics = [one for item in asked.items for kind in ("text", "image") for one in item.record["rubrics"][kind]]
    assert gemini.judged == rubrics
    pictures = {item.id: len(item.pictures(document)) for item, document in asked.answers}
    if cached:
        assert gemini.caches == 3  # for the second's two texts, for the images of the first and the third
        assert gemini.uploads == sum(pictures[item.id] for item in asked.items if item.record["rubrics"]["image"])
    else:
        assert gemini.images == sum(pictures[item.id] * len(item.record["rubrics"]["image"]) for item in asked.items)
    silent = [item.id for item, document in asked.answers if not item.text(document)]
    warned = [line for line in printed.splitlines() if "WARN" in line or "Error" in line or "ERROR" in line]
    assert [line for line in warned if not any(f"Missing text answer for id={id}" in line for id in silent)] == []

    scores, summary = asked.back(tmp_path / "results.json")
    theirs = json.loads((tmp_path / "results.json").read_text("utf-8"))
    assert [item["text_answer"] for item in theirs["items"]] == [
        item.text(document).strip() for item, document in asked.answers
    ]
    assert theirs["summary"]["num_items"] == len(asked.items)
    assert summary["text"] == pytest.approx(theirs["summary"]["text_avg_rate"], abs=1e-12)
    assert summary["image"] == pytest.approx(theirs["summary"]["image_avg_rate"], abs=1e-12)
    assert 0 < summary["overall"] < 1
    assert any("because of" in reason for score in scores for reason in score.reasons.values())
