"""What a picture is: a photograph, a screenshot of a GUI, or a document page.

A linear classifier over `features`, with its weights in classing.json (made by tests/bench/web_classing.py, which also
measures it). Drawings and charts are counted with what they most resemble, most often screenshots.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np

from duogen_core.data.pictures.features import NAMES, features

CLASSES = ("photo", "screenshot", "document")
WEIGHTS = Path(__file__).with_name("classing.json")


def class_of(pixels: np.ndarray) -> tuple[str, float]:
    """The class, and its probability."""
    mean, scale, weight, bias = _weights()
    scores = ((features(pixels) - mean) / scale) @ weight + bias
    shares = np.exp(scores - scores.max())
    shares /= shares.sum()
    best = int(shares.argmax())
    return CLASSES[best], round(float(shares[best]), 4)


@cache
def _weights() -> tuple[np.ndarray, ...]:
    values = json.loads(WEIGHTS.read_text("utf-8"))
    assert tuple(values["features"]) == NAMES and tuple(values["classes"]) == CLASSES
    return tuple(np.array(values[name]) for name in ("mean", "scale", "weight", "bias"))
