"""Small files in ISG-Bench's own layout: images beside them, questions that wait for others, a category without any."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

BOTH = ["text", "image", "text", "image", "text"]  # as the contract's test answers, where two images are due
REQUESTS = [
    ("0000", "HowTo", "Show in two images how to fold a \"boat\".\nÜnïcode 彗星.", 1, BOTH),
    ("0001", "Prediction", "What comes next? One image.", 2, ["text", "image", "text"]),
    ("0002", "Historical", "What is in the image?", 1, ["text"]),
    ("0003", "painting", "Paint it step by step.", 0, ["image", "text", "image"]),
    ("0004", "Scientific", "Explain in two images.", 0, BOTH),
    ("a/b", "3D_object", "Turn it.", 1, ["image", "image"]),
    ("0006", "HowTo", "Fold a hat.", 0, BOTH),
]  # fmt: skip
QUESTIONS = [
    ("<gen_text1>", "<gen_img1>", "tells", "Does <gen_text1> tell of this image?"),
    ("<gen_img1>", "<gen_img2>", "precedes", "Does <gen_img1> come before <gen_img2>?"),
    ("<gen_text1>", "<gen_text2>", "precedes", "Does <gen_text1> come before <gen_text2>?"),
    ("<gen_img1>", "<query_text1>", "shows", "Does <gen_img1> show the text?"),
    ("<gen_text1>", "<all>", "tells", "Is <gen_text1> about all?"),
    ("<gen_text1>",),
]


def _picture(folder: Path, name: str) -> str:
    (folder / "images").mkdir(exist_ok=True)
    seed = sum(name.encode())
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (20, 30, 3), np.uint8)).save(folder / "images" / name)
    return f"images/{name}"


def write_requests(folder: Path) -> Path:
    lines = []
    for number, (id, category, text, given, kinds) in enumerate(REQUESTS):
        query = [{"type": "text", "content": text}]
        query += [{"type": "image", "content": _picture(folder, f"{number:04}_q{k + 1}.png")} for k in range(given)]
        golden = [
            {
                "type": kind,
                "content": f"Good text {k}." if kind == "text" else _picture(folder, f"{number:04}_g{k}.png"),
            }
            for k, kind in enumerate(kinds)
        ]
        names = ("subject", "object", "relation", "Question")
        blocks = [dict(zip(names, question)) for question in QUESTIONS]
        predict = {
            "structure": {"Query": [], "Answer": []}, "block_tuple": {"relation": []},
            "block_qa": {"questions": blocks}, "image_tuple": [],
            "image_qa": {"questions": [
                {"image": "<gen_img1>", "Question": "Is there paper?", "id": 0, "Preliminary": []},
                {"image": "<gen_img1>", "Question": "Is it white?", "id": 1, "Preliminary": [0]},
                {"image": "<gen_img2>", "Question": "Is it folded?", "id": 2, "Preliminary": []},
                {"image": "<gen_img9>", "Question": "Is it there?", "id": 3, "Preliminary": []},
            ]},
        }  # fmt: skip
        if category == "Historical":
            del predict["image_qa"]
        if id == "0004":
            predict["block_qa"] = {"questions": []}
        lines.append({"id": id, "Category": category, "Query": query, "Golden": golden, "predict": predict})
    file = folder / "ISG-Bench.jsonl"
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), "utf-8")
    return file


def write_results(folder: Path, ids: Sequence[str]) -> Path:
    """As `ISG-eval.py` writes them: the first has all, the second no result, the others a wrong structure."""
    lines = []
    for number, id in enumerate(ids):
        output = [{"type": "text", "content": "Fold."}, {"type": "image", "content": "/somewhere/1.png"}]
        if number == 1:
            lines.append({"id": id, "output": None})
            continue
        result = {"structure": number == 0, "holistic": {"overall_score": 7, "final_thoughts": "Good."}}
        if number == 0:
            result["image"] = [{"judge": {"Judge": "Yes"}}, {}, {"judge": {"Judge": "no"}}, {"judge": None}]
            result["block"] = [{"VQA_judge_Score": {"Judge": 8, "Reason": "r"}}, {"VQA_judge_Score": {"Judge": 5}}, {}]
        lines.append({"id": id, "output": output, "result": result})
    file = folder / "submission_0_7_judge.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return file
