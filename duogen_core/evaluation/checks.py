"""What can be said of any answer without a judge: its structure, how much stayed as it was, how text and images fit.

    found = check(document, given=len(item.prompt.turns), images=item.images)      structure alone, needs nothing
    found = check(document, …, likeness=True, clip=Clip(folder))                   with SSIM and a CLIP or SigLIP model
    found.values     {name: number or None}: MEASURES says what each is; None where it does not apply
    found.detail     {"order": "TITI", "drawn": 2, "asked": 3, "stop": "max_images", "one_colour": [2],
                      "repeats": {2: 1}}: image 2 is image 1 again
    ssim(image, other, stays=mask)     likeness of two images, of what should stay alone where a mask says where that is

An answer is all that the assistant's turns give after the first `given` turns. Images are numbered from 1; what they
are compared with counts the user's images, too. SSIM is that of Wang et al. 2004 (Gaussian window of 11 pixels, 1.5
wide) by kornia, which ComfyUI brings along. A model for `Clip` is a folder on this machine: nothing is downloaded.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from duogen_core.document import Document, Part, Picture, Text
from duogen_core.errors import DuoGenError, MissingPackage, first_line
from duogen_core.files import read_json

BY_CLIP = "text and image"
# name: (lowest, highest, what it says)
MEASURES: Mapping[str, tuple[float, float, str]] = {
    "images asked for": (0, 1, "as many images were drawn as were asked for"),
    "ended by itself": (0, 1, "the model ended by itself, not at a limit of images or tokens, and was not interrupted"),
    "images with content": (0, 1, "share of images that are not all of one colour"),
    "images new": (0, 1, "share of images that are not an earlier one again"),
    "likeness to the given image": (-1, 1, "SSIM of the first image with the user's last one"),
    "likeness of steps": (-1, 1, "mean SSIM of each image with the one before it"),
    BY_CLIP: (-1, 1, "mean cosine of each image with the text that leads to it, by a model"),
}
ONE_COLOUR = 2.0  # standard deviation of every channel, of 255: less is what a decoder makes of a blank
SAME = 1.0  # mean difference, of 255: less is an image that was decoded again
WINDOW = 11
CLIP_KINDS = ("clip", "siglip")


@dataclass(frozen=True)
class Checked:
    values: Mapping[str, float | None]
    detail: Mapping[str, Any]


def check(
    document: Document, given: int, images: int | None = None, *, likeness: bool = False, clip: Clip | None = None
) -> Checked:
    """Checks an answer. given: how many turns of the document are the prompt. images: how many were asked for."""
    said = [part for turn in document.turns[given:] if turn.role == "assistant" for part in turn.parts]
    before = [part for turn in document.turns[:given] for part in turn.parts]
    drawn = [part for part in said if isinstance(part, Picture)]
    stop = document.generation.get("stop_reason")
    one_colour = [number for number, picture in enumerate(drawn, 1) if is_one_colour(picture)]
    repeats = _repeats([part for part in before if isinstance(part, Picture)], drawn)
    values: dict[str, float | None] = {
        "images asked for": None if images is None else float(len(drawn) == images),
        "ended by itself": None if stop is None else float(stop == "end"),
        "images with content": 1 - len(one_colour) / len(drawn) if drawn else None,
        "images new": 1 - len(repeats) / len(drawn) if drawn else None,
    }
    if likeness:
        shown = [part for turn in document.turns[:given] if turn.role == "user" for part in turn.pictures]
        steps = [ssim(one, other) for one, other in itertools.pairwise(drawn)]
        values["likeness to the given image"] = ssim(shown[-1], drawn[0]) if shown and drawn else None
        values["likeness of steps"] = sum(steps) / len(steps) if steps else None
    if clip is not None:
        cosines = clip.scores(captions(before, said))
        values[BY_CLIP] = sum(cosines) / len(cosines) if cosines else None
    detail = {
        "order": order(said), "drawn": len(drawn), "asked": images, "stop": stop,
        "one_colour": one_colour, "repeats": repeats,
    }  # fmt: skip
    return Checked(values, detail)


def means(found: Iterable[Checked]) -> dict[str, float]:
    """The mean of every measure over the answers that it applies to, in the order of MEASURES."""
    values: dict[str, list[float]] = {name: [] for name in MEASURES}
    for one in found:
        for name, value in one.values.items():
            if value is not None:
                values[name].append(value)
    return {name: sum(numbers) / len(numbers) for name, numbers in values.items() if numbers}


def order(parts: Iterable[Part]) -> str:
    """T for text and I for an image, in their order: "TIIT". Texts in a row are one, blank ones none."""
    found = ""
    for part in parts:
        if isinstance(part, Picture):
            found += "I"
        elif part.text.strip() and not found.endswith("T"):
            found += "T"
    return found


def is_one_colour(picture: Picture) -> bool:
    return bool((picture.pixels.reshape(-1, 3).std(axis=0) < ONE_COLOUR).all())


def is_same(picture: Picture, other: Picture) -> bool:
    """Whether two images show the same pixels, but for what a decoder changes."""
    if picture.size != other.size:
        return False
    return float(np.abs(picture.pixels.astype(np.int16) - other.pixels).mean()) < SAME


def _repeats(shown: Sequence[Picture], drawn: Sequence[Picture]) -> dict[int, int]:
    """{image: the earlier one that it is again}; 0 and below are the user's, 0 the last of them."""
    earlier = {number - len(shown) + 1: picture for number, picture in enumerate(shown)}
    found = {}
    for number, picture in enumerate(drawn, 1):
        again = next((k for k in sorted(earlier, reverse=True) if is_same(picture, earlier[k])), None)
        if again is not None:
            found[number] = again
        earlier[number] = picture
    return found


