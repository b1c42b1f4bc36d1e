"""Uni-MMMU's `eval_ummmu.py`, unchanged, on what we export for all six tasks; its figures are ours.

Stood in for, by modules in front of its own: `transformers` and `qwen_vl_utils` (Qwen3-32B and Qwen2.5-VL-72B: what
they are asked goes to the judge on loopback), `dreamsim` (the mean difference of two images) and `torch` (the two
names that are used). It is started in a folder with data/ and outputs/ that is its own "path-to-UMMMU-home".
"""

from __future__ import annotations

import io
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from duogen_core.document import Picture, Text
from duogen_core.evaluation.benchmarks import unimmmu_puzzles as puzzles
from duogen_core.evaluation.benchmarks.unimmmu import PUZZLES
from tests.core.evaluation.benchmarks.test_contract import layout
from tests.official.harness import ANSWERS, MODEL, exported, judge, official, run

STANDINS = {
    "torch": """
class cuda:
    is_available = staticmethod(lambda: False)
class no_grad:
    def __enter__(self): return self
    def __exit__(self, *_): return None
    def __call__(self, function): return function
""",
    "dreamsim": """
import numpy, types
class Values(numpy.ndarray):
    def to(self, device): return self
def dreamsim(pretrained, device, cache_dir):
    def prepare(image): return numpy.asarray(image.resize((16, 16)), float).view(Values)
    return (lambda a, b: numpy.abs(a - b).mean() / 255), prepare
""",
    "qwen_vl_utils": """
def process_vision_info(messages):
    return [p["image"] for m in messages for p in m["content"] if p.get("type") == "image"], None
""",
    "transformers": """
import json, os, urllib.request
class Inputs(dict):
    input_ids = [[0]]
    def to(self, device): return self
class Model:
    device = "cpu"
    said = {}
    @classmethod
    def from_pretrained(cls, name, **_): return cls()
    def apply_chat_template(self, messages, **_): return json.dumps(messages)
    def __call__(self, text, images=(), **_): return Inputs(text=text[0], images=images or [])
    def generate(self, text, images, **_):
        body = {"model": "judge", "messages": json.loads(text), "images": len(images)}
        request = urllib.request.Request(os.environ["JUDGE"] + "/chat/completions", json.dumps(body).encode())
        with urllib.request.urlopen(request) as reply:
            said = json.load(reply)["choices"][0]["message"]["content"]
        Model.said[len(Model.said) + 1] = said
        return [[0, len(Model.said)]]
    def decode(self, ids, **_): return Model.said[ids[0]]
    def batch_decode(self, rows, **_): return [self.decode(row) for row in rows]
AutoModelForCausalLM = AutoTokenizer = Qwen2_5_VLForConditionalGeneration = AutoProcessor = Model
""",
}
FIELDS = {  # by a word of the question
    "overlay_ok": {"overlay_ok": 1, "overlay_reason": "there"},
    "reasoning_rigorous": {"reasoning_rigorous": 1, "conclusion_correct": 1, "text_ok": 1, "text_reason": "right"},
    "reasoning_correct": {"reasoning_correct": 1, "result_correct": 1},
    "image_correct": {"image_correct": 1},
    "shape_color_accuracy": {
        "shape_color_accuracy": 4,
        "position_accuracy": 3,
        "verdict": "partial",
        "explanation": "",
    },
    "text_semantic_match": {"text_semantic_match": 1, "explanation": "same"},
}


@pytest.fixture
def scorer(tmp_path):
    found = official("Vchitect+Uni-MMMU") / "eval_ummmu.py"
    for name, source in STANDINS.items():
        (tmp_path / "standins").mkdir(exist_ok=True)
        (tmp_path / "standins" / f"{name}.py").write_text(source)
    return found


