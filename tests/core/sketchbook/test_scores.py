"""The scorers: ideal answers get 1, broken ones lose exactly what they broke."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from duogen_core.document import Picture, Text
from duogen_core.evaluation import report as reports
from duogen_core.sketchbook.drawing import draw_scene
from duogen_core.sketchbook.evaluation import GROUPS, cases, evaluate
from duogen_core.sketchbook.scene import PALETTE, Scene, Shape, scene_from_dict, scene_to_dict
from duogen_core.sketchbook.scores import (
    CHECKS,
    described,
    right_words,
    score,
    score_pictures,
    step_agreement,
    step_right,
)
from duogen_core.sketchbook.tasks import FAMILIES
from tests.core.ideal_answers import PROMISED, answered, case_of


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


def test_all_promised_figures_are_measured_in_one_round():
    chosen = cases(len(GROUPS), 5)
    queue = iter(chosen)
    result = evaluate(lambda prompt, seed: answered(next(queue)[1]), chosen)
    assert set(result["figures"]) >= PROMISED and set(result["figures"]) == {*CHECKS, "draft.gain"}
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
    if family not in ("describe", "draft", "undrafted", "quiz", "talk") and own != size:
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
    with pytest.raises(ValueError, match="4 cases, but 3 images"):
        score_pictures(chosen, ideals[:3])
    with pytest.raises(ValueError, match="no image"):
        score_pictures([case_of("describe")], ideals[:1])
