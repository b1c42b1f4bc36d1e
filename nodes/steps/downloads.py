"""Documents as files: what DuoGen Save Document writes, and what a reader downloads from a viewer.

Save. In: a document and a new folder. Out: the folder of the command line, with the workflow in every file that can
hold one, and the names of the files in it.

Downloads. An answer that is shown and not saved is kept as its JSON in ComfyUI's temp folder, beside the images that
are shown, under a name made of its content. Out: the route GET /duogen/document?source=NAME&kind=html|pdf|zip, which
makes the file when somebody asks for it (language=zh beside them: what goes wrong is said in it). It is always sent as
a download and never as a page of ComfyUI's own address; a name is 32 hexadecimal digits, so it leads nowhere else. A
page of another site cannot read the answer, nor guess the name.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import tempfile
import zipfile
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.model_management as mm
import folder_paths

from duogen_core.document.store import document_json, image_name, save_document
from duogen_core.errors import DuoGenError
from duogen_core.files import write_atomically

from ..host.language import translated
from ..host.metadata import KEY, add_text, with_workflow
from .tries import PREFIX, keep_files, temporary_view

if TYPE_CHECKING:
    from collections.abc import Callable

    from duogen_core.document import Document

ROUTE = "/duogen/document"
NAME = re.compile(r"[0-9a-f]{32}")
KINDS = {"html": "text/html", "pdf": "application/pdf", "zip": "application/zip"}
logger = logging.getLogger(__name__)


def save(
    document: Document,
    folder: Path,
    workflow: dict[str, Any],
    *,
    pdf: bool = False,
    zipped: bool = False,
    stop: Callable[[], bool] | None = mm.processing_interrupted,
) -> dict[str, str]:
    """Writes the folder, with the workflow in every file that can hold one; returns {kind: file name}.

    Names are inside the folder, that of the .zip beside it. stop: a document of many megabytes takes a while.
    """
    from duogen_core.render import render_pdf, write_rendered

    save_document(with_workflow(document, workflow), folder)
    keep_files(document, folder)
    write_rendered(document, folder, workflow, stop)
    files = {"html": "document.html", "markdown": "document.md"}
    texts = {key: json.dumps(value) for key, value in workflow.items()}
    for index in range(len(document.pictures) if texts else 0):
        add_text(folder / image_name(index), texts)
    if pdf:
        files["pdf"] = "document.pdf"
        write_atomically(folder / files["pdf"], render_pdf(document, workflow, stop))
    if zipped:
        files["zip"] = f"{folder.name}.zip"
        write_atomically(folder.with_name(files["zip"]), zip_of(folder))
    return files


def zip_of(folder: Path) -> bytes:
    """Packs every file of a folder, document.json first; images are stored, as they are compressed already."""
    data = BytesIO()
    files = [file for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]
    with zipfile.ZipFile(data, "w") as archive:
        for file in sorted(files, key=lambda file: (file.suffix != ".json", file.as_posix())):
            packed = zipfile.ZIP_STORED if file.suffix in (".png", ".pdf") else zipfile.ZIP_DEFLATED
            archive.write(file, file.relative_to(folder).as_posix(), packed)
    return data.getvalue()


# ------------------------------------------------------------ what is shown and not saved


def keep_source(document: Document, workflow: dict[str, Any]) -> str | None:
    """Puts what the files are made of into ComfyUI's temp folder; returns its name. None: there is no room."""
    try:
        names = [temporary_view(picture)["filename"] for picture in document.pictures]
        data = json.dumps(document_json(with_workflow(document, workflow), names)).encode()
        name = hashlib.sha256(data).hexdigest()[:32]
        file = _folder() / f"{name}.json"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, data)
        return name
    except (OSError, DuoGenError) as error:  # a full disk costs the downloads, never the run
        logger.warning("DuoGen: the answer cannot be downloaded: %s", error)
        return None


def rendered(name: str, kind: str) -> bytes:
    """The file of this kind."""
    from duogen_core.document.reading import document_from_json, folder_reader
    from duogen_core.render import render_html, render_pdf

    file = _folder() / f"{name}.json"
    if not file.is_file():
        raise DuoGenError("This answer is no longer in ComfyUI's temp folder; run the workflow again.")
    document = document_from_json(json.loads(file.read_bytes()), folder_reader(_folder()), "The answer")
    workflow = document.meta.get(KEY, {})
    if kind == "html":
        return render_html(document, workflow).encode()
    if kind == "pdf":
        return render_pdf(document, workflow)
    with tempfile.TemporaryDirectory(dir=_folder()) as scratch:
        folder = Path(scratch, "answer")
        save(document, folder, workflow, stop=None)
        return zip_of(folder)


def _folder() -> Path:
    return Path(folder_paths.get_temp_directory(), PREFIX)


def add_route() -> None:
    """Adds the route to ComfyUI's server, where there is one."""
    from aiohttp import web
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    if server is None:
        return
    one_at_a_time = asyncio.Lock()

    @server.routes.get(ROUTE)
    async def download(request: web.Request) -> web.Response:
        said = partial(translated, locale=request.query.get("language", ""))
        name, kind = request.query.get("source", ""), request.query.get("kind", "")
        if not NAME.fullmatch(name) or kind not in KINDS:
            return web.Response(status=400, text="Name a source, and html, pdf or zip as its kind.")
        try:
            async with one_at_a_time:
                data = await asyncio.to_thread(rendered, name, kind)
        except DuoGenError as error:
            return web.Response(status=404, text=said(str(error)))
        except OSError as error:
            logger.warning("DuoGen: the answer could not be made into a file: %s", error)
            notice = f"It could not be saved: {error.strerror or error}."
            return web.Response(status=507, text=said(notice))
        headers = {
            "Content-Disposition": f'attachment; filename="answer.{kind}"',
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": "sandbox",
        }
        return web.Response(body=data, content_type=KINDS[kind], headers=headers)
