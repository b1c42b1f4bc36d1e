"""The scorers: ideal answers get 1, broken ones lose exactly what they broke; report, overview and command."""

from __future__ import annotations

import json
import multiprocessing
import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from duogen_core.checkpoint import save_checkpoint
from duogen_core.cli import main
from duogen_core.data.sketchbook.cases import Case, scene_from_dict, scene_to_dict
from duogen_core.data.sketchbook.draw import draw_scene
from duogen_core.data.sketchbook.scene import PALETTE, Scene, Shape
from duogen_core.data.sketchbook.tasks import FAMILIES, evaluation_case
from duogen_core.document import Document, Picture, Text
from duogen_core.errors import DuoGenError
from duogen_core.evaluation import report as reports
from duogen_core.evaluation.answering import ModelAnswer, answers
from duogen_core.evaluation.pictures import score_pictures, step_agreement, step_right
from duogen_core.evaluation.scores import CHECKS, described, right_words, score
from duogen_core.evaluation.sketchbook import GROUPS, cases, evaluate
from duogen_core.pipeline import Settings
from tests.core.answerers import die, echo, fail, refuse
from tests.core.tiny import random_components, request

ISSUE_CHECKS = {
    "guide.structure", "guide.step_right", "guide.kept", "draw.right", "draw.right_heldout", "edit.right", "edit.kept",
    "plan.reached", "draft.answer", "draft.gain", "describe.right", "describe.no_picture",
}  # fmt: skip


def case_of(family: str, seed: int = 0, held_out: bool = False) -> Case:
    return evaluation_case(family, random.Random(f"test-{family}-{seed}"), held_out=held_out)


def answered(case: Case, change=lambda parts: parts, stop_reason: str = "end") -> Document:
    """The ideal answer with its list of parts changed."""
    parts = change(list(case.document.last_turn.parts))
    return case.prompt.begin_turn("assistant", parts).replace_generation(stop_reason=stop_reason)


def pictures_of(parts: list) -> list[int]:
    return [k for k, part in enumerate(parts) if isinstance(part, Picture)]


def with_pixels(change):
    """Changes the pixels of every picture of the answer."""
    return lambda parts: [Picture(change(part.pixels)) if isinstance(part, Picture) else part for part in parts]


def with_text(change):
    return lambda parts: [Text(change(part.text)) if isinstance(part, Text) else part for part in parts]


def worn(pixels: np.ndarray) -> np.ndarray:
    soft = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(0.8)))
    return (soft + np.random.default_rng(1).normal(0, 5, soft.shape)).clip(0, 255).astype(np.uint8)


def emptied(pixels: np.ndarray) -> np.ndarray:
    return np.full_like(pixels, PALETTE["cream"])


@pytest.mark.parametrize("family", FAMILIES)
def test_ideal_answers_are_right_and_worn_ones_still_are(family):
    for seed in range(12):
        case = case_of(family, seed)
        found = score(case, answered(case)).checks
        assert found and set(found.values()) == {1.0}, (seed, case.document.text, found)
        found = score(case, answered(case, with_pixels(worn))).checks
        assert min(found.values()) >= 0.9, (seed, case.document.text, found)


def test_all_checks_of_the_issue_are_measured_in_one_round():
    chosen = cases(len(GROUPS), 5)
    queue = iter(chosen)
    result = evaluate(lambda prompt, seed: answered(next(queue)[1]), chosen)
    assert set(result["figures"]) >= ISSUE_CHECKS and set(result["figures"]) == {*CHECKS, "draft.gain"}
    assert result["figures"].pop("draft.gain") == 0.0
    assert all(value == 1.0 for value in result["figures"].values())
    assert result["counts"]["guide.structure"] == 1 and result["intervals"]["draw.right"][1] == 1.0
    assert len(result["cases"]) == len(GROUPS) and result["extra"]["guide.psnr"] == 60.0


