"""Small files in MMIE's own layout."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

REQUESTS = [
    ("SA-1-tale", [("Go on with the story.\nIn “two” parts 彗星:", "images/0.png"), (None, "images/1.png")], None),
    ("PBL-2/x", [("How do I build a {shelf} for $5?", None)], None),
    ("MSR_3", [("What is the angle?", "images/0.png"), ("Answer A or B.", None)], "It is 90°: B"),
    ("PBL-4", [("How do I draw a \"fish\"?", None)], "Two arcs."),
    ("SA-5", [("4.", "images/0.png"), (None, "images/1.png"), (None, "images/2.png"), ("So?", "images/3.png")], None),
]  # fmt: skip


def write_requests(folder: Path) -> Path:
    (folder / "images").mkdir(exist_ok=True)
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 255, (20, 30, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
    entries = [
        {"id": id, "question": [{"text": text, "image": image} for text, image in question],
         "answer": [{"text": None, "image": None}], "model": "gt", "gt_answer": [{"text": known, "image": None}]}
        for id, question, known in REQUESTS
    ]  # fmt: skip
    file = folder / "mmie.json"
    file.write_text(json.dumps(entries, ensure_ascii=False), "utf-8")
    return file


def write_results(folder: Path, ids: Sequence[str]) -> Path:
    """As `main.py` writes them."""
    entries = [
        {"id": id, "model": "duogen-tiny", "question": "", "answer": "", "gt_answer": None, "images": [],
         "gpt_feedback": f"### Feedback\nGood.\n### Score\nThe final score is {number * number % 7}/6."}
        for number, id in enumerate(ids)
    ]  # fmt: skip
    file = folder / "eval_result.json"
    file.write_text(json.dumps(entries), "utf-8")
    return file
