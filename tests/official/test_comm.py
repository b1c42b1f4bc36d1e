"""CoMM's own scorer (github.com/HKUST-LongGroup/CoMM, eval/), unchanged, reads what we export, in all four tasks.

Its key is None in the source with an `assert` that it is not: Python runs without asserts (-O), and the address and the
key of the judge, a stand-in on loopback, come from the environment. It is started as a module (it imports `.utils`) in
a copy of its folder, where it writes its results.
Stood in for, in front by PYTHONPATH: torchvision (three transforms), torchmetrics (networks that measure images: FID,
Inception score, LPIPS) and pycocoevalcap (text measures in Java). Each opens what it is given. COCO's captions, whose
frame alone the scorer uses, are too large to be in every clone.
Its twenty threads are one: they share a variable that holds the system prompt, so a question may go out under another
one's, which it takes for a failure if it is lucky.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.official.harness import ANSWERS, MODEL, Exported, exported, judge, official, run

FRONT = {
    "sitecustomize.py": """
import concurrent.futures
class OneByOne:
    def __init__(self, max_workers): pass
    def submit(self, ask, *given): ask(*given)
    def shutdown(self, wait): pass
concurrent.futures.ThreadPoolExecutor = OneByOne
""",
    "torchvision/__init__.py": "from torchvision import transforms",
    "torchvision/transforms.py": """
import numpy, torch
Resize = lambda size: lambda image: image.resize(size)
ToTensor = lambda: lambda image: torch.tensor(numpy.array(image)).permute(2, 0, 1) / 255
def Compose(steps):
    def compose(image):
        for step in steps:
            image = step(image)
        return image
    return compose
""",
    "torchmetrics/__init__.py": "",
    "torchmetrics/image/__init__.py": "",
    "torchmetrics/image/metric.py": """
import torch
class Metric:
    def __init__(self, **settings): self.seen = 0
    def to(self, device): return self
    def update(self, images, real=True):
        assert_shape(images)
        self.seen += len(images)
    def __call__(self, one, other):
        return assert_shape(one) + assert_shape(other)
def assert_shape(images):
    if images.dim() != 4 or images.shape[1] != 3: raise SystemExit("no images")
    return images.mean()
class FrechetInceptionDistance(Metric):
    def compute(self): return torch.tensor(float(self.seen))
class InceptionScore(Metric):
    def compute(self): return torch.tensor(float(self.seen)), torch.tensor(0.0)
class LearnedPerceptualImagePatchSimilarity(Metric):
    pass
""",
    "torchmetrics/image/fid.py": "from torchmetrics.image.metric import FrechetInceptionDistance",
    "torchmetrics/image/inception.py": "from torchmetrics.image.metric import InceptionScore",
    "torchmetrics/image/lpip.py": "from torchmetrics.image.metric import LearnedPerceptualImagePatchSimilarity",
    "pycocoevalcap/__init__.py": "",
    "pycocoevalcap/eval.py": """
class COCOEvalCap:
    def __init__(self, truth, found): self.truth, self.found, self.params, self.eval = truth, found, {}, {}
    def evaluate(self):
        ids = self.params["image_id"]
        captions = [self.found.imgToAnns[id][0]["caption"] for id in ids]
        self.eval = {"pairs": len(ids), "words": sum(len(caption.split()) for caption in captions)}
""",
}  # fmt: skip
CONSISTENCIES = ("style_consistency", "entity_consistency", "trend_consistency", "overall_consistency")
STEPS = """
import json, pathlib, sys
from eval.utils import data_format, get_each_step_text
found = {}
for file in pathlib.Path(sys.argv[1]).glob("*/results.json"):
    record = json.loads(file.read_text())
    names = record["prediction_image_list"]
    steps, images = data_format(record["model_output"], names, str(file.parent), 0, 10)
    found[file.parent.name] = [len(get_each_step_text(record["model_output"])), images, len(names)]
print("STEPS" + json.dumps(found))
"""


class Scoring:
    """Answers each of the scorer's kinds of question in the form that its system prompt asks for, in other numbers."""

    def __init__(self) -> None:
        self.random = random.Random(1)
        self.lock = threading.Lock()

    def number(self) -> int:
        with self.lock:
            return self.random.randint(0, 10)

    def __call__(self, body: dict[str, Any]) -> str:
        system, user = (message["content"] for message in body["messages"])
        texts = "".join(part["text"] for part in user if part["type"] == "text")
        score = {"Score": self.number(), "Justification": "seen"}
        if "Predict Each Image" in system:  # one description for every image of the output
            numbers = [int(n) for n in re.findall(r"<Img_(\d+)>", texts.rpartition("OUTPUT:")[2])]
            told = {f"Content of Image {n}": f"image {n}" for n in numbers}
            value: dict[str, Any] = {"Tasks": {"Create an Interleaved Text-Image Document": told}}
        elif "image_n_score" in system:
            value = {"Consistency": {"overall_score": self.number(), "Justification": "seen"}}
        elif "Text Fidelity to Image" in system:
            value = {
                "Completeness": score,
                "Text Fidelity to Image": {"overall_score": self.number(), "Justification": ""},
            }
        else:
            overall = {name: self.number() for name in CONSISTENCIES} | {"trend_consistency": "NA"}
            value = {"scores": {"Image_Coherence": {"overall_score": overall}, "Completeness": score,
                                "Image_Quality": {**score, "Score": self.number()}}}  # fmt: skip
        return "```json\n" + json.dumps(value) + "\n```"


