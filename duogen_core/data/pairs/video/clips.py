"""Shots -> clips: five seconds each, one after the other, and what is left at the end if it is long enough.

A clip is known by its first and last frame, the pair that is learnt from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from duogen_core.data.pairs.video.shots import Shot


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
