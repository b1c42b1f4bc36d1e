"""Finds objects in images for GenEval: a detector of transformers in a local folder, and what colour each object has.

    detector = Detector(folder, clip=Clip(folder))
    said = {ask.key: detector.reply(ask) for ask in benchmark("geneval").asks(item, document)}
    benchmark("geneval").score(item, document, said)

In: an `Ask` of GenEval, its image and the classes it asks for. Out: {"objects": [{"class", "box", "score", "colour"?}],
"sure": [from which score an object counts, from which one where a number is asked for]}, boxes in thousandths.
Three kinds of models, told by their configuration: instance segmentation (Mask2Former, which GenEval uses, MaskFormer),
detection with fixed classes (DETR, RT-DETR, YOLOS, …), detection by words (OWL-ViT, OWLv2). The figures are **ours**:
GenEval's own come from mmdet's weights of Mask2Former-Swin-S, and 0.3 and 0.9 are that model's thresholds.
Colours are CLIP's, as GenEval's are, where a model for it is named; else those of the nearest named colours.
Nothing is downloaded; weights are safetensors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from duogen_core.document import Picture
from duogen_core.errors import DuoGenError, first_line
from duogen_core.evaluation.benchmarks import Ask
from duogen_core.evaluation.benchmarks.geneval import BOX_SIDE, COLOURS, SURE, SURE_COUNTING
from duogen_core.files import read_json

if TYPE_CHECKING:
    from duogen_core.evaluation.checks import Clip

SEGMENTERS, BY_WORDS = ("mask2former", "maskformer"), ("owlvit", "owlv2")
# GenEval's names -> others that detectors of COCO's classes have for them.
ALIASES = {
    "computer mouse": ("mouse",), "tv remote": ("remote", "remote control"), "computer keyboard": ("keyboard",),
    "tv": ("tv monitor", "television"), "couch": ("sofa",), "motorcycle": ("motorbike",), "airplane": ("aeroplane",),
    "donut": ("doughnut",), "hair drier": ("hair dryer",), "cell phone": ("mobile phone",),
}  # fmt: skip
# What CLIP compares a crop with; the mean of the three stands for a colour.
PHRASES = ("a photo of a {colour} {thing}", "a {colour} {thing}", "something {colour}")
# Names of CSS by the colour that English calls them; a pixel has the colour of the nearest one (in CIELAB).
NAMED = {
    "red": ("red", "crimson", "firebrick", "darkred", "indianred"),
    "orange": ("orange", "darkorange", "coral"),
    "yellow": ("yellow", "gold", "khaki", "palegoldenrod"),
    "green": ("green", "lime", "limegreen", "forestgreen", "darkgreen", "seagreen", "olivedrab", "lightgreen"),
    "blue": ("blue", "mediumblue", "navy", "dodgerblue", "royalblue", "steelblue", "skyblue", "cadetblue"),
    "purple": ("purple", "indigo", "darkviolet", "mediumpurple", "mediumorchid", "plum"),
    "pink": ("pink", "hotpink", "deeppink", "lightpink", "palevioletred"),
    "brown": ("brown", "saddlebrown", "sienna", "chocolate", "peru", "maroon"),
    "black": ("black", "#202020"),
    "white": ("white", "whitesmoke", "snow", "ivory", "lightgray"),  # the last one is white in a light shade
    "grey": ("gray", "dimgray", "darkgray", "silver", "slategray"),  # none of GenEval's: it is told, and is no colour
}
MIDDLE = 0.5  # of a box's width and height: where an object without a mask is looked at for its colour
GREY = (0x99, 0x99, 0x99)  # what GenEval lays over all that is not the object, before CLIP sees the crop


@dataclass(frozen=True)
class Found:
    """An object: the model's name for it, [left, top, right, bottom] in pixels, and a mask [H, W] where it has one."""

    label: str
    score: float
    box: tuple[float, float, float, float]
    mask: np.ndarray | None = None


