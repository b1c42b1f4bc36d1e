"""The painter that has a ComfyUI server run a workflow for every picture.

    ComfyPainter(Server("http://127.0.0.1:8188"), [text, edit], preset, size=(1024, 768))

A Workflow is one of ComfyUI's (API format: Workflow > Export (API)) with places in the text of any input: ${prompt},
${seed}, ${width}, ${height}; ${first}, the answer's first picture; ${earlier_1}, the picture just before, ${earlier_2},
the one before that, …; ${seen_1}, ${seen_2}, …: the pictures that a plan wants seen, which its prompts call image 1,
image 2, … An input that is nothing but a place gets the value itself (a number for ${seed}); pictures are names of
uploaded files, for LoadImage nodes. Where no ${seed} stands, inputs called seed or noise_seed that hold a number get
it. Values are put into the parsed JSON, once: whatever a prompt says, it stays the text of that one input.

Several workflows may be given: of those that look at no more earlier pictures than there are, the one that looks at
most draws. One that looks at none has to be among them, for the first picture. Pictures come back as bytes of unknown
make: they are decoded in the limited child process of data/pictures, by the preset's caps, and only pixels go on.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from duogen_core.data.runs.presets import Preset
from duogen_core.data.synthetic.comfyui import Server
from duogen_core.data.synthetic.painter import Painter, PainterError, Wanted
from duogen_core.document import Document, Picture
from duogen_core.document.pending import looked_at, planned_size
from duogen_core.document.picture_file import FORMATS
from duogen_core.errors import Cancelled, DuoGenError
from duogen_core.files import read_json
from duogen_core.picture_sampling import picture_prompt

PLACE = re.compile(r"\$\{([a-z]+(?:_[1-9])?)\}")
SEEDS = ("seed", "noise_seed")
PLAIN = ("prompt", "seed", "width", "height", "first")
MODEL_FILES = (".safetensors", ".gguf", ".ckpt", ".pt", ".pth", ".sft", ".bin")
MAX_BYTES = 16 * 2**20
WANTED_TITLE = "picture"  # of the node whose picture is taken, where several give one


@dataclass(frozen=True)
class Workflow:
    name: str
    nodes: Mapping[str, Any]

    @property
    def places(self) -> frozenset[str]:
        return frozenset(name for text in _texts(self.nodes) for name in PLACE.findall(text))

    @property
    def pictures(self) -> int:
        """How many earlier pictures it looks at, at the least."""
        return max(self._most("earlier_"), 1 if "first" in self.places else 0)

    @property
    def seen(self) -> int:
        """How many of the pictures that a plan wants seen it looks at."""
        return self._most("seen_")

    def _most(self, kind: str) -> int:
        return max((int(place.rpartition("_")[2]) for place in self.places if place.startswith(kind)), default=0)

    @property
    def models(self) -> frozenset[str]:
        """The names of the model files that it loads."""
        return frozenset(text for text in _texts(self.nodes) if text.lower().endswith(MODEL_FILES))

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.nodes, sort_keys=True).encode()).hexdigest()[:16]

    def filled(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The nodes with `values` in their places."""
        nodes = _mapped(self.nodes, lambda text: _put(text, values))
        if "seed" not in self.places:
            for node in nodes.values():
                for name in SEEDS:
                    if type(node["inputs"].get(name)) is int:
                        node["inputs"][name] = values["seed"]
        return nodes

    def titled(self) -> list[str]:
        """Ids of the nodes whose title is `picture`."""
        titles = {id_: str((node.get("_meta") or {}).get("title", "")) for id_, node in self.nodes.items()}
        return [id_ for id_, title in titles.items() if title.strip().casefold() == WANTED_TITLE]


def load_workflow(file: Path) -> Workflow:
    try:
        nodes = read_json(file, "workflow", limit=MAX_BYTES)
    except DuoGenError as error:
        raise DuoGenError(f"{error} A workflow is exported with Workflow > Export (API).") from None
    if isinstance(nodes, dict) and "nodes" in nodes and "links" in nodes:
        raise DuoGenError(f"The workflow {file} is saved for the editor; export it with Workflow > Export (API).")
    if not isinstance(nodes, dict) or not nodes or not all(map(_is_node, nodes.values())):
        raise DuoGenError(
            f"The workflow {file} is not an API-format workflow; expected class_type and inputs for every node."
        )
    workflow = Workflow(file.name, nodes)
    _check(workflow)
    return workflow


def _check(workflow: Workflow) -> None:
    for place in sorted(workflow.places):
        if place not in PLAIN and not place.startswith(("earlier_", "seen_")):
            raise DuoGenError(
                f"The workflow {workflow.name} has the placeholder ${{{place}}}; known are {', '.join(PLAIN)}, "
                "earlier_1 to earlier_9 and seen_1 to seen_9."
            )
    if "prompt" not in workflow.places:
        raise DuoGenError(
            f"The workflow {workflow.name} has no ${{prompt}}; put it into the text of the node that takes the prompt."
        )
    if "seed" not in workflow.places and not any(_has_seed(node) for node in workflow.nodes.values()):
        raise DuoGenError(
            f"The workflow {workflow.name} has no ${{seed}} and no input called seed with a number; every image of a "
            "prompt would be the same."
        )


def _is_node(node: Any) -> bool:
    return isinstance(node, dict) and isinstance(node.get("class_type"), str) and isinstance(node.get("inputs"), dict)


def _has_seed(node: Mapping[str, Any]) -> bool:
    return any(type(node["inputs"].get(name)) is int for name in SEEDS)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)


