"""Small files in CoMM's own layout: test_data.pth and images/; guides of one to four steps, one without images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

# (data_id, title, steps); a number is an image. Where a guide has one step alone, it has no task3.
GUIDES = [
    ("wiki_1", "“Boats” (1) and <IMAGE>, 彗星", [["Fold (3) it.\n\nWell.", 1], [2, "Turn it."], ["Let it swim.", 3]]),
    ("wiki_2", None, [["Only one.", 4]]),
    ("story-3", "a fox", [["It sleeps.", 5, 6], ["It wakes (2) up."], [7], ["It runs.", 8, "It eats."]]),
    ("empty.4", "nothing to see", [["No image."], ["None here, either."]]),
    ("wiki_5", "hats", [[9, "Cut."]]),
    ("wiki_6", "kites", [["Glue.", 10], ["Fly.", 11]]),
    ("wiki_7", "soup", [["Cook.", 12]]),
    ("wiki_8", "knots", [["Tie.", 13], ["Pull.", 14]]),
]
TASKS_OF = {
    id: [task for task in ("task1", "task2", "task3", "task4") if task != "task3" or len(steps) > 1]
    for id, _, steps in GUIDES
    if id != "empty.4"
}


def guides(folder: Path) -> list[dict]:
    (folder / "images" / "x").mkdir(parents=True)
    found = []
    for id, title, steps in GUIDES:
        step_info = []
        for step in steps:
            step_info.append([{"type": "text", "content": one} if isinstance(one, str) else
                              {"type": "image", "image_path": f"x/{one}.{'png' if one % 3 else 'jpg'}", "url": "gone"}
                              for one in step])  # fmt: skip
            for one in step_info[-1]:
                if one["type"] == "image":
                    seed = sum(one["image_path"].encode())
                    pixels = np.random.default_rng(seed).integers(0, 255, (20, 30, 3), np.uint8)
                    Image.fromarray(pixels).save(folder / "images" / one["image_path"])
        found.append(
            {"data_id": id, "dataset_type": "wiki", "title": title, "summary_info": [], "step_info": step_info}
        )
    return found


def write_requests(folder: Path) -> Path:
    import torch

    file = folder / "test_data.pth"
    torch.save(guides(folder), file)
    return file


def write_results(folder: Path, ids: Sequence[str]) -> Path:
    """As `eval_metric.py` writes them: results/MODEL/<two folders>/<sample>/, in other names for each task."""
    for number, id in enumerate(ids):
        place = folder / "results" / "tiny" / "some" / "out" / id
        place.mkdir(parents=True)
        consistency = {
            "style_consistency": 9,
            "entity_consistency": 8,
            "trend_consistency": "NA",
            "overall_consistency": None,
        }
        if id.endswith("task1"):
            value = {"Completeness": {"Summarize": "", "Justification": "", "Score": number % 11},
                     "Text Fidelity to Image": {"overall_score": 7, "Justification": ""}}  # fmt: skip
            (place / "completeness_and_text_fidelity.json").write_text(json.dumps(value))
            continue
        value = {"coherence_score": consistency, "text fidelity to images": {"Score": 5, "Justification": ""}}
        if id.endswith("task2"):
            value["image quality"] = {"Score": number % 11, "Justification": number % 11}
        else:
            value |= {
                "completeness": {"Score": 4, "Justification": ""},
                "Image_Quality": {"Score": 6, "Justification": ""},
            }
        (place / "evaluation_results.json").write_text(json.dumps(value))
        for name in ("coherence_and_completeness", "texts_to_image_descriptions", "descriptions_gt_images_consistency"):
            (place / f"{name}.json").write_text("{}")
    return folder / "results" / "tiny"
