"""Pictures described by a model that sees them: a caption, the text that can be read in it, and its kind.

    describe(picture, title, rules, writer) -> the picture with description, visible_text and seen_as in its meta

What the page says about a picture goes along as data; what can be read in it is data for all later steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from duogen_core.data.dialogues.rules import check_clean, prompt
from duogen_core.data.text import remove_personal
from duogen_core.document import Picture
from duogen_core.llm.messages import messages

KINDS = ("photo", "screenshot", "document", "drawing")
MOST_CAPTION, MOST_TEXT = 600, 2000
SCHEMA = {
    "type": "object",
    "properties": {
        "caption": {"type": "string", "minLength": 3, "maxLength": MOST_CAPTION},
        "visible_text": {"type": "string", "maxLength": MOST_TEXT},
        "kind": {"enum": list(KINDS)},
    },
    "required": ["caption", "visible_text", "kind"],
    "additionalProperties": False,
}


def describe(picture: Picture, title: str, rules: Mapping[str, Any], writer: Any) -> Picture:
    about = about_picture(picture, title)

    def check(value: Any) -> None:
        check_clean("describe", value["caption"], title)

    asked = messages(prompt("describe"), {"page": about}, [smaller(picture.pixels, int(rules["max_side"]))])
    value = writer.ask(asked, SCHEMA, int(rules["max_tokens"]), check=check).value
    seen = remove_personal(value["visible_text"], ("email", "phone", "ip"))[0]
    said = {"description": " ".join(value["caption"].split()), "visible_text": seen, "seen_as": value["kind"]}
    return replace(picture, meta={**picture.meta, **said})


def about_picture(picture: Picture, title: str) -> str:
    lines = [f"title of the page: {title[:300]}"]
    lines += [f"{name}: {str(picture.meta[name])[:600]}" for name in ("alt", "caption") if picture.meta.get(name)]
    return "\n".join(lines)


def smaller(pixels: np.ndarray, side: int) -> np.ndarray:
    from PIL import Image

    image = Image.fromarray(pixels)
    if max(image.size) <= side:
        return pixels
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.asarray(image)
