"""Shots and clips: cuts, dissolves and fades are found, movement and flashes are none, clips are as specified."""

from __future__ import annotations

import numpy as np
import pytest

from duogen_core.data.pairs.video.shots import Shot, clips_of, shots
from duogen_core.data.runs.presets import load_preset
from duogen_core.errors import DuoGenError
from tests.core.clips import RATE, blend, scene, small

PRESET = load_preset("video")


def found(frames: list[np.ndarray], rate: int = RATE) -> list[tuple[int, int]]:
    times = np.arange(len(frames)) / rate
    return [(shot.first, shot.stop) for shot in shots(small(frames), times, PRESET["shot"])]


def test_every_cut_is_found_at_its_frame():
    frames = scene(1, 30) + scene(2, 25) + scene(3, 40) + scene(4, 9)
    assert found(frames) == [(0, 30), (30, 55), (55, 95), (95, 104)]


@pytest.mark.parametrize("step", [0, 3, 12, 40])
def test_movement_is_no_cut(step):
    assert found(scene(5, 60, step)) == [(0, 60)]


def test_a_fast_pan_is_no_cut():
    wide = np.concatenate([scene(seed, 1)[0] for seed in range(6, 12)], axis=1)
    frames = [wide[:, k * 20 : k * 20 + 192] for k in range(45)]
    assert found(frames) == [(0, 45)]


def test_a_flash_is_no_cut():
    frames = scene(1, 60)
    frames[30] = np.full_like(frames[30], 255)
    frames[31] = np.full_like(frames[31], 250)
    assert found(frames) == [(0, 60)]


def test_a_dissolve_parts_two_shots_and_belongs_to_neither():
    one, other = scene(1, 40), scene(2, 40)
    (first, second) = found(one + blend(one[-1], other[0], 10) + other)
    assert first[0] == 0
    assert 34 <= first[1] <= 41
    assert 49 <= second[0] <= 56
    assert second[1] == 90


def test_a_fade_from_black_is_left_out():
    frames = scene(1, 50)
    black = np.zeros_like(frames[0])
    ((first, stop),) = found(blend(black, frames[0], 12) + frames)
    assert 10 <= first <= 18
    assert stop == 62


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_very_short_videos(count):
    assert found(scene(1, count)) == [(0, count)]


def test_long_videos_are_worked_on_in_blocks(monkeypatch):
    frames = scene(1, 50) + scene(2, 50) + blend(scene(2, 50)[-1], scene(3, 1)[0], 8) + scene(3, 50)
    whole = found(frames)
    monkeypatch.setattr("duogen_core.data.pairs.video.shots.BLOCK", 7)
    assert found(frames) == whole
    assert len(whole) == 3


def clips(seconds: float, rate: float = 25, **rules: float):
    times = np.arange(round(seconds * rate)) / rate
    return clips_of([Shot(0, len(times))], times, {**PRESET["clip"], **rules})


def test_clips_are_five_seconds_and_follow_each_other():
    first, second, third = clips(12.4)
    assert (first.begin, first.end, second.begin, second.end) == (0.08, 5.08, 5.12, 10.12)
    assert (third.begin, third.end, third.short) == (10.16, 12.28, False)
    assert (first.first, first.last, second.first) == (2, 127, 128)


def test_a_rest_that_is_too_short_says_so():
    assert [clip.short for clip in clips(7.0)] == [False, True]
    assert [clip.short for clip in clips(1.5)] == [True]
    assert [clip.short for clip in clips(0.1)] == [True]
    assert [clip.short for clip in clips(7.0, min_seconds=1.0)] == [False, False]


def test_clips_stay_in_their_shot_whatever_the_times():
    rng = np.random.default_rng(0)
    for _ in range(100):
        times = np.cumsum(rng.choice([0.0, 0.02, 0.04, 0.3, 4.0], rng.integers(2, 200), p=[0.1, 0.3, 0.5, 0.09, 0.01]))
        middle = int(rng.integers(1, len(times)))
        for clip in clips_of([Shot(0, middle), Shot(middle, len(times))], times, PRESET["clip"]):
            low, high = (0, middle) if clip.shot == 0 else (middle, len(times))
            assert low <= clip.first <= clip.last < high
            if not clip.short:
                assert clip.first < clip.last
                assert 1.9 < clip.seconds < 5.2


def test_a_preset_without_sense_is_refused():
    with pytest.raises(DuoGenError, match=r"clip.min_seconds 9"):
        load_preset("video", settings=["clip.min_seconds=9"])
    with pytest.raises(DuoGenError, match="expected jpeg or png"):
        load_preset("video", settings=["store.format=gif"])
