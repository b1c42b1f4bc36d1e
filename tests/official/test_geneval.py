"""GenEval's own evaluate_images.py and summary_scores.py read what we export, and our rules judge as theirs do.

Stood in for: mmdet's Mask2Former (boxes from a file), open_clip and clip_benchmark (each colour is the red value of
the object's first pixel, modulo ten) and the few names of torch that the script takes (it wants CUDA). All else is
official.
"""

from __future__ import annotations

import json
import random
import re

import numpy as np
import pytest

from duogen_core.document import Picture, Text
from duogen_core.evaluation.benchmarks import benchmark
from duogen_core.evaluation.benchmarks.geneval import COLOURS
from tests.core.evaluation.benchmarks import layout_geneval as layout
from tests.core.evaluation.benchmarks.test_contract import answered
from tests.official.harness import BUNDLED, exported, official, run

STANDINS = {
    "torch/__init__.py": """
import contextlib
class cuda:
    is_available = staticmethod(lambda: True)
no_grad = contextlib.nullcontext
class Tensor(list):
    def argmax(self, axis):
        return [Index(one) for one in self]
class Index(int):
    def item(self):
        return int(self)
class utils:
    class data:
        class Dataset: pass
        class DataLoader:
            def __init__(self, dataset, batch_size, num_workers):
                self.dataset = dataset
""",
    "mmdet/__init__.py": "",
    "mmdet/apis.py": """
import json, os
import numpy as np
NAMES = [line.strip() for line in open(os.environ["OBJECT_NAMES"])]
FOUND = json.load(open(os.environ["OBJECTS"]))
def init_detector(config, checkpoint, device):
    return None
def inference_detector(model, file):
    found = FOUND[os.path.relpath(file, os.environ["IMAGES"]).replace(os.sep, "/")]
    return [np.array(found.get(name, []), float).reshape(-1, 5).view(Boxes) for name in NAMES]
class Boxes(np.ndarray):  # Image.crop of newer Pillow versions than the script's compares them with a tuple
    __eq__ = lambda self, other: False
""",
    "open_clip.py": """
def create_model_and_transforms(arch, pretrained, device):
    return None, None, lambda image: image.getpixel((0, 0))[0] % 10
def get_tokenizer(arch):
    return None
""",
    "clip_benchmark/__init__.py": "",
    "clip_benchmark/metrics/__init__.py": "",
    "clip_benchmark/metrics/zeroshot_classification.py": """
import torch
def zero_shot_classifier(model, tokenizer, colours, templates, device):
    assert len(colours) == 10
def run_classification(model, classifier, loader, device):
    dataset = loader.dataset
    return torch.Tensor(dataset[k][0] for k in range(len(dataset))), None
""",
}


@pytest.fixture
def scorer(tmp_path):
    folder = official("djghosh13+geneval")
    for name, text in STANDINS.items():
        (tmp_path / "standins" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "standins" / name).write_text(text)

    def score(images, objects):
        (tmp_path / "objects.json").write_text(json.dumps(objects))
        env = {
            "PYTHONPATH": str(tmp_path / "standins"), "OBJECTS": str(tmp_path / "objects.json"),
            "IMAGES": str(images), "OBJECT_NAMES": str(folder / "evaluation/object_names.txt"),
        }  # fmt: skip
        results = tmp_path / "results.jsonl"
        run(folder, "evaluation/evaluate_images.py", images, "--outfile", results, env=env)
        said = run(folder, "evaluation/summary_scores.py", results, env=env)
        return results, said

    return score


def objects_in(rng, record, size):
    """What a detector might see of a request: about what is asked for, in pixels, with a colour each."""
    found = []
    for clause in record["include"]:
        for _ in range(rng.choice([clause["count"], clause["count"], rng.randint(0, 4)])):
            x, y = rng.uniform(0, size[0] * 0.8), rng.uniform(0, size[1] * 0.8)
            box = [x, y, x + rng.uniform(2, size[0] - x - 1), y + rng.uniform(2, size[1] - y - 1)]
            score = rng.choice([0.29, 0.35, 0.89, 0.93, 0.97]) + rng.random() / 1000
            found.append((clause["class"], box, score))
    return found


