"""A ComfyUI workflow with places in it (API format: Workflow > Export (API)) -> one to queue for a picture.

Places stand in the text of any input: ${prompt}, ${seed}, ${width}, ${height}; ${first}, the answer's first picture;
${earlier_1}, the picture just before, ${earlier_2}, the one before that, … An input that is nothing but a place gets
the value itself (a number for ${seed}); pictures are names of uploaded files, for LoadImage nodes. Where no ${seed}
stands, inputs called seed or noise_seed that hold a number get it.

Values are put into the parsed JSON, once: whatever a prompt says, it stays the text of that one input.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duogen_core.errors import DuoGenError
from duogen_core.files import read_json

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
        numbers = [int(place.rpartition("_")[2]) for place in self.places if place.startswith("earlier_")]
        return max([*numbers, 1 if "first" in self.places else 0])

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
            f"The workflow {file} is no API-format workflow; expected class_type and inputs for every node."
        )
    workflow = Workflow(file.name, nodes)
    _check(workflow)
    return workflow


def _check(workflow: Workflow) -> None:
    for place in sorted(workflow.places):
        if place not in PLAIN and not place.startswith("earlier_"):
            raise DuoGenError(
                f"The workflow {workflow.name} has the place ${{{place}}}; known are {', '.join(PLAIN)} and earlier_1 "
                "to earlier_9."
            )
    if "prompt" not in workflow.places:
        raise DuoGenError(
            f"The workflow {workflow.name} has no ${{prompt}}; put it into the text of the node that takes the prompt."
        )
    if "seed" not in workflow.places and not any(_has_seed(node) for node in workflow.nodes.values()):
        raise DuoGenError(
            f"The workflow {workflow.name} has no ${{seed}} and no input called seed with a number; every picture of a "
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
