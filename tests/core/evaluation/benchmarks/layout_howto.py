"""Small files in the layout of our own how-to set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from duogen_core.document import Picture

GUIDES = {
    "Cooking and food": {
        "Breakfast": [
            'How do I boil an egg?\nTwo of them: "soft" ones, for Zoë 彗星.',
            {"text": "Toast, in 2 steps", "steps": 2},
        ],
        "Bread & 粉 (a/b ../c)": [{"text": "Bread in at most 3 steps", "most": 3}],
    },
    "Crafts": {"Paper": [{"text": "A hat, 2 pictures", "images": 2}]},
}
DISHES = ["A red soup with a white swirl: {request} of the day.", {"image": "photos/soup.png"}]


def write_requests(folder: Path) -> Path:
    (folder / "photos").mkdir()
    (folder / "photos" / "soup.png").write_bytes(Picture(np.full((16, 20, 3), 90, np.uint8)).to_png())
    file = folder / "howto.yaml"  # JSON is YAML, too
    prompts = {"guide_prompt": "{request}\n\nWith images.", "dish_prompt": "Seen: {dish}\nHow is it made?"}
    file.write_text(json.dumps({"version": 1, **prompts, "guides": GUIDES, "dishes": DISHES}), "utf-8")
    return file


def write_results(folder: Path, ids: Sequence[str]) -> Path:
    """As `evaluate judge` leaves them: the first answer is good, the last has no images."""
    cases = []
    for number, id in enumerate(ids):
        values = {"text completeness": 5 if number == 0 else 3, "image quality": 4, "steps illustrated": 0.5}
        if number == len(ids) - 1:
            values |= {"image quality": 0, "image consistency": None}
        cases.append({"id": id, "values": values, "reasons": {"image quality": "It is “sharp”."}})
    file = folder / "results.json"
    file.write_text(
        json.dumps({"format": "duogen-benchmark", "version": 1, "benchmark": "howto", "cases": cases}), "utf-8"
    )
    return file
