"""Small files in UEval's own layout."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

REQUESTS = [
    ("1", "life", "How do I fold a paper boat? Answer with text and images.", ["Says to fold in half."], ["A boat."]),
    ("2", "space", "What does a comet look like?\n\"Quotes\" and ünïcode 彗星.", ["Names ice.", "Names dust."], []),
    ("3", "art", "Draw a face.", [], ["A face is seen.", "Two eyes.", "One nose."]),
    ("a/b ../c", "tech", "What is a diode?", ["Says what it does."], ["Its symbol."]),
]  # fmt: skip


def write_requests(folder: Path) -> Path:
    names = ("id", "task", "prompt", "text_rubrics", "image_rubrics")
    entries = [{**dict(zip(names, entry)), "question_type": "open"} for entry in REQUESTS]
    file = folder / "ueval.json"
    file.write_text(json.dumps(entries), "utf-8")
    return file


def write_results(folder: Path, ids: Sequence[str]) -> Path:
    """As `ueval_eval.py` writes them; nothing met, except for the text of the first."""
    by_id = {entry[0]: entry for entry in REQUESTS}
    items = []
    for number, id in enumerate(ids):
        _, _, prompt, texts, seen = by_id[id]
        met = 1.0 if number == 0 else 0.0
        items.append({
            "id": id, "question": prompt,
            "text_results": [{"criterion": one, "criteria_met": number == 0} for one in texts],
            "image_results": [{"criterion": one, "criteria_met": "not sure"} for one in seen],
            "text_score": {"met": len(texts) * met, "total": len(texts), "rate": met if texts else None},
            "image_score": {"met": 0, "total": len(seen), "rate": 0.0 if seen else None},
        })  # fmt: skip
    file = folder / "results.json"
    file.write_text(json.dumps({"items": items, "summary": {"num_items": len(items)}}), "utf-8")
    return file
