"""What is put to a benchmark: anything that answers a request with texts and pictures.

    OwnModel        a DuoGen model, or published parts, which writes and draws as it goes
    PlannedModel    any writer plans the answer, then a DiT or a ComfyUI workflow draws it
    WorkflowModel   a workflow on a running ComfyUI server: the user's own graph, whatever is in it

A model is given one `Item` and a seed and returns the conversation with the model's turns in it; of an item with more
turns of the user, each is answered before the next is asked. Same item, same seed, same bytes.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duogen_core.data.synthetic.comfyui import Server
from duogen_core.document import Document, Part, Picture, Text
from duogen_core.document.reading import check_relative, document_from_json
from duogen_core.errors import DuoGenError
from duogen_core.evaluation.benchmarks import Item
from duogen_core.files import parse_json, read_json

if TYPE_CHECKING:
    from duogen_core.checkpoint import Components
    from duogen_core.data.synthetic.comfyui_painter import WorkflowPainter
    from duogen_core.llm.client import Client
    from duogen_core.settings import Settings

PLACE = re.compile(r"\$\{([a-z]+(?:_[1-9])?)\}")


class Model(ABC):
    """name: what submissions call it, and the report."""

    name: str
    uses_gpu = True

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """All that its answers depend on, besides item and seed: plain JSON."""

    @abstractmethod
    def reply(self, document: Document, images: int | None, seed: int) -> Document:
        """Returns the document, which ends with a turn of the user, with the answer to it. images: how many it must
        have; None where that is up to the model."""

    def answer(self, item: Item, seed: int) -> Document:
        document = self.reply(item.prompt, item.due(0), seed)
        for turn, parts in enumerate(item.later, 1):
            document = self.reply(document.begin_turn("user", parts), item.due(turn), seed)
        return document

    def close(self) -> None:  # noqa: B027 (most hold nothing)
        """Lets go of what it holds open."""


class OwnModel(Model):
    """load: loads the parts, in whichever process asks first. insist: images that must be there and that the model did
    not draw are drawn all the same, at the end of its answer."""

    def __init__(self, name: str, load: Callable[[], Components], settings: Settings, insist: bool = False) -> None:
        self.name, self.load, self.asked, self.insist = name, load, settings, insist

    @cached_property
    def components(self) -> Components:
        return self.load()

    def identity(self) -> dict[str, Any]:
        names = ("steps", "guidance", "shift", "size", "max_images", "max_new_tokens", "temperature", "top_p")
        settings = self.asked.resolved(self.components.config)
        insisted = {"insist": True} if self.insist else {}
        return {"model": self.name, "settings": {name: getattr(settings, name) for name in names}, **insisted}

    def reply(self, document: Document, images: int | None, seed: int) -> Document:
        from duogen_core.document.pending import placeholder, with_planned_stop
        from duogen_core.picture_sampling import picture_size
        from duogen_core.pipeline import generate

        most = self.asked.max_images if images is None else images
        answer = generate(self.components, document, replace(self.asked, seed=seed, max_images=most))
        missing = (images or 0) - len(answer.last_turn.pictures)
        if not self.insist or missing <= 0:
            return answer
        size = picture_size(answer, self.components.config, self.asked.size)
        for _ in range(missing):
            answer = answer.append(placeholder(size))
        answer = with_planned_stop(answer, "end")
        return generate(self.components, answer, replace(self.asked, seed=seed, max_images=missing))

    def close(self) -> None:
        self.__dict__.pop("components", None)


class PlannedModel(Model):
    """open_writer: opens the model that plans. load: loads the parts that draw; with open_painter, a workflow draws."""

    def __init__(
        self,
        name: str,
        open_writer: Callable[[], Client],
        settings: Settings,
        load: Callable[[], Components] | None = None,
        open_painter: Callable[[], WorkflowPainter] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """about: what `identity` says of writer and painter."""
        self.name, self.open_writer, self.load, self.open_painter = name, open_writer, load, open_painter
        self.asked, self.about = settings, dict(about or {})
        self.uses_gpu = open_painter is None

    @cached_property
    def writer(self) -> Client:
        return self.open_writer()

    @cached_property
    def painter(self) -> WorkflowPainter | None:
        return self.open_painter() if self.open_painter else None

    @cached_property
    def components(self) -> Components | None:
        return self.load() if self.load and not self.open_painter else None

    def identity(self) -> dict[str, Any]:
        from duogen_core.data.runs.presets import digest
        from duogen_core.planning import writing

        names = ("steps", "guidance", "shift", "size")
        settings = {name: getattr(self.asked, name) for name in names}
        prompts = digest([[file.name, file.read_text("utf-8")] for file in sorted(writing.PROMPTS.glob("*.txt"))])
        drawn_by = {"workflows": self.painter.painter.identity()} if self.painter is not None else {}
        return {"model": self.name, **self.about, "settings": settings, "prompts": prompts, **drawn_by}

    def reply(self, document: Document, images: int | None, seed: int) -> Document:
        from duogen_core.pipeline import generate
        from duogen_core.planning.as_document import planned
        from duogen_core.planning.painters import CONVERSATION, EDIT, TEXT
        from duogen_core.planning.requests import wish_of
        from duogen_core.planning.writing import write_plan

        wish = wish_of(document)
        if images is not None:  # the benchmark says it, whatever the request's words let one guess
            wish = replace(wish, pictures=images > 0, count=images or wish.count)
        plan = write_plan(self.writer, document, wish=wish, seed=seed)
        kind, how = CONVERSATION, {}
        if self.painter is not None:
            kind, how = EDIT if self.painter.most_seen else TEXT, {"most": self.painter.most_seen}
        elif self.components is not None and self.components.mllm.prompted is not None:
            kind = TEXT
        size = {"size": self.asked.size} if self.asked.size else {}
        document = planned(document, plan, kind, **how, **size)
        most = len(document.last_turn.pictures)
        settings = replace(self.asked, seed=seed, max_images=most)
        return generate(self.components, document, settings, painter=self.painter)

    def close(self) -> None:
        for name in ("writer", "painter", "components"):
            self.__dict__.pop(name, None)


# ------------------------------------------------------------ a workflow of the user's


class WorkflowModel(Model):
    """A workflow in ComfyUI's API format with ${prompt} in it: the text of the conversation's last turn.

    Other places: ${seed}; ${image_1}, ${image_2}, … for LoadImage nodes, the pictures of the conversation from the
    last one back, so that a graph with one of them sees what is to be edited; ${images}, how many are wanted, `most`
    where that is free.
    The answer is the document that a DuoGen Save Document node saves; of a graph without one, the texts that it shows
    and then its pictures, in the order of its nodes' numbers. An item with another number of pictures than the graph
    has places for gets those that fit; a graph with more places than there are pictures is refused for that item.
    """

    uses_gpu = False

    def __init__(self, file: Path, address: str, seconds: float = 600.0, most: int = 8) -> None:
        self.file, self.address, self.seconds, self.most = file, address, seconds, most
        self.name = file.stem
        self.nodes = _workflow(file)
        self.places = set(PLACE.findall(str(self.nodes)))

    @cached_property
    def server(self) -> Server:
        return Server(self.address, self.seconds)

    def identity(self) -> dict[str, Any]:
        from duogen_core.data.runs.presets import digest

        asked = {"max_images": self.most} if "images" in self.places else {}
        return {"model": self.name, "workflow": digest(self.nodes), **asked}

    def reply(self, document: Document, images: int | None, seed: int) -> Document:
        seen = list(reversed(document.pictures))
        needs = sorted(int(name.partition("_")[2]) for name in self.places if name.startswith("image_"))
        if needs and needs[-1] > len(seen):
            raise DuoGenError(
                f"The workflow {self.file.name} has a place for ${{image_{needs[-1]}}}, and the request has "
                f"{len(seen)} images by then."
            )
        values: dict[str, Any] = {
            "prompt": document.last_turn.text,
            "seed": seed % 2**53,
            "images": self.most if images is None else images,
        }
        for number in needs:
            picture = seen[number - 1]
            values[f"image_{number}"] = self.server.upload(f"{picture.digest[:24]}.png", picture.to_png())
        outputs = self.server.run(_filled(self.nodes, values))
        parts = self._saved(outputs) or self._shown(outputs)
        if not parts:
            raise DuoGenError(
                f"The workflow {self.file.name} showed no text and no image; end it with DuoGen Save Document, or with "
                "Preview Image and Preview Any nodes."
            )
        return document.begin_turn("assistant", parts)

    def _saved(self, outputs: Mapping[str, Any]) -> list[Part]:
        """What the document says that a DuoGen node saved: the turns after the request's."""
        for shown in outputs.values():
            saved = shown.get("document") if isinstance(shown, dict) else None
            place = saved[0] if isinstance(saved, list) and saved and isinstance(saved[0], dict) else None
            if place is None or not isinstance(place.get("folder"), str):
                continue
            folder = place["folder"].replace("\\", "/")

            def read(name: str, where: str, folder: str = folder) -> bytes:
                check_relative(name, where)
                inside, _, file = f"{folder}/{name}".rpartition("/")
                return self.server.view({"filename": file, "subfolder": inside, "type": "output"})

            where = f"{folder}/document.json on the server"
            document = document_from_json(parse_json(read("document.json", where), where), read, where)
            return [part for turn in document.turns[-1:] if turn.role == "assistant" for part in turn.parts]
        return []

    def _shown(self, outputs: Mapping[str, Any]) -> list[Part]:
        texts: list[Part] = []
        pictures: list[Part] = []
        for id_ in sorted(outputs, key=_number):
            shown = outputs[id_] if isinstance(outputs[id_], dict) else {}
            for text in shown.get("text") or ():
                if isinstance(text, str) and text.strip():
                    texts.append(Text(text))
            for image in shown.get("images") or ():
                if isinstance(image, dict):
                    pictures.append(Picture.from_bytes(self.server.view(image), f"an image of node {id_}"))
        return [*texts, *pictures]

    def close(self) -> None:
        self.__dict__.pop("server", None)


