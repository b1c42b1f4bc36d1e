"""What a picture shows: a photograph, a screenshot of a GUI or a document page; QR and bar codes; what is unsafe.

    class_of(pixels)     ("screenshot", 0.98)       code_share(pixels)     (0.12, "QRCode")

The class comes from a linear classifier over `features`, numbers from the pixels alone, with its weights in
classing.json (made by tests/bench/web_classing.py, which also measures it). Drawings and charts are counted with what
they most resemble, most often screenshots.

Screens are drawn: neighbouring pixels are equal, edges lie along rows and columns, lines run far. Photographs have
noise and soft slopes everywhere. Document pages are ink on paper: one light colour, little else, short marks in rows.
How light a picture is says nothing, since themes may be dark. Rows are sampled: a large picture costs no more than a
small one.

Pictures that are not safe for work are scored by an image classifier of the user, off unless a preset names one:
Nsfw(preset.nsfw) loads a folder with a transformers model and its image processor (nothing is downloaded), and
score(pixels) is the probability of the labels that count, together: 0 … 1. Any model of the kind `image-classification`
will do. Which of its labels count is a list in the preset, since names differ.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from duogen_core.data.runs.folder import FileDigests
from duogen_core.errors import DuoGenError, MissingPackage, is_system_failure

CLASSES = ("photo", "screenshot", "document")
WEIGHTS = Path(__file__).with_name("classing.json")
NAMES = (  # of the features
    "equal", "soft", "sharp", "paper", "top", "colours", "saturation", "long_lines", "blank_rows", "ink", "upright",
    "noise",
)  # fmt: skip
ROWS = 240  # rows that are looked at
BITS = 4  # of a colour channel, for counting colours
LONGEST = 1200  # pixels along the longer side; a code in a larger picture is found in a smaller copy of it


def class_of(pixels: np.ndarray) -> tuple[str, float]:
    """Returns the class and its probability."""
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


def features(pixels: np.ndarray) -> np.ndarray:
    """Returns one number for each of NAMES, most of them shares between 0 and 1."""
    height, width = pixels.shape[:2]
    rows = np.linspace(0, height - 1, min(ROWS, height)).astype(int)
    sampled, below = pixels[rows], pixels[np.minimum(rows + 1, height - 1)]
    step = _apart(sampled[:, 1:], sampled[:, :-1]) if width > 1 else np.zeros((len(rows), 1), np.uint8)
    down = _apart(sampled, below)
    red, green, blue = (sampled[..., channel] for channel in range(3))
    codes = (red >> (8 - BITS)).astype(np.uint16) << 2 * BITS | (green >> (8 - BITS)).astype(np.uint16) << BITS
    counts = np.bincount((codes | blue >> (8 - BITS)).ravel())
    shares = np.sort(counts[counts > 0])[::-1] / counts.sum()
    brightest, darkest = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    saturation = brightest - darkest
    grey = red.astype(np.uint16) + green + blue  # three times the grey
    paper = (darkest >= 225) & (saturation <= 20)
    blank = paper.mean(1) >= 0.98
    return np.array(
        [
            (step <= 1).mean(),
            ((step > 2) & (step < 24)).mean(),
            (step >= 64).mean(),
            paper.mean(),
            shares[0],
            np.log1p(np.searchsorted(np.cumsum(shares), 0.95)) / 8,
            saturation.mean() / 255,
            _long_runs(down >= 12, width),
            blank.mean(),
            (grey < 384)[~blank].mean() if (~blank).any() else 0.0,
            min(height / width, 3.0) / 3,
            ((step >= 1) & (step <= 4)).mean(),
        ]
    )


def _apart(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Returns the largest difference of a channel, pixel by pixel."""
    difference = np.maximum(one, other) - np.minimum(one, other)
    return np.maximum(np.maximum(difference[..., 0], difference[..., 1]), difference[..., 2])


def _long_runs(edges: np.ndarray, width: int) -> float:
    """Returns the share of rows in which an edge runs along at least a fifth of the width without a gap."""
    need = max(int(width * 0.2), 8)
    if width <= need:
        return 0.0
    sums = np.cumsum(np.pad(edges, ((0, 0), (1, 0))), axis=1)
    return float(((sums[:, need:] - sums[:, :-need]) >= need).any(1).mean())


