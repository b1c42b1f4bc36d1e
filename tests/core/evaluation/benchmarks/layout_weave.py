"""Small files in WEAVE's own layout: several turns, texts and images in turn, images in folders and as JPEG."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def user(content: str, kind: str = "text") -> dict:
    return {"role": "user", "type": kind, "content": content}


def made(k: int, **key_point: str) -> dict:
    return {"role": "assistant", "type": "image", "content": f"Image #{k}", "key_point": key_point}


def said(content: str, key_point: dict | None = None) -> dict:
    return {"role": "assistant", "type": "text", "content": content, "key_point": key_point}


REQUESTS = [
    {
        "idx": 0, "domain": "recall", "images": ["images/r_1.jpg", "images/r_2.jpg", "images/r_3.png"],
        "chats": [
            user("Paint the wall behind Image #1 \"blue\".\nÜnïcode 彗星."),
            made(2, **{"GT #1": "The wall of <image> is blue."}),
            user("In Image #2 , use the wall of Image #1 again."),
            made(3, **{"GT #1": "The wall is as in <image>.", "Image #2": "Who is as in <image>.", "note": "No text."}),
        ],
    },
    {
        "idx": 1, "domain": "optics", "images": ["images/o/lens.png", "images/o/out.JPG"],
        "chats": [
            user("What is Image #1 ?"), said("A lens."),
            user("Remove it from Image #1."), made(2, **{"Image #1": "<image> without a lens."}),
            user("Why?"), said("You asked.", {}),
        ],
    },
    {
        "idx": "m/2", "domain": "maze", "images": ["images/maze.jpeg"],
        "chats": [user("Where is the way out of Image #1 ?", "image"), said("On the left.", {})],
    },
    {
        "idx": 3, "domain": "chemistry", "images": ["images/c_1.png", "images/c_2.jpg"],
        "chats": [
            user("Draw water."), made(1, **{"GT #1": "Like <image>."}),
            user("What is it made of?"), said("Hydrogen and oxygen."),
            user("Turn Image #1 ."), made(2, **{"Image #1": "<image>, turned."}),
        ],
    },
    {
        "idx": 4, "domain": "fusion", "images": ["a.png", "b.png", "ab.png"],
        "chats": [
            user("Put Image #2 into Image #1."),
            made(3, **{"GT #1": "<image> is the place.", "GT #2": "Who is in it is from <image>."}),
        ],
    },
]  # fmt: skip


def write_requests(folder: Path) -> Path:
    for number, request in enumerate(REQUESTS):
        for k, name in enumerate(request["images"]):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(10 * number + k).integers(0, 255, (20, 30, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name)
    file = folder / "test.json"
    file.write_text(json.dumps(REQUESTS, ensure_ascii=False), "utf-8")
    return file


def write_results(folder: Path, ids: Sequence[str]) -> Path:
    """As `eval/main.py` writes them."""
    lines = []
    for number, request in enumerate(request for request in REQUESTS if str(request["idx"]) in ids):
        line = {"idx": request["idx"], "domain": request["domain"]}
        for turn, chat in enumerate(request["chats"][1::2]):
            metrics = ["accuracy"] if chat["type"] == "text" else ["key_point", "visual_consistency", "image_quality"]
            line[f"turn {turn}"] = {
                metric: {"score": 5 if chat["type"] == "text" else (number + 3 * turn + k) % 11, "reasoning": "seen"}
                for k, metric in enumerate(metrics)
            }
        lines.append(line)
    file = folder / "metrics.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return file
