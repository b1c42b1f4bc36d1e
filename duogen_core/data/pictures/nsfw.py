"""Scores pictures that are not safe for work, by an image classifier of the user: off unless a preset names one.

    nsfw = Nsfw(preset.nsfw)         a folder with a transformers model and its image processor; nothing is downloaded
    nsfw.score(pixels)               the probability of the labels that count, together: 0 … 1

Any model of the kind `image-classification` will do. Which of its labels count is a list in the preset: names differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from duogen_core.data.runs.input_files import FileDigests
from duogen_core.errors import DuoGenError, is_system_failure


def folder_of(rules: Mapping[str, Any]) -> Path | None:
    """The model's folder; None when the filter is off."""
    if not rules["model"]:
        return None
    folder = Path(rules["model"])
    if not (folder / "config.json").is_file():
        raise DuoGenError(f"nsfw.model={folder} is no model; expected a folder with config.json and model.safetensors.")
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
