"""Chat messages out of a prompt file, data and pictures.

    messages(load_prompt(file), {"page": text}, [pixels])

A prompt is a plain text file with places such as ${page}. Whatever is put there is data: it is delimited by an id made
of its own hash (which its author cannot write into it), a system message says that such text is no instruction, and
the marks by which chat templates divide turns (<|im_end|> and the like) are broken up. Same input, same messages.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from duogen_core.errors import DuoGenError

if TYPE_CHECKING:
    import numpy as np

PROMPTS = Path(__file__).with_name("prompts")
TEMPLATE_MARKS = re.compile(
    r"<\|[^|<>\n]{1,40}\|>|</?s>|\[/?(?:INST|IMG|TOOL_CALLS)\]|<</?SYS>>|<(?:start|end)_of_\w{1,20}>|</?think>"
    r"|</?(?:image|video|tool_call|tool_response)>|<BOV>"
)
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")

Message = dict[str, Any]


def load_prompt(file: Path) -> str:
    try:
        return file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DuoGenError(f"The prompt {file} cannot be read: {getattr(error, 'strerror', None) or error}.") from None


def messages(prompt: str, data: Mapping[str, str], pictures: Sequence[np.ndarray] = ()) -> list[Message]:
    """Returns a system message about data (when there is any) and the prompt with the data in its places."""
    try:
        text = Template(prompt).substitute({name: as_data(name, value) for name, value in data.items()})
    except (KeyError, ValueError) as error:
        raise DuoGenError(f"The prompt has a placeholder without a value: {error}.") from None
    parts: list[Message] = [{"type": "text", "text": text}]
    parts += [picture_part(pixels) for pixels in pictures]
    content = parts if pictures else text
    rules = [{"role": "system", "content": load_prompt(PROMPTS / "data.txt")}] if data else []
    return [*rules, {"role": "user", "content": content}]


def without_marks(text: str) -> str:
    """Returns text in which no server finds a control token: no control characters, template marks broken up."""
    return TEMPLATE_MARKS.sub(_broken, CONTROLS.sub("", text))


def as_data(name: str, text: str) -> str:
    text = without_marks(text)
    mark = hashlib.sha256(text.encode()).hexdigest()[:16]
    return f'<data name="{name}" id="{mark}">\n{text}\n</data id="{mark}">'


def _broken(mark: re.Match) -> str:
    return f"{mark[0][0]} {mark[0][1:-1]} {mark[0][-1]}"


def picture_part(pixels: np.ndarray) -> Message:
    """Puts uint8 RGB [H, W, 3] as a PNG inside the message."""
    from duogen_core.document.picture_file import encode_png

    code = base64.b64encode(encode_png(pixels, {})).decode("ascii")
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{code}"}}


def fitted(pixels: np.ndarray, side: int) -> np.ndarray:
    """Returns the image with no side longer than `side`: a server counts pixels, and a model run here computes them."""
    height, width = pixels.shape[:2]
    if max(width, height) <= side:
        return pixels
    import numpy as np
    from PIL import Image

    size = tuple(max(1, round(one * side / max(width, height))) for one in (width, height))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
