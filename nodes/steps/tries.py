"""What is known of a reviewed image, and where it and its refused tries lie.

An IMAGE carries no record, so what a critic said of it is remembered here under what it shows and where it belongs:
`about` gives it to whatever appends the image to the answer. Images that the page is to show lie in ComfyUI's temp
folder, named by their content.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import folder_paths

from duogen_core import picture_sampling
from duogen_core.document import Picture, pending
from duogen_core.files import atomic_path
from duogen_core.review import TRIES, Try, best, record, tries_of, try_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duogen_core.document import Document

PREFIX = "duogen"  # of files in the temp folder
REVIEWS = ("DuoGenReviewImage", "DuoGenReviewNext")
REMEMBERED = 1000  # images of whose tries the record is kept
logger = logging.getLogger(__name__)

_records: OrderedDict[str, dict[str, Any]] = OrderedDict()


def remember(before: Document, tries: Sequence[Try], seeds_known: bool) -> None:
    """Keeps the record of a reviewed image for whoever appends it to the answer."""
    kept, told = tries[best(tries)], record(tries)
    if not seeds_known:
        told = [{name: value for name, value in one.items() if name != "seed"} for one in told]
    known: dict[str, Any] = {TRIES: told} | ({"seed": kept.seed} if seeds_known else {})
    _records[_place(before, kept.picture)] = known
    while len(_records) > REMEMBERED:
        _records.popitem(last=False)


def about(nodes: Any, context: Document, picture: Picture) -> dict[str, Any]:
    """Returns the meta of an image that was reviewed for this place of an answer; {} of any other.

    nodes: the running graph. One without a critic may draw the very image that one with a critic has reviewed before.
    """
    if not any(nodes.get_node(node)["class_type"] in REVIEWS for node in nodes.all_node_ids()):
        return {}
    return _records.get(_place(pending.before_next_picture(context), picture), {})


def _place(before: Document, picture: Picture) -> str:
    asked = picture_sampling.asked_of(before, picture)
    said = [asked.request, asked.text, asked.prompt, *(one.digest for one in before.pictures), picture.digest]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


# ------------------------------------------------------------ where they lie


def temporary_view(picture: Any) -> dict[str, str]:
    """Writes the image to ComfyUI's temp folder, named by its content: shown twice, written once."""
    folder = Path(folder_paths.get_temp_directory()) / PREFIX
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{picture.digest[:32]}.png"
    if not file.exists():
        with atomic_path(file, shared=True) as temporary:
            temporary.write_bytes(picture.to_png())
    return {"filename": file.name, "subfolder": PREFIX, "folder": "temp"}


def file_of(name: str) -> Path | None:
    """Where `temporary_view` has put the image of this name; None where it is not, or not any more."""
    file = Path(folder_paths.get_temp_directory()) / PREFIX / f"{name}.png"
    return file if re.fullmatch(r"[0-9a-f]{32}", name) and file.is_file() else None


def view_of(name: str) -> dict[str, str] | None:
    file = file_of(name)
    return file and {"filename": file.name, "subfolder": PREFIX, "folder": "temp"}


def thumbnails(pictures: Sequence[Picture]) -> list[dict[str, str]]:
    """For ComfyUI's own preview on a node: all tries, in order."""
    try:
        views = [temporary_view(picture) for picture in pictures]
    except OSError as error:  # a full disk costs the view, never the run
        logger.warning("DuoGen: the tries could not be shown: %s.", error.strerror or error)
        return []
    return [{"filename": one["filename"], "subfolder": one["subfolder"], "type": one["folder"]} for one in views]


def tries_ui(picture: Picture) -> list[dict[str, Any]]:
    """What the viewer shows of an image's tries (`unfinished.document_ui`); texts of the critic stay plain text."""
    shown = []
    for entry in tries_of(picture):
        one = {name: entry[name] for name in ("seed", "score", "shows", "same_cast", "wrong", "kept") if name in entry}
        view = view_of(str(entry.get("image", "")))
        shown.append({**one, **(view or {})})
    return shown


def keep_files(document: Document, folder: Any) -> None:
    """Puts the refused images that are still in the temp folder beside a saved document."""
    from duogen_core.document.store import save_try

    for picture in document.pictures:
        for entry in tries_of(picture):
            name = str(entry.get("image", ""))
            if (file := file_of(name)) is not None:
                tried = Picture.from_file(file)
                if try_name(tried) == name:
                    save_try(folder, tried, name)
