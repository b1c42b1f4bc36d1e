"""What a node that has an answer sends as its `ui`: for our viewer, and for everything else that reads node outputs.

In: a Document, and for each image of it where /view finds it. Out: a dict for `io.NodeOutput(ui=…)`, which ComfyUI
sends with `executed` and keeps in /history. `duogen_document` is for the viewer in web/; `images` and `text` are what
the queue, the assets, App mode and programs know, and `files` what can be downloaded. The front end draws `images`
below no node that has a document (web/duogen/index.js): there the viewer shows them, in their places.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import folder_paths
from comfy_execution.utils import get_executing_context

from .tries import PREFIX, temporary_view, tries_ui

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duogen_core.document import Document
    from duogen_core.planning.plan import Plan


def outputs(document: Document, views: Sequence[dict[str, str]], **more: Any) -> dict[str, Any]:
    """The whole of a document. views: {} for an image still to be drawn. more: entries of the viewer's document.

    `text` names the images in their places, [image 1] the first of `images`.
    """
    return {
        "images": [item(view) for view in views if view],
        "text": (text_of(document),),
        "duogen_document": [{**document_ui(document, views), **more}],
    }


def item(view: dict[str, str]) -> dict[str, str]:
    """Where a file lies, as ComfyUI's own nodes say it."""
    return {"filename": view["filename"], "subfolder": view["subfolder"], "type": view["folder"]}


def views_of(document: Document) -> list[dict[str, str]]:
    """Puts the drawn images into ComfyUI's temp folder: where /view finds them; {} for one that is not drawn yet."""
    from duogen_core.document.pending import is_pending

    return [{} if is_pending(picture) else temporary_view(picture) for picture in document.pictures]


def text_of(document: Document) -> str:
    """Texts and images in order, as plain lines."""
    from duogen_core.document import Text
    from duogen_core.document.pending import is_pending

    blocks, count = [], 0
    for turn in document.turns:
        blocks.append("")
        for part in turn.parts:
            if isinstance(part, Text):
                blocks[-1] += part.text
                continue
            count += not is_pending(part)
            blocks += ["[image to be drawn]" if is_pending(part) else f"[image {count}]", ""]
    return "\n\n".join(block.strip() for block in blocks if block.strip())


def newest(answer: Document) -> tuple[str, int | None]:
    """(the text between the two last images that are drawn, the index of the last one): what a finished image adds."""
    from duogen_core.document import Text
    from duogen_core.document.pending import is_pending

    texts: list[str] = []
    found, last, index = "", None, -1
    for part in answer.last_turn.parts:
        if isinstance(part, Text):
            texts.append(part.text)
            continue
        index += 1
        if is_pending(part):
            break
        found, last = "".join(texts).strip(), index
        texts = []
    return found, last


def rest(answer: Document) -> str:
    """The text after the last image of a finished answer."""
    from duogen_core.document import Text

    texts: list[str] = []
    for part in answer.last_turn.parts:
        texts = [*texts, part.text] if isinstance(part, Text) else []
    return "".join(texts).strip()


def text_file(text: str) -> list[dict[str, str]]:
    """Puts a text into ComfyUI's temp folder, for what shows files only, as App mode does; [] for none."""
    from duogen_core.files import write_atomically

    if not text:
        return []
    data = text.encode()
    file = Path(folder_paths.get_temp_directory(), PREFIX, f"{hashlib.sha256(data).hexdigest()[:32]}.md")
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, data)
    return [{"filename": file.name, "subfolder": PREFIX, "type": "temp", "display_name": "answer.md"}]


# ------------------------------------------------------------ what the viewer gets


def document_ui(document: Document, views: Sequence[dict[str, str]]) -> dict[str, Any]:
    """What the viewer in web/ draws; the server sends it with `executed`. views: for each image where /view finds it.

        {"turns": [{"role": "system" | "user" | "assistant", "parts": [
             {"type": "text", "text": "…"},
             {"type": "image", "filename": "…", "subfolder": "…", "folder": "temp" | "output",
              "width": 128, "height": 128, "seed": 7, "text": "…", "caption": "…", "pending": true, "shows": "…",
              "tries": [{"seed": 7, "score": 0.4, "shows": false, "same_cast": true, "wrong": "…", "kept": true,
                         "filename": …}, …]}, …]}, …],
         "generation": {"model": "…", "seed": 7, "stop_reason": "end", …},
         "prompt": "…", "plan": "# …",
         "running": true, "unfinished": "duogen/unfinished/… [output]",
         "files": {"html" | "pdf" | "markdown" | "zip": {"filename": "…", "subfolder": "…", "folder": "output"}, …},
         "source": "0123456789abcdef0123456789abcdef"}

    filename, subfolder and folder are /view's `filename`, `subfolder` and `type`. seed, text (the paragraph it shows)
    and pending (planned, not drawn yet; shows: what it will show) are there only where an image has them. tries: of an
    image that a critic has looked at (duogen_core.review); a refused one has a filename as long as the temp folder has
    it. All texts are plain text of a model or a user, never markup. running: the answer so far, of a run that goes on;
    unfinished: what DuoGen Load Document calls the copy of it on disk. A finished answer has neither. prompt: the id of
    the run that showed it, under which the history keeps what it was made with. caption: what the painter read. plan:
    of a planned answer, as DuoGen Edit Plan takes it. files: what has been saved of it; source: of one that is not
    saved, by which nodes/steps/downloads.py makes such files.
    """
    from duogen_core.document import Text
    from duogen_core.document.pending import is_pending
    from duogen_core.planning.markdown import plan_to_markdown

    files = iter(views)
    turns = []
    for turn in document.turns:
        parts: list[dict[str, Any]] = []
        described = iter(_descriptions(turn))
        for part in turn.parts:
            if isinstance(part, Text):
                parts.append({"type": "text", "text": part.text})
                continue
            width, height = part.size
            known = {key: part.meta[key] for key in ("seed", "text", "caption", "pending") if key in part.meta}
            shows = next(described, "")
            if is_pending(part) and shows:
                known["shows"] = shows
            if tries := tries_ui(part):
                known["tries"] = tries
            parts.append({"type": "image", **next(files), "width": width, "height": height, **known})
        turns.append({"role": turn.role, "parts": parts})
    shown: dict[str, Any] = {"turns": turns, "generation": dict(document.generation)}
    if running := get_executing_context():
        shown["prompt"] = running.prompt_id
    if plan := _plan(document.turns[-1]) if document.turns else None:
        shown["plan"] = plan_to_markdown(plan)
    return shown


def _plan(turn: Any) -> Plan | None:
    """The plan of an answer; None where it has none that can be read, in a file that somebody else wrote."""
    from duogen_core.errors import DuoGenError
    from duogen_core.planning.as_document import PLAN
    from duogen_core.planning.plan import Plan

    try:
        return Plan.from_json(turn.meta[PLAN]) if PLAN in turn.meta else None
    except DuoGenError:
        return None


def _descriptions(turn: Any) -> list[str]:
    """What each image of a turn shows: as its plan says, else as the painter is told."""
    from duogen_core.document import Picture
    from duogen_core.document.pending import CAPTION

    pictures = [part for part in turn.parts if isinstance(part, Picture)]
    plan = _plan(turn)
    planned = plan.pictures if plan else ()
    if len(planned) == len(pictures):
        return [picture.shows for picture in planned]
    return [str(picture.meta.get(CAPTION) or "") for picture in pictures]
