"""Small files in RealUnify's own layout, with requests of our own (its data are for academic use only)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

UEG = [
    ("world_knowledge", "The fruit that fell on \"Newton's\" head,\non a table.", ["Is there an apple?", "A table?"]),
    ("commonsense_reasoning", "What a glass of water becomes at -20 °C.", ["Is there ice?"]),
    ("code_to_image", "for i in range(3): circle(i)", ["Are there three circles?", "Is there a square?"]),
    ("logical_reasoning", "红色的球在蓝色的左边。", ["Is the red ball left of the blue one?"]),
]  # fmt: skip
GEU = [
    ("mental_tracking", "Turn the arrow by 90°. Where does it point?", ["up", "down", "left", "right"], "C"),
    ("mental_reconstruction", "Put the pieces in order. What is it?", ["a cat", "a dog", "a car", "a hat"], "A"),
    ("attentional_focusing", "How many small dots are there?", ["1", "2", "3", "4"], "D"),
    ("cognitive_navigation", "Which way leads out?", ["left", "right"], "B"),
]


def write_requests(folder: Path, kind: str = "UEG_direct", times: int = 1) -> Path:
    """times: how often every one stands there, each time with an index of its own."""
    entries = []
    for index, number in enumerate(list(range(4)) * times):
        if kind.startswith("UEG"):
            task, prompt, asked = UEG[number]
            entry = {"prompt": prompt, "question_list": [
                {"question": one, "answer": "no" if "square" in one else "yes"} for one in asked
            ]}  # fmt: skip
            if kind == "UEG_step":
                entry["new_prompt"] = f"Write a prompt that says exactly what to draw: {prompt}"
        else:
            task, question, options, answer = GEU[number]
            name = f"./image/{task}/{number}.png"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 255, (24, 32, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name)
            lines = "\n".join(f"{letter}. {option}" for letter, option in zip("ABCD", options))
            entry = {"input_image": name, "question": question, "option": options, "answer": answer,
                     "evaluation_prompt": f"{question}\n{lines}\nAnswer with one letter."}  # fmt: skip
            if kind == "GEU_step":
                entry["edit_prompt"] = f"Change the image so that it helps to answer: {question}"
        entries.append({"index": index, "task_type": task, **entry})
    file = folder / f"{kind}.json"
    file.write_text(json.dumps(entries), "utf-8")
    return file


def write_results(folder: Path, ids: Sequence[str]) -> Path:
    """As `eval_generation.py` writes them: in any order, only the first one right."""
    entries = []
    for number, id in enumerate(ids):
        task, index = id.rsplit("-", 1)
        entries.append({"index": int(index), "task_type": task, "generated_image": "x.png", "score": int(number == 0)})
    file = folder / "duogen-tiny.json"
    file.write_text(json.dumps(entries[::-1]), "utf-8")
    return file
