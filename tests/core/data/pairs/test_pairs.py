"""The values and rules of pairs: each rule refuses what it is named for, and keeps a scene in which something moves."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from duogen_core.data.pairs.rules import change, contrast, judge, relation, sharpness
from duogen_core.data.runs.presets import load_preset
from tests.core.clips import scene

RULES = load_preset("video")["pair"]


def blurred(pixels: np.ndarray, radius: float) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


def noisy(pixels: np.ndarray, spread: float) -> np.ndarray:
    return np.uint8(np.clip(pixels + np.random.default_rng(0).normal(0, spread, pixels.shape), 0, 255))


FIRST, *_, LAST = scene(3, 20)
WHITE = np.full_like(FIRST, 250)


@pytest.mark.parametrize(
    ("first", "last", "rule"),
    [
        (FIRST, LAST, None),
        (FIRST, np.roll(LAST, 30, axis=1), None),
        (FIRST, FIRST, "still"),
        (FIRST, noisy(FIRST, 6), "still"),
        (FIRST, scene(6, 1)[0], "cut"),
        (FIRST, blurred(LAST, 6), "blurred"),
        (blurred(FIRST, 6), LAST, "blurred"),
        (FIRST, WHITE, "blank"),
        (noisy(np.zeros_like(FIRST), 2), LAST, "blank"),
    ],
)
def test_a_rule_refuses_what_it_is_named_for(first, last, rule):
    values, verdict = judge(first, last, RULES)
    assert (verdict and verdict[0]) == rule, values
    if verdict:
        assert verdict[1] in values.values()


def test_a_sharp_subject_before_a_soft_ground_is_not_blurred():
    portrait = blurred(FIRST, 8).copy()
    portrait[30:90, 60:130] = FIRST[30:90, 60:130]
    assert sharpness(portrait) > RULES["min_sharpness"] > sharpness(blurred(FIRST, 8))


def test_values_do_not_depend_on_the_size():
    large = [np.asarray(Image.fromarray(each).resize((960, 560), Image.BICUBIC)) for each in (FIRST, LAST)]
    assert change(*large)[1] == pytest.approx(change(FIRST, LAST)[1], rel=0.15)
    assert relation(*large) == pytest.approx(relation(FIRST, LAST), abs=0.05)
    assert contrast(large[0]) == pytest.approx(contrast(FIRST), rel=0.05)


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 400, 3), (400, 2, 3)])
def test_odd_sizes_are_no_problem(shape):
    assert judge(np.zeros(shape, np.uint8), np.zeros(shape, np.uint8), RULES)[1][0] == "blank"
