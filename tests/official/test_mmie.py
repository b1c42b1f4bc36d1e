"""MMIE's own scorer (github.com/Lillianwei-h/MMIE, `main.py`), unchanged, reads what we export.

Its judge is an InternVL2-4B on a graphics card: torch, torchvision, decord and transformers are stood in for
(MODULES, in front by PYTHONPATH), as far as the scorer uses them. The model's stand-in writes down what it is asked and
says scores; reading, prompts, tiles of images, the loop and the averages are the scorer's.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from duogen_core.document import Picture
from tests.official.harness import ANSWERS, MODEL, exported, official, run

MODULES = {
    "torch.py": """
from types import SimpleNamespace
import numpy as np

bfloat16 = "bfloat16"
cuda = SimpleNamespace(device_count=lambda: 1)

class Tensor:
    def __init__(self, array): self.array = array
    def to(self, dtype): return self
    def cuda(self): return self
    def size(self, axis): return self.array.shape[axis]

def stack(tensors): return Tensor(np.stack([one.array for one in tensors]))
def cat(tensors, dim): return Tensor(np.concatenate([one.array for one in tensors], dim))
""",
    "torchvision/__init__.py": "",
    "torchvision/transforms/functional.py": """
class InterpolationMode:
    BICUBIC = 3
""",
    "torchvision/transforms/__init__.py": """
import numpy as np
import torch

class Compose:
    def __init__(self, steps): self.steps = steps
    def __call__(self, image):
        for step in self.steps: image = step(image)
        return image

def Lambda(function): return function
def Resize(size, interpolation): return lambda image: image.resize(size, interpolation)
def ToTensor(): return lambda image: torch.Tensor(np.asarray(image, np.float32).transpose(2, 0, 1)[:, ::32, ::32])
def Normalize(mean, std): return lambda tensor: tensor
""",
    "decord.py": "VideoReader = cpu = None",
    "transformers.py": """
import json
import os

class Judge:
    def eval(self): return self
    def chat(self, tokenizer, pixels, prompt, settings, num_patches_list, history, return_history):
        assert (pixels.size(0) if pixels else 0) == sum(num_patches_list)
        with open(os.environ["ASKED"], "a+", encoding="utf-8") as file:
            file.seek(0)
            number = len(file.readlines())
            file.write(json.dumps({"prompt": prompt, "images": len(num_patches_list)}) + "\\n")
        return f"### Feedback\\nAnswer {number}, 1 of many.\\n### Score\\n{number * 2 % 7}", None

class AutoModel:
    from_pretrained = staticmethod(lambda path, **more: Judge())

class AutoTokenizer:
    from_pretrained = staticmethod(lambda path, **more: None)
""",
}


@pytest.mark.parametrize("by", ANSWERS[:2])
def test_the_official_scorer_reads_all_of_it(by, tmp_path):
    scorer = official("Lillianwei-h+MMIE")
    asked = exported("mmie", tmp_path, by)
    for name, text in MODULES.items():
        (tmp_path / "front" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "front" / name).write_text(text, "utf-8")
    printed = run(
        tmp_path, scorer / "main.py", "--input_dir", asked.out, "--output_dir", tmp_path / "evaluated",
        env={"PYTHONPATH": str(tmp_path / "front"), "ASKED": str(tmp_path / "asked.jsonl"), "PYTHONUTF8": "1"},
    )  # fmt: skip
    assert "not found" not in printed and "Unrecogonized" not in printed

    said = [json.loads(line) for line in (tmp_path / "asked.jsonl").read_text("utf-8").splitlines()]
    results = json.loads((tmp_path / "evaluated" / "eval_result.json").read_text("utf-8"))
    assert [entry["id"] for entry in results] == [item.id for item in asked.items]
    for (item, document), one, entry in zip(asked.answers, said, results):
        asks, gives = len(item.prompt.pictures), len(item.pictures(document))
        # Three of question and answer together, but never fewer than the question has.
        assert one["images"] == len(entry["images"]) == max(asks, min(asks + gives, 3))
        assert one["prompt"].count("<image>") == one["images"]
        assert all(Path(name).is_relative_to(asked.out / "images") for name in entry["images"])
        assert entry["model"] == MODEL
        shown = 0
        for part in [*item.prompt.last_turn.parts, *item.parts(document)]:
            if isinstance(part, Picture):
                shown += 1
            elif shown < 3:  # no text after the third
                assert part.text.strip() in one["prompt"], item.id
        assert ("It is 90°: B" in one["prompt"]) == (item.category == "MSR")

    scores, summary = asked.back(tmp_path / "evaluated" / "eval_result.json")
    assert [score.values["score"] for score in scores] == [0, 2, 4, 6, 1]
    figures = dict(re.findall(r"^(AVG|SA|PBL|MSR): ([\d.]+)$", printed, re.MULTILINE))
    assert set(figures) == {"AVG", "SA", "PBL", "MSR"} and f"Sample size: {len(asked.items)}" in printed
    for name, figure in figures.items():  # rounded to three digits
        ours = summary["score" if name == "AVG" else f"{name}: score"]
        assert ours == pytest.approx(float(figure), abs=0.00051), name
