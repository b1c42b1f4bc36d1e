"""The transition from a clip's first frame to its last, in words by a vision-language model: object, action, camera.

    Describer(client).describe(first, last, seconds) -> {"object", "action", "camera", "instruction"}

An answer counts if it fits the schema and passes `check`; otherwise it is asked for again by the client, and in the end
an AnswerError is raised.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from duogen_core.data.llm.answers import AnswerError
from duogen_core.data.llm.client import Client
from duogen_core.data.llm.messages import load_prompt, messages
from duogen_core.data.runs.presets import digest

PROMPTS = Path(__file__).with_name("prompts")
SIDE = 768  # longer side of what the model is shown
MOST_TOKENS = 700
FIELDS = {"object": 600, "action": 600, "camera": 300, "instruction": 900}  # and the most characters of each
SCHEMA = {
    "type": "object",
    "properties": {name: {"type": "string", "minLength": 3, "maxLength": most} for name, most in FIELDS.items()},
    "required": list(FIELDS),
    "additionalProperties": False,
}
LINK = re.compile(r"https?://|www\.|<[a-z/!|][^>]*>", re.IGNORECASE)
TALK = re.compile(r"\b(?:frames?|clip|video|(?:second|last|first) (?:picture|image))\b", re.IGNORECASE)
FEWEST_WORDS = 4


class Describer:
    def __init__(self, client: Client) -> None:
        self.client = client
        self.prompt = load_prompt(PROMPTS / "describe.txt")

    def identity(self) -> dict[str, Any]:
        """What its answers depend on."""
        return {"model": self.client.endpoint.model, "prompt": digest([self.prompt, SCHEMA, SIDE])}

    def describe(self, first: np.ndarray, last: np.ndarray, seconds: float) -> dict[str, str]:
        prompt = self.prompt.replace("SECONDS", f"{seconds:g}")
        asked = messages(prompt, {}, [_shown(first), _shown(last)])
        answer = self.client.ask(asked, SCHEMA, max_tokens=MOST_TOKENS, check=check)
        return {name: " ".join(answer.value[name].split()) for name in FIELDS}


def check(value: Mapping[str, str]) -> None:
    """Raises an AnswerError, which the model is shown, for what a schema cannot say."""
    for name in FIELDS:
        if LINK.search(value[name]):
            raise AnswerError(f"{name} has a link or a tag in it; describe the pictures in plain words.")
    instruction = value["instruction"]
    if len(instruction.split()) < FEWEST_WORDS:
        raise AnswerError("instruction is too short to draw by; say what moves, what it does and where it ends.")
    if word := TALK.search(instruction):
        raise AnswerError(f"instruction speaks of {word[0]!r}; ask for the new picture as if it did not exist yet.")


def undescribed(seconds: float) -> str:
    """The request of a pair that nobody described: it says only how much later."""
    return load_prompt(PROMPTS / "undescribed.txt").replace("SECONDS", f"{seconds:g}")


def _shown(pixels: np.ndarray) -> np.ndarray:
    if max(pixels.shape[:2]) <= SIDE:
        return pixels
    image = Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.asarray(image)
