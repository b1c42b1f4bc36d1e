"""Shots and clips of a video from small copies of all its frames. Everything here is arithmetic; nothing is decoded.

    shots(small, times, rules) -> [Shot(first, stop, value), …]      small: uint8 [frames, 18, 32, 3]
    clips_of(shots, times, rules) -> [Clip, …]     five seconds each, and what is left at the end if it is long enough

A cut is a difference between neighbouring frames that is large, all over the picture, and large beside those around it
(a fast pan differs much all the time; PySceneDetect's adaptive detector does the same), and that stays: around a flash
the pictures are alike. In a dissolve or a fade the picture half-way is the mean of the two at its ends, which moving
things never are; what lies within one belongs to no shot. A clip is known by its first and last frame, the pair that is
learnt from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

WIDTH, HEIGHT = 32, 18
AROUND = 2  # frames on each side that a difference is compared with
SEEN = 12  # of 255: a difference that counts
FLASH = 4  # frames on the other side among which the same picture is looked for
BLOCK = 4096  # frames that are worked on at once


@dataclass(frozen=True)
class Shot:
    """Frames first … stop - 1. value: how clear the change at its beginning is (0 at the video's own)."""

    first: int
    stop: int
    value: float = 0.0


def shots(small: np.ndarray, times: np.ndarray, rules: Mapping[str, Any]) -> list[Shot]:
    """All shots in order. rules: the section `shot` of the preset."""
    count = len(small)
    if count == 0:
        return []
    cuts = dict(_cuts(small, rules))
    gradual = _dissolves(small, times, rules)
    found: list[Shot] = []
    first, value = 0, 0.0
    for begin, stop, clear in sorted([(k, k, v) for k, v in cuts.items()] + gradual):
        if begin > first:
            found.append(Shot(first, begin, value))
        if stop >= first:
            first, value = stop, clear
    if first < count:
        found.append(Shot(first, count, value))
    return found


def differences(small: np.ndarray, apart: int = 1) -> np.ndarray:
    """The mean difference, of 255, of each frame from the one `apart` before it; 0 where there is none."""
    found = np.zeros(len(small), np.float32)
    for begin in range(apart, len(small), BLOCK):
        now = small[begin : begin + BLOCK].astype(np.int16)
        before = small[begin - apart : begin - apart + len(now)]
        found[begin : begin + len(now)] = np.abs(now - before).mean((1, 2, 3))
    return found


def _cuts(small: np.ndarray, rules: Mapping[str, Any]) -> list[tuple[int, float]]:
    """The first frame of each new shot, and how many times larger its difference is than those around it."""
    change = differences(small)
    around = np.zeros_like(change)
    padded = np.pad(change[1:], AROUND, mode="reflect") if len(change) > AROUND + 1 else None
    if padded is None:
        around[:] = 0
    else:
        sides = [padded[k : k + len(change) - 1] for k in (*range(AROUND), *range(AROUND + 1, 2 * AROUND + 1))]
        around[1:] = np.mean(sides, axis=0)
    ratio = change / np.maximum(around, rules["least_around"])
    cuts = []
    for k in np.flatnonzero((change >= rules["min_change"]) & (ratio >= rules["min_ratio"])):
        if _spread(small[k - 1], small[k]) < rules["min_spread"]:
            continue
        begins = _nearest(small[k - 1], small[k + 1 : k + 1 + FLASH])
        ends = _nearest(small[k], small[max(k - 1 - FLASH, 0) : k - 1])
        if min(begins, ends) >= rules["flash_back"] * change[k]:
            cuts.append((int(k), round(float(ratio[k]), 2)))
    return cuts


def _spread(one: np.ndarray, other: np.ndarray) -> float:
    """The share of the picture that differs: nearly all at a cut, a part where a thing or a caption appears."""
    return float((np.abs(one.astype(np.int16) - other).max(2) >= SEEN).mean())


def _nearest(one: np.ndarray, others: np.ndarray) -> float:
    """The mean difference of a frame from that of the others which is most like it."""
    return float(np.abs(others.astype(np.int16) - one).mean((1, 2, 3)).min()) if len(others) else np.inf


def _dissolves(small: np.ndarray, times: np.ndarray, rules: Mapping[str, Any]) -> list[tuple[int, int, float]]:
    """(first frame of the dissolve, first one after it, how large it is) for each."""
    if len(small) < 3:
        return []
    rate = (len(times) - 1) / max(float(times[-1] - times[0]), 1e-6)
    half = max(round(rate * rules["dissolve_seconds"] / 2), 2)
    span = 2 * half
    if len(small) <= span:
        return []
    mixed = np.zeros(len(small), bool)  # by the frame in the middle
    size = np.zeros(len(small), np.float32)
    for begin in range(0, len(small) - span, BLOCK):
        stop = min(begin + BLOCK, len(small) - span)
        one = small[begin:stop].astype(np.int16)
        middle = small[begin + half : stop + half].astype(np.int16)
        other = small[begin + span : stop + span].astype(np.int16)
        whole = np.abs(other - one).mean((1, 2, 3))
        rest = np.abs(2 * middle - one - other).mean((1, 2, 3))  # twice the distance of the middle from the mean
        size[begin + half : stop + half] = whole
        mixed[begin + half : stop + half] = (whole >= rules["dissolve_change"]) & (
            rest <= rules["dissolve_rest"] * whole
        )
    found: list[tuple[int, int, float]] = []
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mixed.astype(np.int8), [0]])))
    for begin, stop in zip(edges[::2], edges[1::2]):
        if stop - begin < max(half // 2, 2):  # one chance resemblance is no dissolve
            continue
        found.append(
            (max(int(begin) - half, 0), min(int(stop) + half, len(small)), round(float(size[begin:stop].max()), 2))
        )
    return found


# ------------------------------------------------------------ clips


@dataclass(frozen=True)
class Clip:
    shot: int
    first: int  # frames
    last: int
    begin: float  # seconds
    end: float
    short: bool = False  # too short for a pair

    @property
    def seconds(self) -> float:
        return round(self.end - self.begin, 3)


def clips_of(shots: Sequence[Shot], times: np.ndarray, rules: Mapping[str, Any]) -> list[Clip]:
    """All clips in order, those too short for a pair among them. rules: the section `clip` of the preset."""
    found: list[Clip] = []
    half = 0.5 * float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    for number, shot in enumerate(shots):
        inside = times[shot.first : shot.stop]
        margin = rules["margin"]
        frame = shot.first + int(np.searchsorted(inside, inside[0] + margin - half))
        last = shot.first + int(np.searchsorted(inside, inside[-1] - margin + half, side="right")) - 1
        if frame >= last:
            found.append(_clip(number, shot.first, shot.stop - 1, times, True))
            continue
        while frame < last and len(found) < rules["max_clips"]:
            stop = int(np.searchsorted(times[: last + 1], times[frame] + rules["seconds"] + half, side="right")) - 1
            stop = max(min(stop, last), frame)
            short = times[stop] - times[frame] < rules["min_seconds"] - half
            found.append(_clip(number, frame, stop, times, bool(short)))
            frame = stop + 1
    return found


def _clip(shot: int, first: int, last: int, times: np.ndarray, short: bool) -> Clip:
    return Clip(shot, first, last, round(float(times[first]), 3), round(float(times[last]), 3), short)
