"""The checker reads what the renderer drew, through shifts, blur, noise and a codec, and says no to broken pictures."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
from PIL import Image, ImageFilter

from duogen_core.sketchbook.checker import (
    MIN_LEAD,
    MIN_OVERLAP,
    alike,
    changed,
    grow,
    read,
    read_scene,
    share_kept,
    shrink,
)
from duogen_core.sketchbook.drawing import RADIUS, Mark, cell_centre, draw_scene, outline, paint, rectangle
from duogen_core.sketchbook.scene import (
    CANVASES,
    CELLS,
    COLOURS,
    KINDS,
    PALETTE,
    SIZES,
    Scene,
    Shape,
    nearest,
)

CANVAS = (128, 128)


def random_scene(rng: random.Random, canvas: tuple[int, int], most: int = 6) -> Scene:
    background = rng.choice(COLOURS) if rng.random() < 0.4 else "cream"
    inks = [colour for colour in COLOURS if colour != background]
    cells = rng.sample(CELLS, rng.randint(0, most))
    return Scene(
        tuple(Shape(cell, rng.choice(KINDS), rng.choice(inks), rng.choice(SIZES)) for cell in cells), background, canvas
    )


def shifted(pixels: np.ndarray, down: int, across: int) -> np.ndarray:
    padded = np.pad(pixels, ((4, 4), (4, 4), (0, 0)), mode="edge")
    return padded[4 - down : 4 - down + pixels.shape[0], 4 - across : 4 - across + pixels.shape[1]]


def blurred(pixels: np.ndarray, sigma: float) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(sigma)))


def noised(pixels: np.ndarray, seed: int, sigma: float = 8.0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, sigma, pixels.shape)
    return (pixels + noise).clip(0, 255).astype(np.uint8)


def through_codec(pixels: np.ndarray, quality: int = 40) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=0)
    return np.asarray(Image.open(file).convert("RGB"))


def share_right(spoil, canvas: tuple[int, int], count: int, seed: str) -> float:
    rng = random.Random(f"checker-{seed}-{canvas}")
    right = 0
    for index in range(count):
        scene = random_scene(rng, canvas)
        right += read(spoil(draw_scene(scene), index)).shows(scene)
    return right / count


@pytest.mark.parametrize("canvas", CANVASES)
def test_agrees_with_the_renderer(canvas):
    assert share_right(lambda pixels, _: pixels, canvas, 150, "plain") >= 0.995


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("canvas", CANVASES)
def test_agrees_with_the_renderer_on_2000_pictures(canvas):
    assert share_right(lambda pixels, _: pixels, canvas, 2000, "many") >= 0.995


@pytest.mark.parametrize("canvas", CANVASES)
@pytest.mark.parametrize(
    ("spoil", "floor"),
    [
        (lambda pixels, k: shifted(pixels, (k % 3) - 1, (k // 3 % 3) - 1), 0.99),
        (lambda pixels, k: shifted(pixels, 2 * ((k % 3) - 1), 2 * ((k // 3 % 3) - 1)), 0.99),
        (lambda pixels, _: blurred(pixels, 1.0), 0.98),
        (lambda pixels, _: blurred(pixels, 1.3), 0.95),
        (lambda pixels, k: noised(pixels, k), 0.98),
        (lambda pixels, k: noised(blurred(shifted(pixels, 1, -1), 0.7), k, 5.0), 0.97),
        (lambda pixels, _: through_codec(pixels), 0.95),
    ],
    ids=["shift 1", "shift 2", "blur 1", "blur 1.3", "noise 8", "all of them", "codec"],
)
def test_reads_through_small_errors(spoil, floor, canvas):
    assert share_right(spoil, canvas, 60, "spoilt") >= floor


@pytest.mark.parametrize(
    "pair", [("white", "cream"), ("black", "brown"), ("red", "orange"), ("green", "blue"), ("grey", "brown")]
)
def test_near_colours_are_told_apart_when_they_drift(pair):
    for ink, other in (pair, pair[::-1]):
        drift = 0.25 * (np.array(PALETTE[other], float) - PALETTE[ink])
        background = "yellow" if "cream" in pair else "cream"
        scene = Scene((Shape("top", "heart", ink, "small"), Shape("centre", "star", ink)), background)
        pixels = draw_scene(scene).astype(float)
        inside = nearest(pixels) == COLOURS.index(ink)
        pixels[inside] += drift
        reading = read(noised(pixels, 3, 6.0))
        assert reading.shows(scene), (ink, reading)


def test_white_on_cream_and_cream_on_white():
    for ink, background in (("white", "cream"), ("cream", "white"), ("black", "brown"), ("yellow", "cream")):
        for kind in KINDS:
            scene = Scene((Shape("left", kind, ink, "small"), Shape("bottom right", kind, ink)), background)
            assert read(blurred(draw_scene(scene), 1.0)).shows(scene)


def test_every_kind_size_and_cell():
    for canvas in CANVASES:
        for kind in KINDS:
            for size in SIZES:
                scene = Scene(tuple(Shape(cell, kind, "blue", size) for cell in CELLS), "cream", canvas)
                reading = read(draw_scene(scene))
                assert reading.shows(scene), (canvas, kind, size, reading.problems)
                assert reading.confidence > MIN_OVERLAP + 0.04 and reading.lead > MIN_LEAD + 0.02


def test_empty_picture_has_its_background():
    for colour in COLOURS:
        assert read(draw_scene(Scene((), colour))).shows(Scene((), colour))


# ---------------------------------------------------------------- broken pictures

SCENE = Scene((Shape("centre", "circle", "red"), Shape("top left", "square", "blue", "small")))


def test_a_missing_shape_and_a_wrong_one_are_seen():
    assert read_scene(draw_scene(SCENE.remove(SCENE.shapes[0]))) != SCENE
    for wrong in (
        Shape("centre", "circle", "orange"),
        Shape("centre", "hexagon", "red"),
        Shape("centre", "circle", "red", "small"),
        Shape("right", "circle", "red"),
    ):
        assert not read(draw_scene(SCENE.remove(SCENE.at("centre")).add(wrong))).shows(SCENE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_half_a_shape_is_unclean(kind, size):
    pixels = draw_scene(Scene((Shape("centre", kind, "red", size),))).copy()
    for part in (np.s_[:64], np.s_[:, 64:]):
        half = pixels.copy()
        half[part] = PALETTE["cream"]
        assert not read(half).clean


def test_two_smeared_shapes_are_unclean():
    one = draw_scene(Scene((Shape("centre", "circle", "red"),))).astype(float)
    two = draw_scene(Scene((Shape("centre", "star", "blue"),))).astype(float)
    assert not read((one + two) / 2).clean
    both = paint([Mark("red", outline("circle", 64, 64, 20.0)), Mark("red", outline("cross", 70, 70, 20.0))], CANVAS)
    assert not read(both).clean
    bridge = draw_scene(Scene((Shape("left", "circle", "red"), Shape("centre", "circle", "red")))).copy()
    bridge[52:76, 30:60] = PALETTE["red"]
    assert not read(bridge).clean


def test_two_colours_in_one_shape_are_unclean():
    pixels = draw_scene(SCENE).copy()
    red = nearest(pixels) == COLOURS.index("red")
    red[:64] = False
    pixels[red] = PALETTE["orange"]
    assert not read(pixels).clean


def test_a_size_between_and_a_kind_between_are_unclean():
    cx, cy = cell_centre("centre", CANVAS)
    middle = (RADIUS["small"] + RADIUS["large"]) / 2
    assert not read(paint([Mark("red", outline("circle", cx, cy, middle))], CANVAS)).clean
    oblong = rectangle(cx - 20, cy - 9, cx + 20, cy + 9)
    assert not read(paint([Mark("red", oblong)], CANVAS)).clean


def test_a_strange_colour_is_unclean():
    for strange in ((0, 255, 255), (200, 255, 60), (85, 62, 45)):
        pixels = draw_scene(SCENE).copy()
        pixels[nearest(pixels) == COLOURS.index("red")] = strange
        assert not read(pixels).clean, strange


def test_stray_marks_are_unclean():
    pixels = draw_scene(SCENE).copy()
    dots = pixels.copy()
    dots[100:106, 20:26] = PALETTE["black"]
    assert not read(dots).clean
    line = pixels.copy()
    line[96:97, 20:100] = PALETTE["black"]
    assert not read(line).clean
    pale = pixels.copy()
    pale[95:107, 20:32] = PALETTE["white"]
    assert not read(pale).clean


def test_a_patchy_background_is_unclean():
    pixels = draw_scene(Scene()).copy()
    pixels[:, 64:] = PALETTE["white"]
    assert not read(pixels).clean
    assert not read(noised(np.full((128, 128, 3), 128, np.uint8), 0, 90.0)).clean


@pytest.mark.parametrize("canvas", CANVASES)
def test_heavy_blur_is_unclean(canvas):
    rng = random.Random("smeared")
    for ink in (*COLOURS[:11], "white"):  # pale colours too
        kind, size, cell = rng.choice(KINDS), rng.choice(SIZES), rng.choice(CELLS)
        pixels = draw_scene(Scene((Shape(cell, kind, ink, size),), "cream", canvas))
        assert read(blurred(pixels, 1.3)).clean
        assert not read(blurred(pixels, 3.0)).clean, (kind, ink, size)


def test_no_picture_is_refused_with_its_shape():
    with pytest.raises(ValueError, match="height, width, 3"):
        read(np.zeros((128, 128), np.uint8))


# ---------------------------------------------------------------- comparing regions


def test_grow_and_shrink_are_opposites_on_a_square():
    mask = np.zeros((20, 20), bool)
    mask[5:12, 6:13] = True
    assert grow(mask).sum() == 81 and shrink(mask).sum() == 25
    assert (shrink(grow(mask, 2), 2) == mask).all()


def test_kept_sees_what_changed_outside_the_region():
    before, after = draw_scene(SCENE), draw_scene(SCENE.add(Shape("bottom", "star", "green")))
    region = changed(before, after)
    assert share_kept(before, after, region) == 1.0
    assert share_kept(before, noised(blurred(shifted(after, 1, 0), 0.7), 1, 5.0), region) >= 0.97
    gone = draw_scene(Scene((SCENE.at("top left"), Shape("bottom", "star", "green"))))
    assert share_kept(before, gone, region) < 0.5
    assert share_kept(before, draw_scene(Scene((), "cream")), region) == 0.0
    assert share_kept(before, draw_scene(Scene(SCENE.shapes, "white")), region) < 0.1
    assert share_kept(before, after[:96], region) == 0.0


def test_alike_forgives_edges_and_not_colours():
    picture = draw_scene(SCENE)
    assert alike(shifted(picture, 1, 1), picture).mean() > 0.99
    other = draw_scene(Scene((Shape("centre", "circle", "orange"), SCENE.at("top left"))))
    red = nearest(picture) == COLOURS.index("red")
    assert alike(other, picture)[shrink(red, 2)].mean() == 0.0
