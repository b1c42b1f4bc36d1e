"""A task with its ideal answer: `Case`, and scenes as plain JSON data.

`document` is the complete conversation, pictures included; `prompt` is what the model is given; `truth` holds, as plain
JSON data, all that a checker needs to judge any other answer to the same prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from duogen_core.document import Document
from duogen_core.sketchbook.scene import Scene, Shape


@dataclass(frozen=True)
class Case:
    family: str
    document: Document
    truth: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> Document:
        """The conversation up to the last user turn."""
        last = max(k for k, turn in enumerate(self.document.turns) if turn.role == "assistant")
        return Document(turns=self.document.turns[:last])


def scene_to_dict(scene: Scene) -> dict[str, Any]:
    return {
        "shapes": [asdict(shape) for shape in scene.shapes],
        "background": scene.background,
        "canvas": list(scene.canvas),
    }


def scene_from_dict(data: Mapping[str, Any]) -> Scene:
    shapes = tuple(Shape(**shape) for shape in data["shapes"])
    width, height = data["canvas"]
    return Scene(shapes, data["background"], (width, height))