def test_cases_are_new_for_every_seed_and_balanced():
    first, again, other = (cases(5 * len(GROUPS), seed) for seed in (0, 0, 1))
    texts = [[case.document.text for _, case in some] for some in (first, again, other)]
    assert texts[0] == texts[1] != texts[2]
    assert {group: sum(g == group for g, _ in first) for group in GROUPS} == dict.fromkeys(GROUPS, 5)
    for group, case in first:
        pairs = [s.held_out for s in scene_from_dict(case.truth["scene"]).shapes] if case.family == "draw" else []
        assert any(pairs) == (group == "draw held out")
    drafts, undrafted = ([case for g, case in first if g == group] for group in ("draft", "undrafted"))
    assert [case.truth for case in drafts] == [case.truth for case in undrafted]
    for case, same in zip(drafts, undrafted):
        assert same.prompt.last_turn.text.startswith(case.prompt.last_turn.text)
        assert same.prompt.pictures == case.prompt.pictures and not same.document.last_turn.pictures


@pytest.mark.parametrize("size", [(64, 96), (160, 96), (32, 32), (16, 16), (512, 512)])
@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_of_another_size_are_wrong_and_no_error(family, size):
    case = case_of(family, 1)
    own = case.document.pictures[-1].size if case.document.pictures else None
    other = Picture(np.full((size[1], size[0], 3), 200, np.uint8))
    document = answered(case, lambda parts: [other if isinstance(part, Picture) else part for part in parts])
    found = score(case, document).checks
    if family not in ("describe", "draft", "undrafted", "quiz") and own != size:
        assert not any(value for name, value in found.items() if not name.endswith("structure")), found


# ---------------------------------------------------------------- guide


def test_guide_structure_says_no():
    case = case_of("guide")
    structure = lambda document: score(case, document).checks["guide.structure"]  # noqa: E731

    def swapped(parts):
        first, second = pictures_of(parts)[:2]
        parts[first - 1], parts[second - 1] = parts[second - 1], parts[first - 1]
        return parts

    def without_second_text(parts):
        del parts[pictures_of(parts)[1] - 1]
        return parts

    def without_last_picture(parts):
        del parts[pictures_of(parts)[-1]]
        return parts

    assert structure(answered(case)) == 1.0
    assert structure(answered(case, stop_reason="max_tokens")) == 0.0
    assert structure(answered(case, lambda parts: [])) == 0.0
    for change in (
        swapped,
        without_second_text,
        without_last_picture,
        with_text(lambda t: t.replace("Step 2", "Step 3")),
    ):
        assert structure(answered(case, change)) == 0.0


def test_guide_asked_colours_must_be_told_and_other_colours_are_free():
    case = next(c for c in (case_of("guide", k) for k in range(50)) if c.truth["asked"])
    part, colour = next(iter(case.truth["asked"].items()))
    truth = {**case.truth, "asked": {part: "cream" if colour != "cream" else "red"}}
    found = score(replace(case, truth=truth), answered(case)).checks
    assert found["guide.structure"] == 0.0 and found["guide.step_right"] == 1.0
    free = {**case.truth, "asked": {}, "colours": dict.fromkeys(case.truth["colours"], "grey")}
    assert min(score(replace(case, truth=free), answered(case)).checks.values()) == 1.0


def test_guide_pictures_are_judged_step_by_step():
    case = case_of("guide", 3)
    steps = case.truth["steps"]

    def last_step_not_drawn(parts):
        pictures = pictures_of(parts)
        parts[pictures[-1]] = parts[pictures[-2]]
        return parts

    found = score(case, answered(case, last_step_not_drawn)).checks
    assert found["guide.structure"] == 1.0 and found["guide.kept"] == 1.0
    assert found["guide.step_right"] == pytest.approx((steps - 1) / steps)

    def last_starts_anew(parts):
        last = pictures_of(parts)[-1]
        parts[last] = Picture(emptied(parts[last].pixels))
        return parts

    found = score(case, answered(case, last_starts_anew)).checks
    assert found["guide.step_right"] < 1.0 and found["guide.kept"] < 1.0
    assert score(case, answered(case, with_pixels(emptied))).checks["guide.step_right"] == 0.0
    assert score(case, answered(case, lambda parts: [])).checks == {
        "guide.structure": 0.0,
        "guide.step_right": 0.0,
        "guide.kept": 0.0,
    }


