"""Small files in InterleavedBench's own layout (of results, in ours: theirs was not seen)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

ASPECTS = ("text quality", "perceptual quality", "image coherence", "text-image coherence", "helpfulness")
REQUESTS = [
    ("wikihow_next_step_0_1", "wikihow_next_step", "<BEGIN> Step 1: “mix” <image>. Step 2:\nstir <image> What is next?",
     ["wiki/1_0.png", "wiki/1_1.png", "wiki/1_2.png"], "Bake. <image>"),
    ("marketing_2/a", "marketing_generation", "Advertise a {lamp} for $5, 彗星.", [], "Buy!"),
    ("edit_3", "sequential_image_editing", "<image> Make it \"red\".", ["edit/3 a.png", "edit/3 b.png"], "<image>"),
    ("report_4", "report_generation", "Report on bees with images.", [], "Bees."),
]  # fmt: skip


def write_requests(folder: Path) -> Path:
    entries = []
    for id, task, asked, names, known in REQUESTS:
        for number, name in enumerate(names):
            image = folder / "zipped_images" / name
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.random.default_rng(number).integers(0, 255, (20, 30, 3), np.uint8)).save(image)
        turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": known}]
        entries.append({"id": id, "image": names, "task_name": task, "conversations": turns, "category": [],
                        "goal": "a goal"})  # fmt: skip
    file = folder / "interleaved_bench.json"
    file.write_text(json.dumps(entries, ensure_ascii=False), "utf-8")
    return file


def write_results(folder: Path, ids: Sequence[str]) -> Path:
    entries = [
        {"id": id, **{name: (number * number + k) % 6 for k, name in enumerate(ASPECTS)}}
        for number, id in enumerate(ids)
    ]
    file = folder / "results.json"
    file.write_text(json.dumps(entries), "utf-8")
    return file