class Detector:
    def __init__(
        self,
        folder: Path,
        clip: Clip | None = None,
        sure: tuple[float, float] = (SURE, SURE_COUNTING),
        device: str = "cpu",
    ) -> None:
        """sure: from which score on an object counts, and from which one where a number of objects is asked for."""
        self.name, self.clip, self.sure, self.device = folder.name, clip, sure, device
        self.what = f"The detector {folder}"
        if not all(0 <= one <= 1 for one in sure):
            raise DuoGenError(f"A detector is sure between 0 and 1, not {sure[0]:g} and {sure[1]:g}.")
        if not folder.is_dir():
            raise DuoGenError(
                f"{self.what} is no folder; expected one with config.json, model.safetensors and "
                "preprocessor_config.json of a detector of transformers."
            )
        config = read_json(folder / "config.json", "configuration")
        self.kind = config.get("model_type") if isinstance(config, dict) else None
        if not any(folder.glob("*.safetensors")):
            raise DuoGenError(f"{self.what} has no .safetensors; weights in other files are not read.")
        self._load(folder)
        labels = self.model.config.id2label
        self.labels = {int(number): str(label) for number, label in labels.items()}

    @property
    def about(self) -> dict[str, Any]:
        """What its scores depend on, besides its own weights."""
        return {"colours": self.clip.name if self.clip else "nearest named", "sure": list(self.sure)}

    def _load(self, folder: Path) -> None:
        from safetensors import SafetensorError
        from transformers import (
            AutoImageProcessor,
            AutoModelForObjectDetection,
            AutoModelForUniversalSegmentation,
            AutoModelForZeroShotObjectDetection,
            AutoProcessor,
        )
        from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES as FIXED

        if self.kind not in (*SEGMENTERS, *BY_WORDS, *FIXED):
            raise DuoGenError(
                f"{self.what} is of the kind {self.kind!r}; expected {', '.join((*SEGMENTERS, *BY_WORDS))}, or one of "
                "transformers for object detection, such as detr or rt_detr."
            )
        how = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
        try:
            if self.kind in SEGMENTERS:
                model, found = AutoModelForUniversalSegmentation.from_pretrained(folder, trust_remote_code=False, **how)
            elif self.kind in BY_WORDS:
                model, found = AutoModelForZeroShotObjectDetection.from_pretrained(
                    folder, trust_remote_code=False, **how
                )
            else:
                model, found = AutoModelForObjectDetection.from_pretrained(folder, trust_remote_code=False, **how)
            if self.kind in BY_WORDS:
                self.processor = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            else:
                self.processor = AutoImageProcessor.from_pretrained(
                    folder, local_files_only=True, trust_remote_code=False
                )
        except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
            raise DuoGenError(f"{self.what} cannot be loaded: {first_line(error)}.") from None
        if found["missing_keys"]:  # transformers would go on with random ones
            raise DuoGenError(f"{self.what} lacks the weights {', '.join(sorted(found['missing_keys'])[:3])}.")
        self.model = model.float().to(self.device).eval()

    def reply(self, ask: Ask) -> dict[str, Any]:
        """Answers what GenEval asks about an image."""
        properties = ask.schema["properties"]["objects"]["items"]["properties"]
        classes, coloured = properties["class"]["enum"], "colour" in properties
        picture = ask.pictures[0][1]
        names = self._names(classes)
        objects = []
        for one in self.find(picture, classes):
            if (name := names.get(plain(one.label))) is None:
                continue
            scale = BOX_SIDE / np.array(picture.size * 2)
            box = [round(min(max(float(side), 0.0), BOX_SIDE), 2) for side in one.box * scale]
            entry = {"class": name, "box": box, "score": round(one.score, 5)}
            if coloured:
                entry["colour"] = self.colour(picture, one, name)
            objects.append(entry)
        objects.sort(key=lambda entry: -entry["score"])
        return {"objects": objects, "sure": list(self.sure)}

    def _names(self, classes: Sequence[str]) -> dict[str, str]:
        """{the model's label, as `plain` has it: the class}; a class that the model does not know is an error."""
        if self.kind in BY_WORDS:
            return {plain(name): name for name in classes}
        known = {plain(label) for label in self.labels.values()}
        names = {}
        for name in classes:
            there = [plain(one) for one in (name, *ALIASES.get(name, ())) if plain(one) in known]
            if not there:
                raise DuoGenError(
                    f"{self.what} does not know the class {name!r}; expected a detector of COCO's 80 classes, or one "
                    f"that takes words ({', '.join(BY_WORDS)})."
                )
            names |= dict.fromkeys(there, name)
        return names

    def find(self, picture: Picture, classes: Sequence[str] = ()) -> list[Found]:
        """Every object that the model gives a score for. classes: what a model that takes words is asked for."""
        import torch

        size = [picture.size[::-1]]
        words = {"text": [[f"a photo of a {name}" for name in classes]]} if self.kind in BY_WORDS else {}
        inputs = self.processor(images=[picture.pixels], return_tensors="pt", **words).to(self.device)
        with torch.inference_mode():
            out = self.model(**inputs)
        least = min(self.sure)
        if self.kind in SEGMENTERS:
            found = self.processor.post_process_instance_segmentation(
                out, threshold=least, target_sizes=size, return_binary_maps=True
            )[0]
            masks = found["segmentation"]
            pairs = zip(found["segments_info"], () if masks is None else masks)
            return [
                Found(self.labels[one["label_id"]], float(one["score"]), around(mask), mask)
                for one, mask in ((one, mask.cpu().numpy() > 0.5) for one, mask in pairs)
                if mask.any()
            ]
        if self.kind in BY_WORDS:
            found = self.processor.post_process_grounded_object_detection(out, threshold=least, target_sizes=size)[0]
            labels = [classes[int(number)] for number in found["labels"]]
        else:
            found = self.processor.post_process_object_detection(out, threshold=least, target_sizes=size)[0]
            labels = [self.labels.get(int(number), "") for number in found["labels"]]
        boxes = found["boxes"].cpu().tolist()
        return [Found(label, float(score), tuple(box)) for label, score, box in zip(labels, found["scores"], boxes)]

    def colour(self, picture: Picture, found: Found, name: str) -> str:
        """Says which of GenEval's colours an object has; "grey" where it has none of them."""
        if self.clip is None:
            return nearest_colour(pixels_of(picture, found))
        return clip_colour(self.clip, crop(picture, found), name)