def captions(before: Sequence[Part], said: Sequence[Part]) -> list[tuple[str, Picture]]:
    """Each image of an answer with the text that leads to it: what was written since the image before it; where that
    is nothing, the text that led to that one, and at first the last of the prompt."""
    found: list[tuple[str, Picture]] = []
    text = next((part.text for part in reversed(before) if isinstance(part, Text) and part.text.strip()), "")
    since = ""
    for part in said:
        if isinstance(part, Picture):
            text, since = since.strip() or text, ""
            found.append((text.strip(), part))
        else:
            since += part.text
    return found


def ssim(image: Picture, other: Picture, stays: np.ndarray | None = None) -> float:
    """Structural similarity from -1 to 1; 1 is the same image. Of another size, the other one is resized.

    stays: bool [H, W] of the first image, True where nothing should change; the mean is over these pixels alone.
    """
    try:
        from kornia.metrics import ssim as ssim_map
    except ImportError:
        raise MissingPackage("The likeness of images (SSIM)", "kornia", "evaluate") from None
    import torch
    from PIL import Image

    height, width = image.pixels.shape[:2]
    if stays is not None and (stays.shape != (height, width) or not stays.any()):
        raise DuoGenError(
            f"What should stay is given as {list(stays.shape)} with {int(stays.sum())} pixels; expected some of "
            f"{[height, width]}, the size of the first image."
        )
    pixels = other.pixels
    if other.size != image.size:
        pixels = np.asarray(Image.fromarray(pixels).resize(image.size, Image.Resampling.LANCZOS))
    one, two = (torch.tensor(array).permute(2, 0, 1)[None] / 255.0 for array in (image.pixels, pixels))
    window = min(WINDOW, (min(height, width) - 1) // 2 * 2 + 1)  # odd, and no larger than the image
    found = ssim_map(one, two, window)[0].mean(0).numpy()
    if stays is not None:
        return float(found[stays].mean())
    edge = window // 2 if min(height, width) > WINDOW else 0  # a window that passes the edge sees what is not there
    return float(found[edge : height - edge, edge : width - edge].mean())


class Clip:
    """A CLIP or SigLIP model of transformers in a local folder: the cosine of texts and images."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        what = f"The model for text and images, {folder}"
        if not folder.is_dir():
            raise DuoGenError(
                f"{what}, is no folder; expected one with config.json, model.safetensors, tokenizer and "
                "preprocessor_config.json of a CLIP or SigLIP model."
            )
        config = read_json(folder / "config.json", "configuration")
        kind = config.get("model_type") if isinstance(config, dict) else None
        if kind not in CLIP_KINDS:
            raise DuoGenError(f"{what}, is of the kind {kind!r}; expected {' or '.join(CLIP_KINDS)}.")
        if not any(folder.glob("*.safetensors")):
            raise DuoGenError(f"{what}, has no .safetensors; weights in other files are not read.")
        from safetensors import SafetensorError
        from transformers import AutoModel, AutoProcessor

        try:
            model, found = AutoModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True, trust_remote_code=False
            )
            self.processor = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
            raise DuoGenError(f"{what}, cannot be loaded: {first_line(error)}.") from None
        if found["missing_keys"]:  # transformers would go on with random ones
            raise DuoGenError(f"{what}, lacks the weights {', '.join(sorted(found['missing_keys'])[:3])}.")
        self.model = model.float().to(device).eval()
        self.name, self.device = folder.name, device
        # SigLIP was trained with texts filled up to its full length and no mask over the filling.
        self.filled = kind == "siglip"
        self.length = self.model.config.text_config.max_position_embeddings

    def scores(self, pairs: Sequence[tuple[str, Picture]]) -> list[float]:
        """The cosine of each text with its image; of a longer text, the beginning is read (CLIP: 77 tokens)."""
        found = []
        for text, picture in pairs:
            texts, images = self.embeddings([text], [picture])
            found.append(float(texts[0] @ images[0]))
        return found

    def embeddings(self, texts: Sequence[str], pictures: Sequence[Picture]) -> tuple[np.ndarray, np.ndarray]:
        """Texts [N, width] and images [M, width], each of length 1."""
        import torch

        inputs = self.processor(
            text=list(texts), images=[picture.pixels for picture in pictures], return_tensors="pt", truncation=True,
            max_length=self.length, padding="max_length" if self.filled else True,
        )  # fmt: skip
        names = ("input_ids", "pixel_values") if self.filled else ("input_ids", "attention_mask", "pixel_values")
        with torch.inference_mode():
            out = self.model(**{name: inputs[name].to(self.device) for name in names})
        normal = torch.nn.functional.normalize
        return normal(out.text_embeds, dim=-1).cpu().numpy(), normal(out.image_embeds, dim=-1).cpu().numpy()
