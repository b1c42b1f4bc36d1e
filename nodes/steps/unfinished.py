"""Shows the answer so far, and keeps it on disk: a cancel, an error or a killed server loses no finished image.

In: the context, each time an image is finished. Out: `ui` for the page (outputs.py), and a document folder under
duogen/unfinished in ComfyUI's output folder (its temp folder is emptied at every start), written by the core's
DocumentWriter as the command line's answer is. DuoGen Load Document lists it, so the answer can go on from there.

A run that ends well removes its copy: what the user wants to have is saved by then. After any other end the copy
stays, and the log says where. When the same answer is tried again in the same server, the copy grows on; where another
image takes the place of one in it, it stays as it is, beside a new one. A copy that was opened belongs to the user and
is not touched again.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import folder_paths
from comfy_execution.progress import NodeState, get_progress_state
from comfy_execution.utils import get_executing_context

from ..host import display
from ..host.metadata import with_workflow, workflow_of
from . import downloads, outputs
from .answer import last_answer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from duogen_core.document import Document
    from duogen_core.document.store import DocumentWriter

FOLDER = Path("duogen", "unfinished")
LIMITS = {"max_images": "Stopped at the limit of images.", "max_tokens": "Stopped at the limit of tokens."}
logger = logging.getLogger(__name__)


@dataclass
class Copy:
    """One folder, and how much of which answer lies in it."""

    folder: Path
    content: str = ""  # what is in the folder
    pictures: int = 0
    prompt: str | None = None  # the running prompt that makes this answer; None between two runs
    reached: str = ""  # how far that prompt has come; it may be behind a copy that an earlier one left
    writer: DocumentWriter | None = None  # holds the images, so only while the prompt runs
    generation: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As DuoGen Load Document lists it."""
        return f"{(FOLDER / self.folder.name).as_posix()} [output]"


_copies: list[Copy] = []


def show(hidden: Any, context: Document) -> dict[str, Any] | None:
    """Keeps the answer so far, and returns it as `ui` for the page, with each finished image at its full size.

    `images` and `text` have the image that is new and the text before it, so that what collects them has each once."""
    answer = last_answer(context)
    text, last = outputs.newest(answer)
    return _ui(answer, keep(hidden, context), text, last, running=True)


def show_end(hidden: Any, context: Document, *, drawn: int) -> dict[str, Any] | None:
    """Returns `ui` of a finished answer. It is kept as well until the prompt is over: saving it may still fail.

    drawn: how many images of it were drawn now. Without any, there is nothing to lose. `text` has what `show` did not.
    """
    if drawn:
        keep(hidden, context, context.generation)
    answer = last_answer(context)
    source = downloads.keep_source(answer, workflow_of(hidden))
    return _ui(answer, None, outputs.rest(answer), None, running=False, source=source)


def show_plan(context: Document) -> dict[str, Any] | None:
    """Returns `ui` of an answer that is planned, for the page. There is nothing to keep yet."""
    return _ui(last_answer(context), None, "", None, running=False)


def _ui(
    answer: Document, copy: Copy | None, text: str, new: int | None, *, running: bool, source: str | None = None
) -> dict[str, Any] | None:
    """text, new: what `images` and `text` get, `new` the index of an image."""
    try:
        views = outputs.views_of(answer)
    except OSError as error:  # a full disk costs the view, never the run
        logger.warning("DuoGen: the answer so far could not be shown: %s.", error.strerror or error)
        return None
    shown = outputs.document_ui(answer, views)
    more = {"running": running or None, "unfinished": copy and copy.name, "source": source}
    shown |= {key: value for key, value in more.items() if value}
    images = [] if new is None else [outputs.item(views[new])]
    return {"images": images, "text": (text,) if text else (), "duogen_document": [shown]}


def limit(why: str, context: Document) -> str:
    """Says which limit has ended an answer, and of a planned one what was left out. context: with all that is planned.

    "" where it was no limit."""
    from duogen_core.document.pending import is_pending

    left = sum(map(is_pending, last_answer(context).pictures)) if why == "max_images" else 0
    more = (
        f" Images of the plan that were left out, with their texts: {left}. Raise max_images for them." if left else ""
    )
    return f"{LIMITS.get(why, '')}{more}"


def warn_of_limit(hidden: Any, context: Document, max_images: int) -> None:
    """Says at the first image that a plan has more of them than the limit, whose default is meant for answers without a
    plan."""
    from duogen_core.document.pending import is_pending

    planned = sum(map(is_pending, last_answer(context).pictures))
    if planned > max_images:
        said = f"Of {planned} images that are planned, {max_images} are drawn. Raise max_images for all of them."
        logger.warning("DuoGen: %s", said)
        display.say(hidden, said)