def _workflow(file: Path) -> dict[str, Any]:
    try:
        nodes = read_json(file, "workflow")
    except DuoGenError as error:
        raise DuoGenError(f"{error} A workflow is exported with Workflow > Export (API).") from None
    if isinstance(nodes, dict) and "nodes" in nodes and "links" in nodes:
        raise DuoGenError(f"The workflow {file} is saved for the editor; export it with Workflow > Export (API).")
    if not isinstance(nodes, dict) or not nodes or not all(_is_node(node) for node in nodes.values()):
        raise DuoGenError(
            f"The workflow {file} is not an API-format workflow; expected class_type and inputs for every node."
        )
    places = set(PLACE.findall(str(nodes)))
    if "prompt" not in places:
        raise DuoGenError(
            f"The workflow {file} has no ${{prompt}}; put it into the text of the node that takes the request."
        )
    unknown = sorted(one for one in places if one not in ("prompt", "seed", "images") and not one.startswith("image_"))
    if unknown:
        raise DuoGenError(
            f"The workflow {file} has the placeholder ${{{unknown[0]}}}; known are prompt, seed, images and image_1 to "
            "image_9."
        )
    return nodes


def _is_node(node: Any) -> bool:
    return isinstance(node, dict) and isinstance(node.get("class_type"), str) and isinstance(node.get("inputs"), dict)


def _filled(value: Any, values: Mapping[str, Any]) -> Any:
    """The nodes with the values in their places; an input that is nothing but a place gets the value itself."""
    if isinstance(value, str):
        alone = PLACE.fullmatch(value)
        return values[alone[1]] if alone else PLACE.sub(lambda found: str(values[found[1]]), value)
    if isinstance(value, dict):
        return {name: _filled(each, values) for name, each in value.items()}
    return [_filled(each, values) for each in value] if isinstance(value, list) else value


def _number(id_: str) -> tuple[int, str]:
    return (int(id_) if id_.isdecimal() else 10**9, id_)
