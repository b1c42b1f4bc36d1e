"""DuoGen Preview: an answer in order inside the node. And what the front end gets to show there.

In: a context. Out: the same context, and `ui`, which the viewer in web/ draws (the server sends it with `executed`):

    {"duogen_document": [{
        "turns": [{"role": "system" | "user" | "assistant", "parts": [
            {"type": "text", "text": "…"},
            {"type": "image", "filename": "…", "subfolder": "…", "folder": "temp" | "output",
             "width": 128, "height": 128, "seed": 7, "text": "…", "pending": true}, …]}, …],
        "generation": {"model": "…", "seed": 7, "stop_reason": "end", …},
        "running": true, "unfinished": "duogen/unfinished/… [output]"}]}

filename, subfolder and folder are /view's `filename`, `subfolder` and `type`. seed, text (the paragraph it shows)
and pending (its place is planned, it is not drawn yet) are there only where a picture has them. All texts are plain
text of a model or a user: never markup. running: the answer so far, of a run that goes on; unfinished: what DuoGen Load
Document calls the copy of it that lies on disk (unfinished.py). A finished answer has neither.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import folder_paths
from comfy_api.latest import io

from . import sockets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duogen_core.document import Document

PREFIX = "duogen"


class DuoGenPreview(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenPreview",
            display_name="DuoGen Preview",
            category="DuoGen",
            description="Shows an answer in the node: text and pictures in order, each picture in its own size. Saves "
            "nothing.",
            search_aliases=["show answer", "view document", "viewer"],
            inputs=[
                sockets.Context.Input("context", tooltip="The conversation to show."),
                io.Combo.Input(
                    "part",
                    options=["answer", "conversation"],
                    default="answer",
                    tooltip="The last answer alone, or the whole conversation with the requests and their pictures.",
                ),
            ],
            outputs=[sockets.Context.Output("context", tooltip="The same conversation.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, context: Document, part: str) -> io.NodeOutput:
        document = sockets.last_answer(context) if part == "answer" else context
        shown = [temporary_view(picture) for picture in document.pictures]
        return io.NodeOutput(context, ui={"duogen_document": [document_ui(document, shown)]})


def temporary_view(picture: Any) -> dict[str, str]:
    """The picture as a file in ComfyUI's temp folder, named by its content: shown twice, written once."""
    folder = Path(folder_paths.get_temp_directory()) / PREFIX
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{picture.digest[:32]}.png"
    if not file.exists():
        unfinished = file.with_suffix(f".{os.getpid()}.tmp")
        unfinished.write_bytes(picture.to_png())
        os.replace(unfinished, file)
    return {"filename": file.name, "subfolder": PREFIX, "folder": "temp"}


def document_ui(document: Document, views: Sequence[dict[str, str]]) -> dict[str, Any]:
    """The value in this file's head; `views` says for each picture where /view finds it."""
    from duogen_core.document import Text

    files = iter(views)
    turns = []
    for turn in document.turns:
        parts: list[dict[str, Any]] = []
        for part in turn.parts:
            if isinstance(part, Text):
                parts.append({"type": "text", "text": part.text})
                continue
            width, height = part.size
            known = {key: part.meta[key] for key in ("seed", "text", "pending") if key in part.meta}
            parts.append({"type": "image", **next(files), "width": width, "height": height, **known})
        turns.append({"role": turn.role, "parts": parts})
    return {"turns": turns, "generation": dict(document.generation)}