def plain(label: str) -> str:
    """A label without spaces and capitals: "Dining Table", "diningtable"."""
    return re.sub(r"[\s_-]+", "", label).lower()


def around(mask: np.ndarray) -> tuple[float, float, float, float]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def _inside(picture: Picture, box: Sequence[float]) -> tuple[slice, slice]:
    """Rows and columns of a box, at least a pixel, all of them in the image."""
    width, height = picture.size
    left, top = min(max(math.floor(box[0]), 0), width - 1), min(max(math.floor(box[1]), 0), height - 1)
    right, bottom = min(max(math.ceil(box[2]), left + 1), width), min(max(math.ceil(box[3]), top + 1), height)
    return slice(top, bottom), slice(left, right)


def pixels_of(picture: Picture, found: Found) -> np.ndarray:
    """The pixels [N, 3] of an object: those of its mask, or of the middle of its box, where it most likely is."""
    if found.mask is not None:
        return picture.pixels[found.mask]
    left, top, right, bottom = found.box
    x, y = (right - left) * (1 - MIDDLE) / 2, (bottom - top) * (1 - MIDDLE) / 2
    return picture.pixels[_inside(picture, (left + x, top + y, right - x, bottom - y))].reshape(-1, 3)


def crop(picture: Picture, found: Found) -> Picture:
    """An object's box, with grey over what its mask leaves out."""
    pixels = picture.pixels
    if found.mask is not None:
        pixels = np.where(found.mask[..., None], pixels, np.array(GREY, np.uint8))
    return Picture(np.ascontiguousarray(pixels[_inside(picture, found.box)]))


def nearest_colour(pixels: np.ndarray) -> str:
    """The colour of most pixels [N, 3], each counted for the nearest named one."""
    names, places = _named()
    step = max(1, len(pixels) // 20_000)
    distances = ((lab(pixels[::step])[:, None] - places) ** 2).sum(-1)
    counted = np.bincount(names[distances.argmin(1)], minlength=len(NAMED))
    return list(NAMED)[int(counted.argmax())]


@lru_cache
def _named() -> tuple[np.ndarray, np.ndarray]:
    """Of every name in NAMED the number of its colour, and its place in CIELAB."""
    from PIL import ImageColor

    names = [number for number, shades in enumerate(NAMED.values()) for _ in shades]
    values = [ImageColor.getrgb(shade) for shades in NAMED.values() for shade in shades]
    return np.array(names), lab(np.array(values, np.uint8))


def lab(pixels: np.ndarray) -> np.ndarray:
    """sRGB [N, 3] of 0 to 255 -> CIELAB for daylight (D65), in which distances are about those that one sees."""
    value = pixels / 255.0
    linear = np.where(value > 0.04045, ((value + 0.055) / 1.055) ** 2.4, value / 12.92)
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    )
    x, y, z = ((linear @ to_xyz.T) / (0.95047, 1.0, 1.08883)).T
    fx, fy, fz = (np.where(one > 216 / 24389, np.cbrt(one), (24389 / 27 * one + 16) / 116) for one in (x, y, z))
    return np.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)], -1)


def clip_colour(clip: Clip, picture: Picture, name: str) -> str:
    texts = [phrase.format(colour=colour, thing=name) for colour in COLOURS for phrase in PHRASES]
    texts_found, image = clip.embeddings(texts, [picture])
    # The mean direction of a colour's phrases.
    means = texts_found.reshape(len(COLOURS), len(PHRASES), -1).mean(1)
    means = means / np.linalg.norm(means, axis=-1, keepdims=True)
    return COLOURS[int((means @ image[0]).argmax())]