def code_share(pixels: np.ndarray) -> tuple[float, str]:
    """Returns the largest code's share of the picture (0 where there is none) and its kind. zxing-cpp finds them."""
    try:
        import zxingcpp
    except ImportError:
        raise MissingPackage("Finding QR codes", "zxing-cpp", "data") from None
    image = Image.fromarray(pixels).convert("L")
    image.thumbnail((LONGEST, LONGEST), Image.Resampling.BILINEAR, reducing_gap=2.0)
    best, kind = 0.0, ""
    for code in zxingcpp.read_barcodes(np.asarray(image), formats=_formats(zxingcpp)):
        corners = (
            code.position.top_left,
            code.position.top_right,
            code.position.bottom_right,
            code.position.bottom_left,
        )
        share = _area([(point.x, point.y) for point in corners]) / (image.width * image.height)
        if share >= best:
            best, kind = max(share, 1e-4), str(code.format).rpartition(".")[2]
    return round(min(best, 1.0), 4), kind


def _formats(zxingcpp) -> list:
    names = ("QRCode", "MicroQRCode", "Aztec", "DataMatrix", "PDF417", "EAN13", "Code128")
    return [getattr(zxingcpp.BarcodeFormat, name) for name in names]


def _area(points: list[tuple[int, int]]) -> float:
    pairs = zip(points, points[1:] + points[:1])
    return abs(sum(x * b - a * y for (x, y), (a, b) in pairs)) / 2


# ------------------------------------------------------------ not safe for work


def folder_of(rules: Mapping[str, Any]) -> Path | None:
    """The model's folder; None when the filter is off."""
    if not rules["model"]:
        return None
    folder = Path(rules["model"])
    if not (folder / "config.json").is_file():
        raise DuoGenError(
            f"nsfw.model={folder} is not a model; expected a folder with config.json and model.safetensors."
        )
    return folder


def identity(rules: Mapping[str, Any], digests: FileDigests) -> list[list[Any]] | None:
    """Names and digests of the model's files, which a run compares; None when the filter is off."""
    folder = folder_of(rules)
    if folder is None:
        return None
    return [[file.name, digests.of(file)] for file in sorted(folder.iterdir()) if file.is_file()]


class Nsfw:
    def __init__(self, rules: Mapping[str, Any]) -> None:
        folder = folder_of(rules)
        try:
            from transformers import AutoImageProcessor, AutoModelForImageClassification

            # With auto_map in its config a folder may bring code of its own, which is never run.
            self.processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            self.model = AutoModelForImageClassification.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, trust_remote_code=False
            ).eval()
        except Exception as error:  # the library has no error of its own
            if is_system_failure(error):
                raise
            reason = " ".join(str(error).split())[:300]
            if "trust_remote_code" in str(error):  # the library's words tell how to run the folder's code
                reason = "it needs code of its own (auto_map), which is never run; take a model that transformers knows"
            raise DuoGenError(f"nsfw.model={folder} cannot be loaded as an image classifier: {reason}.") from None
        names = {int(number): str(name).lower() for number, name in self.model.config.id2label.items()}
        wanted = {str(label).lower() for label in rules["labels"]}
        self.numbers = [number for number, name in names.items() if name in wanted]
        if not self.numbers:
            raise DuoGenError(
                f"nsfw.model={folder} has none of the labels {', '.join(sorted(wanted))}; set nsfw.labels to those of "
                f"its own that count: {', '.join(list(names.values())[:20])}."
            )

    def score(self, pixels: np.ndarray) -> float:
        import torch
        from PIL import Image

        with torch.inference_mode():
            inputs = self.processor(images=Image.fromarray(pixels), return_tensors="pt")
            logits = self.model(**inputs).logits[0].float()
        many = getattr(self.model.config, "problem_type", None) == "multi_label_classification"
        shares = logits.sigmoid() if many else logits.softmax(-1)
        found = shares[self.numbers]
        return round(float(found.max() if many else found.sum()), 3)