def _mapped(value: Any, change: Callable[[str], Any]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {name: _mapped(each, change) for name, each in value.items()}
    return [_mapped(each, change) for each in value] if isinstance(value, list) else value


def _put(text: str, values: Mapping[str, Any]) -> Any:
    alone = PLACE.fullmatch(text)
    if alone:
        return values[alone[1]]
    return PLACE.sub(lambda found: str(values[found[1]]), text)


# ------------------------------------------------------------ the painter


class ComfyPainter(Painter):
    def __init__(
        self, server: Server, workflows: Sequence[Workflow], preset: Preset, size: tuple[int, int] | None = None
    ) -> None:
        from duogen_core.data.pictures.decoding import Decoder

        self.server, self.size = server, size
        self.workflows = sorted(workflows, key=lambda each: (each.pictures + each.seen, each.seen))
        _check_together(self.workflows, size)
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
        seen = wanted.looked_at
        known = (each for each in self.workflows if each.pictures <= len(wanted.earlier) and each.seen <= len(seen))
        workflow = list(known)[-1]
        outputs = self.server.run(workflow.filled(self._values(wanted, workflow.places)))
        return self._decoded(self.server.view(_picture_of(outputs, workflow)), workflow)

    def close(self) -> None:
        self.decoder.close()

    def _values(self, wanted: Wanted, places: frozenset[str]) -> dict[str, Any]:
        values: dict[str, Any] = {"prompt": wanted.prompt, "seed": wanted.seed}
        if size := wanted.size or self.size:
            values |= {"width": size[0], "height": size[1]}
        named = {"first": wanted.earlier[:1]}
        named |= {f"earlier_{back}": wanted.earlier[-back:][:1] for back in range(1, len(wanted.earlier) + 1)}
        named |= {f"seen_{number}": [picture] for number, picture in enumerate(wanted.looked_at, 1)}
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
            f"The workflow {workflow.name} gave an image that cannot be used ({found}); expected a still "
            f"image ({FORMATS}) of at most {side:,} pixels a side."
        )


class WorkflowPainter:
    """A ComfyPainter that draws the pictures of a growing answer, as `pipeline.Painter` says."""

    def __init__(self, painter: ComfyPainter) -> None:
        self.painter = painter
        self.name = ", ".join(sorted(each.name for each in painter.workflows))

    @property
    def most_seen(self) -> int:
        """How many earlier pictures the prompts of a plan may speak of."""
        return max(max(each.seen, each.pictures) for each in self.painter.workflows)

    def draw(
        self,
        document: Document,
        seed: int,
        on_step: Callable[..., None],
        cancelled: Callable[[], bool] | None,
        due: Picture | None,
    ) -> np.ndarray:
        """One prompt of the server, in which no step is seen; it is taken back within a second of a cancel."""
        request = next((turn.text for turn in reversed(document.turns) if turn.role == "user"), "")
        wanted = Wanted(
            request,
            picture_prompt(document),
            seed % 2**53,  # JSON numbers of servers and browsers are exact up to there
            document.pictures,
            looked_at(document, due),
            planned_size(due),
        )
        server, sleep = self.painter.server, self.painter.server.sleep

        def wait(seconds: float) -> None:
            while seconds > 0:
                if cancelled is not None and cancelled():
                    raise Cancelled("The image was stopped.")
                sleep(min(seconds, 0.5))
                seconds -= 0.5

        server.sleep = wait
        try:
            return self.painter.paint(wanted)
        finally:
            server.sleep = sleep

    def clear(self) -> None:
        """Nothing is cached but the names of uploaded files."""


def _check_together(workflows: Sequence[Workflow], size: tuple[int, int] | None) -> None:
    if not workflows or workflows[0].pictures or workflows[0].seen:
        raise DuoGenError(
            "The first image of an answer has no earlier one; give one more --workflow, without ${first}, "
            "${earlier_1} and ${seen_1}."
        )
    for workflow in workflows:
        if size is None and workflow.places & {"width", "height"}:
            raise DuoGenError(
                f"The workflow {workflow.name} has ${{width}} or ${{height}}; give --size, such as 1024x768."
            )
    for one, other in itertools.pairwise(workflows):
        if (one.pictures, one.seen) == (other.pictures, other.seen):
            raise DuoGenError(
                f"The workflows {one.name} and {other.name} look at the same number of earlier images "
                f"({one.pictures + one.seen}); leave one out."
            )


def _picture_of(outputs: Mapping[str, Any], workflow: Workflow) -> Mapping[str, Any]:
    """The one picture of the workflow; of the node titled `picture` where there are several."""
    found = {id_: images for id_, shown in outputs.items() if (images := _images(shown))}
    chosen = [id_ for id_ in workflow.titled() if id_ in found] or list(found)
    pictures = [image for id_ in chosen for image in found[id_]]
    if len(pictures) == 1:
        return pictures[0]
    if not pictures:
        raise PainterError(f"The workflow {workflow.name} gave no image; it needs a PreviewImage node.", stop=True)
    nodes = ", ".join(f"{workflow.nodes.get(id_, {}).get('class_type', '?')} (node {id_})" for id_ in chosen)
    raise PainterError(
        f"The workflow {workflow.name} gave {len(pictures)} images, by {nodes}; one is wanted: make it a single one, "
        f"or title the node that shows it “{WANTED_TITLE}”.",
        stop=True,
    )


def _images(shown: Any) -> list[Mapping[str, Any]]:
    images = shown.get("images") if isinstance(shown, dict) else None
    return [each for each in images if isinstance(each, dict)] if isinstance(images, list) else []
