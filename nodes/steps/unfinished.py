"""The answer so far, kept on disk while it grows: a cancel, an error or a killed server loses no finished picture.

In: the context, each time a picture is finished. Out: a document folder under duogen/unfinished in ComfyUI's output
folder (the temp folder would be emptied when ComfyUI starts again), written by the core's DocumentWriter as the command
line's answer is. DuoGen Load Document lists it, so the answer can go on from there.

A run that ends well removes its copy: what the user wants to have is saved by then. After any other end the copy
stays, and the log says where. When the same answer is tried again in the same server, the copy grows on; where another
picture takes the place of one in it, it stays as it is, beside a new one. A copy that was opened belongs to the user
and is not touched again.
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

from ..definitions import preview, sockets
from ..host.metadata import with_workflow, workflow_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from duogen_core.document import Document
    from duogen_core.document.store import DocumentWriter

FOLDER = Path("duogen", "unfinished")
logger = logging.getLogger(__name__)


@dataclass
class Copy:
    """One folder, and how much of which answer lies in it."""

    folder: Path
    content: str = ""  # what is in the folder
    pictures: int = 0
    prompt: str | None = None  # the running prompt that makes this answer; None between two runs
    reached: str = ""  # how far that prompt has come; it may be behind a copy that an earlier one left
    writer: DocumentWriter | None = None  # holds the pictures, so only while the prompt runs
    generation: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As DuoGen Load Document lists it."""
        return f"{(FOLDER / self.folder.name).as_posix()} [output]"


_copies: list[Copy] = []


def show(hidden: Any, context: Document) -> dict[str, Any] | None:
    """Keep the answer so far, and return it as `ui` for the page, with each finished picture at its full size."""
    return _ui(context, keep(hidden, context), running=True)


def show_end(hidden: Any, context: Document, *, drawn: int) -> dict[str, Any] | None:
    """`ui` of a finished answer. It is kept as well until the prompt is over: saving it may still fail.

    drawn: how many pictures of it were drawn now. Without any, there is nothing to lose.
    """
    if drawn:
        keep(hidden, context, context.generation)
    return _ui(context, None, running=False)


def _ui(context: Document, copy: Copy | None, *, running: bool) -> dict[str, Any] | None:
    from . import planned_answer as plan

    answer = sockets.last_answer(context)
    try:
        views = [{} if plan.is_pending(picture) else preview.temporary_view(picture) for picture in answer.pictures]
    except OSError as error:  # a full disk costs the view, never the run
        logger.warning("DuoGen: the answer so far could not be shown: %s.", error.strerror or error)
        return None
    shown = preview.document_ui(answer, views)
    if running:
        shown["running"] = True
    if copy is not None:
        shown["unfinished"] = copy.name
    return {"duogen_document": [shown]}


def keep(hidden: Any, context: Document, generation: Mapping[str, Any] | None = None) -> Copy | None:
    """Write the answer so far, if it has a finished picture. None: it could not be written, which costs the copy (and
    is told in the log), never the run.

    generation: how the answer is made, where the caller knows.
    """
    from duogen_core.document.store import DocumentWriter
    from duogen_core.errors import DuoGenError

    from . import planned_answer as plan

    if all(plan.is_pending(picture) for picture in sockets.last_answer(context).pictures):
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
    copy.pictures = sum(not plan.is_pending(picture) for picture in sockets.last_answer(context).pictures)
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
                "DuoGen: the run stopped before its end. The answer so far (pictures: %d) is kept in %s, which DuoGen "
                "Load Document lists as %s",
                *(copy.pictures, copy.folder, copy.name),
            )
        copy.prompt, copy.reached, copy.writer = None, "", None


def running_prompt() -> str | None:
    context = get_executing_context()
    return context.prompt_id if context else None


def content_of(context: Document) -> str:
    """Texts and drawn pictures in order, up to the last picture: how every later stage of the same answer begins."""
    from duogen_core.document import Text

    from . import planned_answer as plan

    pieces: list[str] = []
    end = 0
    for turn in plan.before_next_picture(context).turns:
        pieces.append(f"\0{turn.role}\0")
        for part in turn.parts:
            pieces.append(part.text if isinstance(part, Text) else f"\0{part.digest}\0")
            end = end if isinstance(part, Text) else len(pieces)
    return "".join(pieces[:end])


def _ended_well() -> bool:
    """ComfyUI tells nobody how a prompt ended before its end is over. But a node that failed, or was interrupted, or
    waits for one that was, is still running as far as its progress goes."""
    states = [node["state"] for node in get_progress_state().nodes.values()]
    return NodeState.Running not in states and NodeState.Error not in states


def _discard(copy: Copy) -> None:
    """Remove what was written and nothing else. document.json goes first: without it nobody takes the rest for a
    document. Folders go if they are empty."""
    _copies.remove(copy)
    for file in (copy.folder / "document.json", *copy.folder.glob("images/[0-9]*.png")):
        with contextlib.suppress(OSError):
            file.unlink()
    for folder in (copy.folder / "images", copy.folder, copy.folder.parent, copy.folder.parent.parent):
        with contextlib.suppress(OSError):
            folder.rmdir()