def right(item, files):
    """The right answer to a puzzle."""
    number = item.record["first"].split("/")[1].split("_")[2]
    images = (files.maze_images if item.category == "maze" else files.sliding_images)(number)[1:]
    said = Text(f"So:\n<ANSWER_JSON>{json.dumps(item.record['moves'])}</ANSWER_JSON>")
    return item.prompt.begin_turn("assistant", [*(Picture(np.array(image)) for image in images), said])


def varied(answers):
    """One puzzle of each kind right, one half right, the jigsaws decided, one drawing described."""
    files = layout("unimmmu")
    for number, (item, document) in enumerate(answers):
        if item.id == "maze/case_00001" or item.id.endswith("00007_steps"):
            document = right(item, files)
        elif item.category in PUZZLES:
            moves = [*item.record["moves"][:2], "left"]
            half = [*right(item, files).last_turn.parts[:2], *document.pictures[-1:], Text(
                f"<answer_json>{json.dumps(moves)}</answer_json>\n\n\n-----\n\n\n<ANSWER_JSON>[]"
            )]  # fmt: skip
            document = item.prompt.begin_turn("assistant", half)
        elif item.category == "jigsaw":
            said = Text('<FINAL_ANSWER_JSON>\n{"choice": 0, "rationale": "the seam"}\n</FINAL_ANSWER_JSON>')
            document = document.append(said)
        elif item.category == "code" and number % 4 != 3:
            document = document.append(Text("<RENDER_SUMMARY>A red circle.</RENDER_SUMMARY>"))
        answers[number] = item, document


@pytest.mark.parametrize("by", ANSWERS)
def test_the_official_figures_are_ours(by, tmp_path, scorer):
    asked = exported("unimmmu", tmp_path, by)
    answers, main = asked.answers, asked.place
    if by == "contract":
        varied(answers)
        shutil.rmtree(asked.out)
        asked.out.mkdir()
        main = asked.bench.export(answers, asked.out, MODEL)
    assert main == asked.out / "outputs" / MODEL
    home = tmp_path  # data/ is there
    shutil.copytree(asked.out / "outputs", home / "outputs")
    os.symlink(".", home / "path-to-UMMMU-home")

    def reply(body):
        texts = json.dumps(body["messages"])
        return "Well: " + json.dumps(next(said for word, said in FIELDS.items() if word in texts))

    with judge(reply) as server:
        env = {"PYTHONPATH": str(tmp_path / "standins"), "JUDGE": server.url}
        said = run(home, scorer, "--model_name", MODEL, env=env)
    for word in ("Error", "WARN", "Skipping", "[NOTE]", "API"):
        assert word not in said, said

    # Nothing was left out: every request has a score, and the judges were asked for every answer.
    place = home / "eval" / MODEL
    scores = {score.id: score for score in asked.back(place)[0]}
    drawn = sum(bool(item.pictures(document)) for item, document in answers if item.category in ("math", "science"))
    described = sum("RENDER" in item.text(document) for item, document in answers)
    drawings = sum(len(item.pictures(document)) for item, document in answers if item.category == "code")
    assert len(server.asked) == 2 + 2 + drawn + described + drawings

    ours = asked.bench.summary(scores.values())
    theirs = {task: json.loads((place / task / name).read_text()) for task, name in (
        ("math", "eval_summary.json"), ("science", "eval_summary.json"), ("code", "eval_summary.json"),
        ("jigsaw", "summary.json"), ("maze", "summary.json"), ("sliding", "summary.json"),
    )}  # fmt: skip
    expected = {
        "math image": theirs["math"]["overlay_acc"], "math text": theirs["math"]["text_acc"],
        "jigsaw image": theirs["jigsaw"]["metrics"]["image_score_penalized"],
        "jigsaw text": theirs["jigsaw"]["metrics"]["text_accuracy"],
        "science reasoning": theirs["science"]["text_reasoning_acc"] * 3 / 2,  # it counts the sample without an image
        "science result": theirs["science"]["text_result_acc"] * 3 / 2,
        "science image": theirs["science"]["image_acc"] * 3 / 2,
        "code text": theirs["code"]["text_semantic_match_rate"],
        "code shapes": theirs["code"]["avg_shape_color_accuracy"],
        "code positions": theirs["code"]["avg_position_accuracy"],
        "maze readable": theirs["maze"]["parse_accuracy_frame_macro"],
    }  # fmt: skip
    for task in PUZZLES:
        for name, key in (("text", "text_accuracy"), ("image", "img_accuracy")):
            expected[f"{task} {name}"] = theirs[task][f"{key}_frame_macro"]
            expected[f"{task} {name} exact"] = theirs[task][f"{key}_exact"]
    assert ours == pytest.approx(expected)
    if by == "contract":
        assert 0 < ours["maze image"] < 1 and 0 < ours["sliding text"] < 1 and ours["jigsaw text"] == 0.5

    # What we check without a judge is, item by item, what the official scorer says.
    for item, document in answers:
        checked = asked.bench.score(item, document, {}).values
        for name in scores[item.id].values.keys() & checked.keys():
            assert checked[name] == pytest.approx(scores[item.id].values[name]), (item.id, name)