def keep(hidden: Any, context: Document, generation: Mapping[str, Any] | None = None) -> Copy | None:
    """Writes the answer so far, if it has a finished image. None: there was none, or it could not be written.

    A fault of the disk is told in the log; the run goes on. generation: how the answer is made, where it is known.
    """
    from duogen_core.document.pending import is_pending
    from duogen_core.document.store import DocumentWriter
    from duogen_core.errors import DuoGenError

    if all(is_pending(picture) for picture in last_answer(context).pictures):
        return None
    content, prompt = content_of(context), running_prompt()
    copy = _copy_for(content, prompt)
    copy.prompt, copy.reached = prompt, max(copy.reached, content, key=len)
    copy.generation = generation or copy.generation
    if not content.startswith(copy.content):
        return copy  # an earlier run came further; what it left holds all of this
    document = context.replace_generation(**{"stop_reason": "interrupted", **copy.generation})
    try:
        copy.writer = copy.writer or DocumentWriter(copy.folder, overwrite=True)
        copy.writer.update(with_workflow(document, workflow_of(hidden)))
    except DuoGenError as error:
        copy.writer = None
        logger.warning("DuoGen: the answer so far could not be kept: %s", error)
        return None
    copy.content = content
    copy.pictures = sum(not is_pending(picture) for picture in last_answer(context).pictures)
    if copy not in _copies:
        _copies.append(copy)
    return copy


def _copy_for(content: str, prompt: str | None) -> Copy:
    """The copy of this very answer, the longest if there are several, else a new one."""
    _copies[:] = [copy for copy in _copies if (copy.folder / "document.json").is_file()]  # the user may tidy up
    known = [
        copy
        for copy in _copies
        if copy.prompt in (None, prompt) and (content.startswith(copy.content) or copy.content.startswith(content))
    ]
    if known:
        return max(known, key=lambda copy: len(copy.content))
    name = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{secrets.token_hex(3)}"
    return Copy(Path(folder_paths.get_output_directory()) / FOLDER / name)


def saved(document: Document) -> None:
    """DuoGen Save Document has written this. A copy of it is not needed any longer, even if the run fails later."""
    content, prompt = content_of(document), running_prompt()
    for copy in [copy for copy in _copies if copy.prompt == prompt and content.startswith(copy.content)]:
        _discard(copy)


def opened(path: Path) -> None:
    """DuoGen Load Document has opened this. A graph may depend on it from now on."""
    _copies[:] = [copy for copy in _copies if copy.folder != path]


def end_run(prompt: str) -> None:
    """The prompt is over, however it ended."""
    well = _ended_well()
    for copy in [copy for copy in _copies if copy.prompt == prompt]:
        if well and copy.reached.startswith(copy.content):
            _discard(copy)
        elif not well:
            logger.info(
                "DuoGen: the run stopped before its end. The answer so far (images: %d) is kept in %s, which DuoGen "
                "Load Document lists as %s",
                *(copy.pictures, copy.folder, copy.name),
            )
        copy.prompt, copy.reached, copy.writer = None, "", None


def running_prompt() -> str | None:
    context = get_executing_context()
    return context.prompt_id if context else None


def content_of(context: Document) -> str:
    """Texts and drawn images in order, up to the last image: how every later stage of the same answer begins."""
    from duogen_core.document import Text
    from duogen_core.document.pending import before_next_picture

    pieces: list[str] = []
    end = 0
    for turn in before_next_picture(context).turns:
        pieces.append(f"\0{turn.role}\0")
        for part in turn.parts:
            pieces.append(part.text if isinstance(part, Text) else f"\0{part.digest}\0")
            end = end if isinstance(part, Text) else len(pieces)
    return "".join(pieces[:end])


def _ended_well() -> bool:
    """Whether the prompt that is ending succeeded.

    At this time ComfyUI has told nobody how it ended. But its progress still calls a node running that failed, was
    interrupted, or waits for one that was.
    """
    states = [node["state"] for node in get_progress_state().nodes.values()]
    return NodeState.Running not in states and NodeState.Error not in states


def _discard(copy: Copy) -> None:
    """Removes what was written and nothing else. document.json goes first: without it nobody takes the rest for a
    document. Folders go if they are empty."""
    _copies.remove(copy)
    for file in (copy.folder / "document.json", *copy.folder.glob("images/[0-9]*.png")):
        with contextlib.suppress(OSError):
            file.unlink()
    for folder in (copy.folder / "images", copy.folder, copy.folder.parent, copy.folder.parent.parent):
        with contextlib.suppress(OSError):
            folder.rmdir()