def test_wrong_colour_in_a_step_is_wrong():
    case = case_of("continue", 2)
    told = score(case, answered(case, with_text(lambda t: t.replace("Step", "Stap")))).checks
    assert told["continue.step_right"] == 0.0 and told["continue.structure"] == 0.0
    for k in range(10):
        case = case_of("guide", k)
        colour = case.truth["colours"][case.truth["parts"][0]]
        wrong = "yellow" if colour != "yellow" else "blue"

        def repaint(pixels, colour=colour, wrong=wrong):
            pixels = pixels.copy()
            pixels[np.abs(pixels.astype(int) - PALETTE[colour]).sum(-1) < 40] = PALETTE[wrong]
            return pixels

        assert score(case, answered(case, with_pixels(repaint))).checks["guide.step_right"] < 1.0


def test_a_step_with_paint_beside_the_part_is_not_right():
    before = draw_scene(Scene())
    ideal = draw_scene(Scene((Shape("centre", "circle", "red"),)))
    assert step_right(before, worn(ideal), before, ideal)
    more = draw_scene(Scene((Shape("centre", "circle", "red"), Shape("top", "square", "blue"))))
    assert step_agreement(before, more, before, ideal) < 0.6
    assert step_agreement(before, np.full_like(ideal, PALETTE["red"]), before, ideal) < 0.3
    assert step_agreement(before, before, before, ideal) < 0.1
    assert step_agreement(before, ideal[:64], before, ideal) == 0.0


# ---------------------------------------------------------------- draw, edit, plan, draft


def test_draw_leaves_free_what_was_left_open():
    scene = Scene((Shape("top", "star", "red"), Shape("left", "star", "blue", "small")))
    wishes = [
        {"kind": "star", "colour": None, "size": "small", "cell": "left"},
        {"kind": "star", "colour": "red", "size": None, "cell": None},
    ]
    truth = {"scene": scene_to_dict(scene), "asked": wishes, "background": "cream"}
    case = replace(case_of("draw"), truth=truth)

    def right(other: Scene) -> float:
        return score(case, answered(case, lambda parts: [parts[0], Picture(draw_scene(other))])).checks["draw.right"]

    assert right(scene) == 1.0
    assert right(Scene((Shape("right", "star", "red", "small"), Shape("left", "star", "pink", "small")))) == 1.0
    assert right(Scene((Shape("top", "star", "red"), Shape("left", "star", "blue")))) == 0.0
    assert right(Scene((Shape("top", "star", "orange"), Shape("left", "star", "blue", "small")))) == 0.0
    assert right(scene.add(Shape("bottom", "circle", "red"))) == 0.0
    assert right(Scene(scene.shapes, "white")) == 0.0
    assert right(Scene(scene.shapes, canvas=(160, 96))) == 0.0
    assert score(case, answered(case, lambda parts: parts[:1])).checks == {"draw.right": 0.0}
    assert score(case, answered(case, lambda parts: [*parts, parts[-1]])).checks == {"draw.right": 0.0}


def test_edit_not_done_and_edit_that_loses_the_rest():
    for seed in range(8):
        case = case_of("edit", seed)
        before = draw_scene(scene_from_dict(case.truth["before"]))
        idle = score(case, answered(case, lambda parts, before=before: [parts[0], Picture(before)])).checks
        assert idle == {"edit.right": 0.0, "edit.kept": 1.0}
        assert score(case, answered(case, lambda parts: parts[:1])).checks == {"edit.right": 0.0, "edit.kept": 0.0}
    case = next(c for c in (case_of("edit", k) for k in range(50)) if c.truth["operation"] == "add")
    blank = score(case, answered(case, with_pixels(emptied))).checks
    assert blank["edit.right"] == 0.0 and blank["edit.kept"] < 0.5


