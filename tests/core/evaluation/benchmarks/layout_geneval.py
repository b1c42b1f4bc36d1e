"""Small files in GenEval's own layout."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

REQUESTS = [
    {"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a photo of a dog"},
    {"tag": "two_object", "include": [{"class": "cup", "count": 1}, {"class": "tv remote", "count": 1}],
     "prompt": "a photo of a cup\nand a “tv remote” 遥控器"},
    {"tag": "counting", "include": [{"class": "clock", "count": 2}], "exclude": [{"class": "clock", "count": 3}],
     "prompt": "a photo of two clocks"},
    {"tag": "colors", "include": [{"class": "bus", "count": 1, "color": "blue"}], "prompt": "a photo of a blue bus"},
    {"tag": "position", "include": [{"class": "cat", "count": 1},
                                    {"class": "cow", "count": 1, "position": ["left of", 0]}],
     "prompt": "a photo of a cow left of a cat"},
    {"tag": "color_attr", "include": [{"class": "vase", "count": 1, "color": "red"},
                                      {"class": "apple", "count": 1, "color": "white"}],
     "prompt": "a photo of a red vase and a white apple"},
    {"tag": "single_object", "include": [{"class": "kite", "count": 1}], "prompt": "a photo of a kite"},
]  # fmt: skip


def write_requests(folder: Path) -> Path:
    file = folder / "evaluation_metadata.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in REQUESTS), "utf-8")
    return file


def write_results(folder: Path, ids: Sequence[str]) -> Path:
    """As `evaluate_images.py` writes them; every second image is correct."""
    lines = []
    for number, id in enumerate(ids):
        record = REQUESTS[int(id[:5])]
        lines.append({
            "filename": f"/images/{id[:5]}/samples/000{id[-1]}.png", "tag": record["tag"], "prompt": record["prompt"],
            "correct": number % 2 == 0, "reason": "" if number % 2 == 0 else "expected dog>=1, found 0",
            "metadata": json.dumps(record), "details": "{}",
        })  # fmt: skip
    file = folder / "results.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return file