def spoiled(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """What a model may make of a board: noise, blur, another size or shape, a cut, a shift, another border."""
    kind = random.integers(8)
    if kind == 0:
        noise = random.normal(0, random.uniform(5, 60), np.array(image).shape)
        return Image.fromarray(np.clip(np.array(image) + noise, 0, 255).astype(np.uint8))
    if kind == 1:
        return image.resize(tuple(random.integers(20, 220, 2)))
    if kind == 2:
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=int(random.integers(1, 40)))
        return Image.open(stream).convert("RGB")
    if kind == 3:
        left, top, right_, low = random.integers(-40, 40, 4)
        return image.crop((left, top, image.width + right_, image.height + low))
    if kind == 4:
        canvas = Image.new("RGB", tuple(random.integers(60, 260, 2)), "white")
        canvas.paste(image, tuple(random.integers(-20, 80, 2)))
        return canvas
    if kind == 5:
        return Image.fromarray(random.integers(0, 255, (*random.integers(1, 90, 2), 3), np.uint8))
    if kind == 6:
        return Image.new("RGB", tuple(random.integers(1, 90, 2)), tuple(random.integers(0, 255, 3)))
    return image.rotate(float(random.uniform(0, 90)), expand=bool(random.integers(2)), fillcolor="white")


def test_images_are_read_as_the_official_parser_reads_them(tmp_path, scorer):
    files = layout("unimmmu")
    random = np.random.default_rng(0)
    images = [image for number in files.MAZES for image in files.maze_images(number)]
    images += [image for number in files.SLIDES for image in files.sliding_images(number)]
    images += [spoiled(images[random.integers(len(images))], random) for _ in range(400)]
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number:04d}.png")
    (tmp_path / "dump.py").write_text(f"""
import sys, json, pathlib
sys.path.insert(0, {str(scorer.parent)!r})
from eval_ummmu import UtilityHelpers, Configurations
settings = Configurations()
found = [[UtilityHelpers.parse_maze_image(file, **settings.maze["parser_params"]),
          UtilityHelpers.parse_sliding_puzzle_image(file, **settings.sliding_puzzle["parser_params"])]
         for file in sorted(pathlib.Path(".").glob("*.png"))]
json.dump(found, open("found.json", "w"), default=int)
""")
    run(tmp_path, "dump.py", env={"PYTHONPATH": str(tmp_path / "standins")})
    whole = 0
    for image, (theirs, slides) in zip(images, json.loads((tmp_path / "found.json").read_text())):
        pixels = np.array(image)
        maze = puzzles.read_maze(pixels)
        assert [list(row) for row in maze.grid] == theirs["grid"]
        for ours, other in ((maze.start, theirs["start"]), (maze.goal, theirs["goal"])):
            assert ours == (tuple(other) if other else None)
        assert [list(row) for row in puzzles.read_sliding(pixels)] == slides["grid"]
        whole += maze.start is not None
    assert 100 < whole < len(images)
