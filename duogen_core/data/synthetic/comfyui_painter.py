"""The painter that has a ComfyUI server run a workflow for every picture.

    ComfyPainter(Server("http://127.0.0.1:8188"), [text, edit], preset, size=(1024, 768))

Several workflows may be given: of those that look at no more earlier pictures than there are, the one that looks at
most draws. One that looks at none has to be among them, for the first picture. Pictures come back as bytes of unknown
make: they are decoded in the limited child process of the web engine, by the preset's caps, and only pixels go on.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from duogen_core.data.runs.presets import Preset
from duogen_core.data.synthetic.comfyui import Server
from duogen_core.data.synthetic.painter import Painter, PainterError, Wanted
from duogen_core.data.synthetic.workflow import WANTED_TITLE, Workflow
from duogen_core.document import Picture
from duogen_core.document.picture_file import FORMATS
from duogen_core.errors import DuoGenError


class ComfyPainter(Painter):
    def __init__(
        self, server: Server, workflows: Sequence[Workflow], preset: Preset, size: tuple[int, int] | None = None
    ) -> None:
        from duogen_core.data.pictures.decoding import Decoder

        self.server, self.size = server, size
        self.workflows = sorted(workflows, key=lambda each: each.pictures)
        _check_server(self.workflows, size)
        self.caps = preset.picture
        side = self.caps["max_side"]
        self.decoder = Decoder({**self.caps, "max_pixels": side**2, "stored_side": side})
        self.uploaded: dict[str, str] = {}

    def identity(self) -> dict[str, Any]:
        drawn_by = {each.name: each.digest for each in self.workflows}
        models = sorted({name for each in self.workflows for name in each.models})
        return {
            "painter": "comfyui",
            "models": models,
            "workflows": drawn_by,
            "size": list(self.size) if self.size else None,
        }

    def paint(self, wanted: Wanted) -> np.ndarray:
        workflow = [each for each in self.workflows if each.pictures <= len(wanted.earlier)][-1]
        outputs = self.server.run(workflow.filled(self._values(wanted, workflow.places)))
        return self._decoded(self.server.view(_picture_of(outputs, workflow)), workflow)

    def close(self) -> None:
        self.decoder.close()

    def _values(self, wanted: Wanted, places: frozenset[str]) -> dict[str, Any]:
        values: dict[str, Any] = {"prompt": wanted.prompt, "seed": wanted.seed}
        if self.size:
            values |= {"width": self.size[0], "height": self.size[1]}
        named = {"first": wanted.earlier[:1]}
        named |= {f"earlier_{back}": wanted.earlier[-back:][:1] for back in range(1, len(wanted.earlier) + 1)}
        for place, pictures in named.items():
            if place in places:
                values[place] = self._uploaded(pictures[0])
        return values

    def _uploaded(self, picture: Picture) -> str:
        if picture.digest not in self.uploaded:
            self.uploaded[picture.digest] = self.server.upload(f"{picture.digest[:24]}.png", picture.to_png())
        return self.uploaded[picture.digest]

    def _decoded(self, data: bytes, workflow: Workflow) -> np.ndarray:
        facts, pixels = self.decoder.decode(data)
        side, size = self.caps["max_side"], (facts.get("width", 0), facts.get("height", 0))
        if pixels is not None and max(size) <= side:
            return pixels
        found = f"{size[0]}x{size[1]} pixels" if max(size) > side else str(facts.get("rule")).replace("_", " ")
        raise PainterError(
            f"The workflow {workflow.name} gave a picture that cannot be used ({found}); expected a still "
            f"picture ({FORMATS}) of at most {side:,} pixels a side."
        )


def _check_server(workflows: Sequence[Workflow], size: tuple[int, int] | None) -> None:
    if not workflows or workflows[0].pictures:
        raise DuoGenError(
            "The first picture of an answer has no earlier one; give one more --workflow, without ${first} and "
            "${earlier_1}."
        )
    for workflow in workflows:
        if size is None and workflow.places & {"width", "height"}:
            raise DuoGenError(
                f"The workflow {workflow.name} has ${{width}} or ${{height}}; give --size, such as 1024x768."
            )
    for one, other in itertools.pairwise(workflows):
        if one.pictures == other.pictures:
            raise DuoGenError(
                f"The workflows {one.name} and {other.name} look at the same number of earlier pictures "
                f"({one.pictures}); leave one out."
            )


def _picture_of(outputs: Mapping[str, Any], workflow: Workflow) -> Mapping[str, Any]:
    """The one picture of the workflow; of the node titled `picture` where there are several."""
    found = {id_: images for id_, shown in outputs.items() if (images := _images(shown))}
    chosen = [id_ for id_ in workflow.titled() if id_ in found] or list(found)
    pictures = [image for id_ in chosen for image in found[id_]]
    if len(pictures) == 1:
        return pictures[0]
    if not pictures:
        raise PainterError(f"The workflow {workflow.name} gave no picture; it needs a PreviewImage node.", stop=True)
    nodes = ", ".join(f"{workflow.nodes.get(id_, {}).get('class_type', '?')} (node {id_})" for id_ in chosen)
    raise PainterError(
        f"The workflow {workflow.name} gave {len(pictures)} pictures, by {nodes}; one is wanted: make it a single one, "
        f"or title the node that shows it “{WANTED_TITLE}”.",
        stop=True,
    )


def _images(shown: Any) -> list[Mapping[str, Any]]:
    images = shown.get("images") if isinstance(shown, dict) else None
    return [each for each in images if isinstance(each, dict)] if isinstance(images, list) else []
