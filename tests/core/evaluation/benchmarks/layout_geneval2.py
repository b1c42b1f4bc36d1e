"""Small files in GenEval 2's own layout; prompts and questions are ours."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

# The official analysis divides by the number of prompts with 3 to 10 atoms, and of questions of each skill.
REQUESTS = [
    {"prompt": "a blue mug and a snail", "atom_count": 3,
     "vqa_list": [["How many mugs are in the image?", "one"], ["Is the mug blue?", "Yes"],
                  ["Are there any snails in the image?", "Yes"]],
     "skills": ["count", "attribute", "object"]},
    {"prompt": "seven “tin” lamps\nbeside a goose 鵝", "atom_count": 4,
     "vqa_list": [["How many lamps are in the image?", "seven"], ["Are the lamps \"tin\"?", "Yes"],
                  ["Are the lamps beside the goose?", "Yes"]],
     "skills": ["count", "attribute", "position"]},
    {"prompt": "two otters pushing a cart", "atom_count": 5,
     "vqa_list": [["How many otters are in the image?", "two"], ["Are the otters pushing the cart?", "Yes"]],
     "skills": ["count", "verb"]},
    *({"prompt": f"a photo {n} of a ladder", "atom_count": n,
       "vqa_list": [["Are there any ladders in the image?", "Yes"], ["How many ladders are in the image?", "one"]],
       "skills": ["object", "count"]} for n in range(6, 11)),
]  # fmt: skip


def write_requests(folder: Path) -> Path:
    file = folder / "geneval2_data.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in REQUESTS), "utf-8")
    return file


def write_results(folder: Path, ids: Sequence[str]) -> Path:
    """As `evaluation.py --method soft_tifa_gm` writes them."""
    lists = [[round(0.9 / (k + 1), 3) for k in range(len(REQUESTS[int(id)]["vqa_list"]))] for id in ids]
    file = folder / "score_lists.json"
    file.write_text(json.dumps(lists), "utf-8")
    return file
