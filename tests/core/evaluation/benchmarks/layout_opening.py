"""Small files in OpenING's own layout."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

METRICS = ("Correctness", "Image-Text Coherency", "Multi-step Consistency", "Content Quality",
           "Human Preference Alignment", "Completeness", "Content Richness")  # fmt: skip
REQUESTS = [
    ("0101001", "Storytelling", [("<BEGIN> Go on with the story. <image>", "tale")]),
    ("0102002", "Storytelling", [("<BEGIN> What is “this” <image> and\nwhat is it for? 彗星", "thing"),
                                 ("Add a drawing, ", None), ("then one like <image>", "other one")]),
    ("1502010", "Multimodal Brainstorming", [("<BEGIN> Ideas for a \"quiet\" desk?", None)]),
    ("1502046", "Multimodal Brainstorming", [("<BEGIN> One sketch with {braces} and $5.", None)]),
]  # fmt: skip


def write_requests(folder: Path) -> Path:
    lines = []
    for number, (uid, task, elements) in enumerate(REQUESTS):
        inputs = []
        for text, name in elements:
            image = name and f"./images/{task} Tasks/{name}-i-1.jpg"
            if image:
                (folder / image).parent.mkdir(parents=True, exist_ok=True)
                pixels = np.random.default_rng(len(name)).integers(0, 255, (20, 30, 3), np.uint8)
                Image.fromarray(pixels).save(folder / image)
            inputs.append({"image": image, "text": text})
        lines.append({
            "total_uid": uid, "meta_task_id": uid[:2], "meta_task_name": task, "subtask_id": "2",
            "subtask_name": f"{task} Tasks", "data_id": str(number),
            "conversations": [{"input": inputs}, {"output": [{"image": "./images/gone.jpg", "text": "Gold. <image>"}]}],
        })  # fmt: skip
    file = folder / "test_data.jsonl"
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), "utf-8")
    return file


def write_results(folder: Path, ids: Sequence[str]) -> Path:
    """As `GPT_score_A.py --mode output_dir` writes them."""
    entries = []
    for number, id in enumerate(ids):
        score = {name: {"Score": (number + k) % 11, "Justification": f"as {k}"} for k, name in enumerate(METRICS)}
        entries.append({"instance_id": id, "model": {"name": "duogen-tiny"}, "score": score})
    file = folder / "gpt-score_results_new.json"
    file.write_text(json.dumps(entries), "utf-8")
    return file
