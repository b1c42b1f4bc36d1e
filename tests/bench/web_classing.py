"""Fits the picture classes (photo, screenshot, document page) and measures them on other pictures.

    python tests/bench/web_classing.py [--fit]      needs the material of web_material.py and pypdfium2

web_classes.json names the pictures, labelled by hand: 300 to measure on, others to fit on, which are also
recompressed, rescaled and turned dark. No photograph's subject and no manual's pages are in both. --fit writes the
weights to duogen_core/data/pictures/classing.json.
"""

from __future__ import annotations

import argparse
import io
import json
from collections import Counter
from pathlib import Path

import checkout  # noqa: F401
import numpy as np
from PIL import Image
from web_material import pixels

from duogen_core.data.pictures import classing
from duogen_core.data.pictures.classing import CLASSES, NAMES, WEIGHTS, features

LABELS = json.loads(Path(__file__).with_name("web_classes.json").read_text("utf-8"))


def variants(picture: np.ndarray, kind: str) -> list[np.ndarray]:
    """The picture, a strongly compressed copy and a smaller one; of screenshots also two in a dark theme."""
    image, buffer = Image.fromarray(picture), io.BytesIO()
    image.save(buffer, "JPEG", quality=70)
    smaller = image.resize((max(image.width * 3 // 5, 1), max(image.height * 3 // 5, 1)), Image.Resampling.LANCZOS)
    packed = np.asarray(Image.open(buffer))
    dark = [255 - picture, 255 - packed] if kind == "screenshot" else []
    return [picture, packed, np.asarray(smaller), *dark]


def fit(penalty: float = 0.005, steps: int = 3000, rate: float = 0.5) -> dict:
    """Multinomial logistic regression by gradient descent; every class weighs the same."""
    rows, labels = [], []
    for label, kind in enumerate(CLASSES):
        for name in LABELS["fit"][kind]:
            for variant in variants(pixels(name), kind):
                rows.append(features(variant))
                labels.append(label)
    x, y = np.array(rows), np.eye(len(CLASSES))[labels]
    mean, scale = x.mean(0), x.std(0) + 1e-6
    x = (x - mean) / scale
    weigh = (y / y.sum(0)).sum(1, keepdims=True) / len(CLASSES)
    weight, bias = np.zeros((len(NAMES), len(CLASSES))), np.zeros(len(CLASSES))
    for _ in range(steps):
        scores = x @ weight + bias
        shares = np.exp(scores - scores.max(1, keepdims=True))
        error = (shares / shares.sum(1, keepdims=True) - y) * weigh
        weight -= rate * (x.T @ error + penalty * weight)
        bias -= rate * error.sum(0)
    values = {"mean": mean, "scale": scale, "weight": weight, "bias": bias}
    rounded = {name: np.round(value, 4).tolist() for name, value in values.items()}
    return {"features": NAMES, "classes": CLASSES, **rounded}


def measure() -> None:
    right = Counter()
    for kind in CLASSES:
        for name in LABELS["test"][kind]:
            found, certainty = classing.class_of(pixels(name))
            right[kind, found] += 1
            if found != kind:
                print(f"{kind} taken for {found} ({certainty:.2f}): {name}")
    total, good = sum(right.values()), sum(count for (kind, found), count in right.items() if kind == found)
    for kind in CLASSES:
        print(kind, {found: right[kind, found] for found in CLASSES})
    print(f"{good} of {total} right: {good / total:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--fit", action="store_true")
    if parser.parse_args().fit:
        WEIGHTS.write_text(json.dumps(fit()) + "\n", "utf-8")
    measure()