def test_plan_needs_legal_moves_to_the_goal():
    case = next(c for c in (case_of("plan", k) for k in range(50)) if c.truth["shortest"] == 3)

    def skipping(parts):
        del parts[pictures_of(parts)[1]]
        return parts

    def stopping(parts):
        return parts[: pictures_of(parts)[1] + 1]

    def marked(pixels):
        pixels = pixels.copy()
        pixels[: pixels.shape[0] // 2, :6] = PALETTE["pink"]
        return pixels

    for change in (skipping, stopping, with_pixels(marked), with_pixels(emptied), lambda parts: []):
        assert score(case, answered(case, change)).checks == {"plan.reached": 0.0}
    turned = {"right": "left", "left": "right", "up": "down", "down": "up"}
    lying = with_text(lambda text: re.sub(r"\b(right|left|up|down)\b", lambda found: turned[found[0]], text))
    found = score(case, answered(case, lying))
    assert found.checks == {"plan.reached": 1.0} and found.measures["plan.moves_as_said"] < 1.0


def test_draft_answer_stands_after_the_picture():
    case = case_of("draft", 1)
    wrong = with_text(lambda text: text.replace("Answer: ", "Answer: 1"))
    assert score(case, answered(case, wrong)).checks == {"draft.answer": 0.0, "draft.picture": 1.0}
    assert score(case, answered(case, lambda parts: parts[:-1])).checks["draft.answer"] == 0.0
    no_picture = lambda parts: [part for part in parts if isinstance(part, Text)]  # noqa: E731
    assert score(case, answered(case, no_picture)).checks == {"draft.answer": 1.0, "draft.picture": 0.0}


def test_undrafted_wants_the_answer_in_words():
    case = case_of("undrafted", 1)
    wrong = with_text(lambda text: text.replace("Answer: ", "Answer: 1"))
    assert score(case, answered(case, wrong)).checks == {"undrafted.answer": 0.0, "undrafted.no_picture": 1.0}
    picture = case.prompt.pictures[-1]
    drawn = score(case, answered(case, lambda parts: [Text("I draw."), picture, *parts])).checks
    assert drawn == {"undrafted.answer": 0.0, "undrafted.no_picture": 0.0}


def test_gain_is_of_pairs():
    only = ("draft", "undrafted")
    chosen = cases(40, 1, only)
    ideal = {case.prompt: case for _, case in chosen}

    def answer(prompt, seed):
        case = ideal[prompt]
        if case.family == "undrafted" and int(case.truth["answer"]) % 2:
            return answered(case, lambda parts: [])
        return answered(case)

    result = evaluate(answer, chosen)
    odd = sum(int(case.truth["answer"]) % 2 for group, case in chosen if group == "draft")
    low, high = result["intervals"]["draft.gain"]
    assert 0 < odd < 20 and result["figures"]["draft.gain"] == odd / 20 and result["counts"]["draft.gain"] == 20
    assert low < odd / 20 < high < 1
    assert "draft.gain" not in evaluate(answer, chosen[::2])["figures"]


def test_interval_of_a_gain():
    assert reports.gain([(1, 1)] * 50) == (0.0, [-0.0533, 0.0533])
    mean, (low, high) = reports.gain([(1, 0)] * 30 + [(1, 1)] * 60 + [(0, 1)] * 10)
    assert mean == 0.2 and 0.07 < low < 0.09 and 0.30 < high < 0.33
    assert reports.gain([(0, 1)] * 4)[1][0] == -1.0


# ---------------------------------------------------------------- describe


def test_describe_wants_words_and_no_picture():
    case = case_of("describe")
    drawn = lambda parts: [*parts, Picture(emptied(np.zeros((128, 128, 3), np.uint8)))]  # noqa: E731
    assert score(case, answered(case, drawn)).checks == {"describe.right": 1.0, "describe.no_picture": 0.0}
    assert score(case, answered(case, lambda parts: [])).checks["describe.right"] == 0.0


def test_right_words():
    scene = Scene((Shape("top left", "cross", "red"), Shape("centre", "star", "blue", "small")))
    truth = {"question": "scene", "key": [], "scene": scene_to_dict(scene)}
    text = "I see a large red cross in the top left and a small blue star in the centre"
    assert described(text) == scene.shapes
    assert right_words(f"{text}.", truth)
    assert not right_words(f"{text} and a small pink star on the left.", truth)
    assert not right_words(f"{text}, on a grey background.", truth)
    assert not right_words(text.replace("small", "large"), truth)
    assert not right_words(text.replace("in the centre", "in the top left"), truth)
    count = {"question": "count", "key": ["2 red stars"]}
    assert right_words("There are 2 red stars.", count) and not right_words("There are 12 red stars.", count)
    colour = {"question": "colour", "key": ["red"]}
    assert right_words("The star is red.", colour) and not right_words("The star is red or blue.", colour)
    place = {"question": "place", "key": ["at the top"]}
    assert right_words("The red star is at the top.", place)
    assert not right_words("The red star is at the top and on the left.", place)


# ---------------------------------------------------------------- training's quick measure


def test_score_pictures():
    chosen = [case_of("draw"), case_of("guide", 1), case_of("edit", 2), case_of("plan", 3)]
    ideals = [case.document.last_turn.pictures[-1].pixels for case in chosen]
    found = score_pictures(chosen, ideals)
    assert found["right"] == found["kept"] == found["guide.right"] == 1.0 and found["psnr"] == 60.0
    found = score_pictures(chosen, [worn(ideal) for ideal in ideals])
    assert found["right"] == 1.0 and 25 < found["psnr"] < 40
    found = score_pictures(chosen, [emptied(ideal) for ideal in ideals])
    assert found["right"] == 0.0 and found["plan.kept"] < 0.5
    first = [case.document.last_turn.pictures[0].pixels for case in chosen]
    assert score_pictures(chosen, first, [0] * 4)["right"] == 1.0
    with pytest.raises(ValueError, match="4 cases, but 3 pictures"):
        score_pictures(chosen, ideals[:3])
    with pytest.raises(ValueError, match="no picture"):
        score_pictures([case_of("describe")], ideals[:1])


# ---------------------------------------------------------------- report and command


def test_intervals():
    low, high = reports.interval(0.5, 100)
    assert 0.40 < low < 0.41 and 0.59 < high < 0.60
    assert reports.interval(1.0, 10)[1] == 1.0 and 0.6 < reports.interval(1.0, 10)[0] < 0.8
    assert reports.interval(0.0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="not in"):
        reports.figures([{"draw.right": 1.5}], ["draw.right"])


@pytest.fixture
def model(monkeypatch):
    """The command with an ideal model in place of a checkpoint; every fourth answer stops too early."""
    from types import SimpleNamespace

    from duogen_core import checkpoint
    from duogen_core.evaluation import answering

    truths = {case.prompt: case for seed in (0, 3) for _, case in cases(54, seed)}
    truths |= {case.prompt: case for _, case in cases(4, 0, ("guide", "continue"), "snow globe")}
    asked = []

    def generate(components, prompt, settings):
        asked.append(settings.seed)
        case = truths[prompt]
        if len(asked) % 4 == 1:
            return answered(case, lambda parts: parts[:1], "max_tokens")
        return answered(case)

    components = SimpleNamespace(name="ideal", config=checkpoint.CheckpointConfig())
    monkeypatch.setattr(checkpoint, "resolve_model", lambda name: Path(name))
    monkeypatch.setattr(checkpoint, "check_checkpoint", lambda folder: None)
    monkeypatch.setattr(answering, "load_checkpoint", lambda folder: components)
    monkeypatch.setattr(answering, "generate", generate)
    return asked


def test_command_writes_report_documents_and_overview(model, tmp_path, capsys):
    out, folder = tmp_path / "report.json", tmp_path / "answers"
    arguments = ["--out", str(out), "--samples", "27", "--seed", "3", "--documents", str(folder)]
    assert main(["evaluate", "sketchbook", *arguments]) == 0
    report = json.loads(out.read_text())
    assert set(report["figures"]) >= ISSUE_CHECKS and all(-1 <= v <= 1 for v in report["figures"].values())
    assert report["figures"]["guide.structure"] < 1.0 and report["counts"]["draw.right"] == 3
    assert report["seed"] == 3 and report["samples"] == 27 and report["model"] == "ideal"
    assert len(set(model)) == 27  # every answer has noise of its own
    printed, progress = capsys.readouterr()
    assert "guide.step_right" in printed and printed.strip().endswith("report.json")
    assert "27/27" in progress and "describe.right" in progress  # figures so far
    assert len([entry for entry in folder.iterdir() if (entry / "document.json").is_file()]) == 27
    with Image.open(folder / "overview.png") as sheet:
        assert sheet.width > 800 and sheet.height > 2000


def test_command_with_json_and_one_task(model, tmp_path, capsys):
    out = tmp_path / "report.json"
    assert main(["evaluate", "sketchbook", "--out", str(out), "--samples", "4", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["figures"] == json.loads(out.read_text())["figures"] and "cases" not in printed


def test_command_with_a_novel_thing(model, tmp_path, capsys):
    out = tmp_path / "report.json"
    assert main(["evaluate", "sketchbook", "--out", str(out), "--samples", "4", "--thing", "snow globe"]) == 0
    report = json.loads(out.read_text())
    assert report["thing"] == "snow globe" and report["counts"]["guide.step_right"] == 2
    assert {name.partition(".")[0] for name in report["figures"]} == {"guide", "continue"}
    assert all("snow globe" in case["ideal"] for case in report["cases"])


def test_processes_answer_as_one_does(tmp_path):
    folder = save_checkpoint(random_components(), tmp_path / "model")
    chosen = cases(4, 0, ("edit", "describe"))
    found = []
    for jobs in (1, 2):
        answer = ModelAnswer(folder, Settings(max_images=1, max_new_tokens=12))
        found.append(evaluate(answer, chosen, jobs=jobs, folder=tmp_path / str(jobs)))
    one, two = ([{**case, "seconds": 0} for case in report["cases"]] for report in found)
    assert one == two and found[0]["figures"] == found[1]["figures"]
    files = [sorted((tmp_path / jobs).rglob("*.*")) for jobs in ("1", "2")]
    assert len(files[0]) >= 5
    assert [file.relative_to(tmp_path / "1") for file in files[0]] == [f.relative_to(tmp_path / "2") for f in files[1]]
    assert [file.read_bytes() for file in files[0]] == [file.read_bytes() for file in files[1]]


def test_answers_come_in_order_and_errors_through():
    questions = [(request(f"Question {k}"), k) for k in range(9)]
    alone, shared = ([document for document, _ in answers(echo, questions, jobs)] for jobs in (1, 3))
    assert alone == shared and alone[4].text == "Question 4 4"
    for answer, error, sentence in (
        (refuse, DuoGenError, "nothing to say"),
        (fail, RuntimeError, "ZeroDivisionError: by hand"),
        (die, DuoGenError, "One of the 2 processes that answer was ended from outside"),
    ):
        with pytest.raises(error, match=sentence):
            list(answers(answer, questions, 2))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--out", "nowhere/report.json"], "folder that does not exist"),
        (["--out", "."], "name of a JSON file"),
        (["--out", "r.json", "--samples", "0"], "--samples must be at least 1"),
        (["--out", "r.json", "--thing", "snow glob"], "did you mean 'snow globe'?"),
        (["--out", "r.json", "--thing", "house", "--only", "draw"], "'draw' is not about one thing"),
        (["--out", "r.json", "--jobs", "0"], "--jobs must be at least 1"),
        (["--out", "r.json", "--only", "sing"], "invalid choice"),
        (["--out", "r.json", "--model", "no-such-model"], "There is no model"),
        (["--out", "r.json", "--documents", "file"], "name of a folder"),
    ],
)
def test_bad_input_is_one_sentence(arguments, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert main(["evaluate", "sketchbook", *arguments]) == 2
    errors = capsys.readouterr().err
    assert sentence in errors and "Traceback" not in errors
    assert not (tmp_path / "r.json").exists()
