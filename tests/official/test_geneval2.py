"""GenEval 2's own evaluation.py and soft_tifa_analysis.py read what we export; the same figures come out.

Stood in for: transformers' Qwen3-VL (of each image a probability by its first pixel and the question's length), the
two functions of torch that the script takes, and scipy's geometric mean. All else is official.
"""

from __future__ import annotations

import json
import re

import pytest

from tests.official.harness import ANSWERS, exported, official, run

STANDINS = {
    "torch.py": """
class nn:
    class functional:
        softmax = staticmethod(lambda scores, dim: scores)
def argmax(scores):
    return scores
""",
    "scipy/__init__.py": "",
    "scipy/stats.py": """
import statistics
gmean = statistics.geometric_mean
""",
    "transformers.py": """
from PIL import Image
AutoModelForCausalLM = GenerationConfig = AutoTokenizer = None
class Probability(float):
    def item(self):
        return float(self)
class Scores:
    def __init__(self, value):
        self.value = value
    def __getitem__(self, place):
        return Probability(self.value)
class Inputs(dict):
    def to(self, device):
        return self
class AutoProcessor:
    from_pretrained = classmethod(lambda cls, name, **options: cls())
    tokenizer = property(lambda self: self)
    def encode(self, text):
        return [0]
    def apply_chat_template(self, messages, **options):
        picture, question = messages[0]["content"]
        with Image.open(picture["image"]) as image:
            image.load()
            return Inputs(value=(1 + image.getpixel((0, 0))[0] + len(question["text"]) % 7) / 2000)
    def batch_decode(self, tokens):
        return ["yes"]
class Qwen3VLForConditionalGeneration:
    device = "cpu"
    from_pretrained = classmethod(lambda cls, name, **options: cls())
    def generate(self, value, **options):
        class Outputs:
            scores = [Scores(value)]
        return Outputs
""",
}


@pytest.mark.parametrize("by", ANSWERS)
@pytest.mark.parametrize("method", ["soft_tifa_am", "soft_tifa_gm", "tifa", "vqascore"])
def test_every_prompt_is_scored(method, by, tmp_path):
    folder = official("facebookresearch+GenEval2")
    for name, text in STANDINS.items():
        (tmp_path / "standins" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "standins" / name).write_text(text)
    asked = exported("geneval2", tmp_path, by)
    results = tmp_path / "score_lists.json"
    env = {"PYTHONPATH": str(tmp_path / "standins")}
    printed = run(
        asked.out, folder / "evaluation.py", "--benchmark_data", asked.requests, "--image_filepath_data", asked.place,
        "--method", method, "--output_file", results, env=env,
    )  # fmt: skip
    scores, summary = asked.back(results)
    total = {"soft_tifa_am": "Soft-TIFA AM", "tifa": "Soft-TIFA AM", "vqascore": "VQAScore"}.get(method, "Soft-TIFA GM")
    assert float(re.search(r"Score: ([\d.]+)", printed)[1]) == pytest.approx(summary[total], abs=1e-9)
    assert len(scores) == len(json.loads(results.read_text())) == 8
    if not method.startswith("soft"):
        return
    printed = run(
        asked.out,
        folder / "soft_tifa_analysis.py",
        "--benchmark_data",
        asked.requests,
        "--score_data",
        results,
        env=env,
    )
    for skill in ("Object", "Attribute", "Count", "Position", "Verb"):
        figure = float(re.search(rf"{skill}:\n([\d.]+)", printed)[1])
        assert figure == pytest.approx(summary[f"{skill.lower()}: Soft-TIFA AM"], abs=0.005001)
    for atoms in range(3, 11):
        figure = float(re.search(rf"Atomicity={atoms}\n([\d.]+)", printed)[1])
        assert figure == pytest.approx(summary[f"{atoms} atoms: Soft-TIFA GM"], abs=0.005001)