def test_every_image_is_scored_and_our_rules_agree(scorer, tmp_path):
    bench = benchmark("geneval")
    asked = layout.write_requests(tmp_path)
    # Sixty of each of ours, so that every rule decides both ways.
    lines = [json.loads(line) for line in asked.read_text("utf-8").splitlines()]
    repeated = [{**line, "prompt": f"{line['prompt']} {k}"} for k in range(15) for line in lines]
    asked.write_text("".join(json.dumps(line) + "\n" for line in repeated), "utf-8")
    items = list(bench.items(asked))
    rng = random.Random(7)
    answers, objects, said = [], {}, {}
    for number, item in enumerate(items):
        size = (rng.randint(40, 90), rng.randint(40, 90))
        found = objects_in(rng, item.record, size)
        # The stand-in takes the first pixel of an object's crop as the number of its colour.
        pixels = np.zeros((size[1], size[0], 3), np.uint8)
        corners = [(round(box[1]), round(box[0])) for _, box, _ in found]
        for corner in corners:
            wanted = [COLOURS.index(clause["color"]) for clause in item.record["include"] if "color" in clause]
            pixels[corner] = rng.choice([*wanted, *wanted, rng.randrange(10)])
        document = item.prompt.begin_turn("assistant", [Text("Here: "), Picture(pixels)])
        if number % 4 == 3:
            document, found = answered(item, 3), []
        answers.append((item, document))
        seen(item, pixels, found, objects, said)
    (tmp_path / "out").mkdir()
    images = bench.export(answers, tmp_path / "out", "duogen-tiny")
    results, printed = scorer(images, objects)
    official_scores = compared(bench, answers, said, results, printed)
    per_tag = {score.category: set() for score in official_scores.values()}
    for score in official_scores.values():
        per_tag[score.category].add(score.values["correct"])
    assert all(values == {0.0, 1.0} for values in per_tag.values()), "each rule decides both ways"


@pytest.mark.parametrize("by", BUNDLED)
def test_every_image_of_the_bundled_model_is_scored(by, scorer, tmp_path):
    asked = exported("geneval", tmp_path, by)
    rng = random.Random(7)
    objects, said = {}, {}
    for item, document in asked.answers:
        pixels = item.pictures(document)[0].pixels if item.pictures(document) else None
        size = (pixels.shape[1], pixels.shape[0]) if pixels is not None else (0, 0)
        seen(item, pixels, objects_in(rng, item.record, size) if pixels is not None else [], objects, said)
    results, printed = scorer(asked.place, objects)
    compared(asked.bench, asked.answers, said, results, printed)


def seen(item, pixels, found, objects, said):
    """What is found in the image of an item, for the scorer's detector (objects) and as our judge says it (said)."""
    named = objects[f"{item.id[:5]}/samples/000{item.id[-1]}.png"] = {}
    ours = []
    for label, box, score in found:
        named.setdefault(label, []).append([*box, score])
        size = (pixels.shape[1], pixels.shape[0])
        thousandths = [1000 * value / size[k % 2] for k, value in enumerate(box)]
        colour = COLOURS[pixels[round(box[1]), round(box[0])][0] % 10]
        ours.append({"class": label, "box": thousandths, "score": score, "colour": colour})
    said[item.id] = {"objects": {"objects": ours}}


def compared(bench, answers, said, results, printed):
    """The official scores of all items, once they are those of our rules and the printed figures are our summary."""
    items = [item for item, _ in answers]
    official_scores = {score.id: score for score in bench.results(results, items)}
    assert set(official_scores) == {item.id for item in items}
    for item, document in answers:
        ours = bench.score(item, document, said[item.id])
        assert ours.values == official_scores[item.id].values, (item, ours, official_scores[item.id])
    summary = bench.summary(official_scores.values())
    assert f"Overall score (avg. over tasks): {summary['overall']:.5f}" in printed
    assert f"Total images: {len(items)}" in printed and f"Total prompts: {len(items) // 4}" in printed
    assert f"% correct images: {summary['images']:.2%}" in printed
    assert f"% correct prompts: {summary['prompts']:.2%}" in printed
    for tag, figure in re.findall(r"(\w+) += ([\d.]+%)", printed):
        assert f"{summary[f'{tag}: correct']:.2%}" == figure
    return official_scores
