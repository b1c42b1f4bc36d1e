"""What answers in a language model's place: the steps of `data dialogues` with answers as good as they could be.

    Client(endpoint, transport=StandIn(cases))

It describes a picture by the step of the guide that looks most like it, and writes a text again without the lines that
are the site's and the captions that came between. It knows both from the guides, so this is what the engine's own part
comes to with a model that makes no mistake, and not what any model does.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from sketchbook_pages import LINES, step_words

from duogen_core.llm.answers import Answer
from duogen_core.sketchbook.tasks.common import Case

DATA = re.compile(r'<data name="\w+" id="\w+">\n(.*?)\n</data', re.DOTALL)
MARK = re.compile(r"\[image (\d+): .*\]$", re.DOTALL)
SIDE = 32  # pixels along each side of what pictures are compared by


class StandIn:
    def __init__(self, cases: Sequence[Case]) -> None:
        self.guides: dict[str, list[Case]] = {}
        for case in cases:
            self.guides.setdefault(case.prompt.text.strip(), []).append(case)

    def __call__(self, body: Mapping[str, Any]) -> Answer:
        content = body["messages"][-1]["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        data = DATA.search(parts[0]["text"])[1]
        value = self.described(data, parts[1]["image_url"]["url"]) if len(parts) > 1 else rewritten(data)
        return Answer(json.dumps(value), "stop", 0, 0, False)

    def described(self, about: str, address: str) -> dict[str, str]:
        title = re.match(r"title of the page: (.*)", about)[1]
        seen = tiny(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))))
        steps = [
            (np.abs(tiny(Image.fromarray(picture.pixels)) - seen).mean(), step_words(case, step))
            for case in self.guides[title]
            for step, picture in enumerate(case.document.last_turn.pictures, 1)
        ]
        return {"caption": min(steps)[1], "visible_text": "", "kind": "drawing"}


def rewritten(guide: str) -> dict[str, list[dict[str, Any]]]:
    passages: list[dict[str, Any]] = []
    early: list[int] = []  # pictures before the first passage
    for paragraph in guide.split("\n\n"):
        if mark := MARK.match(paragraph):
            (passages[-1]["images"] if passages else early).append(int(mark[1]))
        elif paragraph not in LINES and not paragraph.startswith("Drawing "):
            passages.append({"text": paragraph, "images": early})
            early = []
    return {"passages": passages}


def tiny(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX), np.float32)