@pytest.fixture
def by() -> str:
    return "contract"


@pytest.fixture
def started(by: str, tmp_path: Path) -> tuple[Exported, Path, dict[str, str]]:
    """What is exported, the folder to start in, and the environment."""
    scorer = official("HKUST-LongGroup+CoMM")
    asked = exported("comm", tmp_path, by)
    shutil.copytree(scorer / "eval", tmp_path / "scorer" / "eval")
    frame = tmp_path / "scorer/eval/tot_metric/captions_val2014.json"
    if not frame.is_file():
        frame.write_text('{"info": {}, "licenses": [], "type": "captions", "images": [], "annotations": []}')
    for name, text in FRONT.items():
        (tmp_path / "front" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "front" / name).write_text(text)
    path = f"{tmp_path / 'front'}:{tmp_path / 'scorer'}"
    return asked, tmp_path / "scorer" / "eval", {"PYTHONPATH": path, "PYTHONOPTIMIZE": "1", "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("by", ANSWERS)
def test_every_answer_is_scored_and_summed_up(started):
    asked, place, env = started
    figures_printed: dict[str, float] = {}
    for task in ("task1", "task2", "task3", "task4"):
        mine = [item for item in asked.items if item.category == task]
        with judge(Scoring()) as server:
            said = run(
                place, "-m", "eval.eval_metric", "--predict_results_path", asked.place.resolve(), "--model_type", MODEL,
                "--task_type", task, "--ground_truth_path", asked.requests,
                env={**env, "OPENAI_BASE_URL": server.url},
            )  # fmt: skip
        # A request that failed would be asked up to three times, and its fault be printed.
        assert len(server.asked) == len(mine) * (1 if task == "task1" else 3), said[-3000:]
        printed = run(
            place, "cal_gpt4o_score.py", "--predict_results_path", asked.place.resolve(), "--model_type", MODEL,
            "--task_type", task, env=env,
        )  # fmt: skip
        figures_printed |= {
            f"{task}: {name}": float(number) for name, number in re.findall(r"^(.*): ([\d.]+)$", printed, re.M)
        }
    scores, figures = asked.back(place / "results" / MODEL)
    names = {
        "completeness": "completeness", "Completeness": "completeness", "Image_Quality": "image_quality",
        "image quality": "image_quality", "text fidelity to images": "text_fidelity",
        "Text Fidelity to Image": "text_fidelity",
    }  # fmt: skip
    expected = {}
    for name, number in figures_printed.items():
        task, _, metric = name.partition(": ")
        expected[f"{task}: {names.get(metric, metric)}"] = number
    assert figures == pytest.approx(expected, abs=1e-12) and len(figures) == 2 + 6 + 7 + 7
    assert figures["task4: trend_consistency"] == 0  # the judge's "NA"
    assert len({score.values["text_fidelity"] for score in scores}) > 5


@pytest.mark.parametrize("by", ANSWERS)
def test_the_scorer_finds_our_steps_and_every_image(by, started):
    """Texts of the answers hold "(3)" (the contract's test writes it into each), at which it would cut."""
    asked, place, env = started
    printed = run(place, "-c", STEPS, asked.place, env=env)
    found = json.loads(printed.partition("STEPS")[2])
    for item, document in asked.answers:
        steps, seen, images = found[item.id]
        made = len(item.pictures(document))
        assert images == seen == (0 if item.category == "task1" else max(made, 1)), item.id
        written = json.loads((asked.place / item.id / "results.json").read_text("utf-8"))["model_output"]
        assert steps == len(re.findall(r"\(\d+\)", written)), item.id
        if item.category in ("task3", "task4") and by == "contract":
            assert steps == max(made, 1), item.id
        elif item.category == "task2":
            assert steps == len(item.record["counts"]), item.id


def test_a_relative_folder_is_why_the_docs_say_absolute(started):
    """At task4 the scorer joins the folder of a sample twice."""
    asked, place, env = started
    shutil.copytree(asked.place, place / "samples")
    with judge(Scoring()) as server:
        said = run(
            place, "-m", "eval.eval_metric", "--predict_results_path", "samples", "--model_type", "relative",
            "--task_type", "task4", "--ground_truth_path", asked.requests, env={**env, "OPENAI_BASE_URL": server.url},
        )  # fmt: skip
    assert "No such file or directory" in said and not server.asked
