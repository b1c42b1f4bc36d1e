"""What the pack's page asks the server for: who we are and what is missing; and it sends documents to be opened.

GET  /duogen/about      {"version": "1.0.0", "url": of the documentation or "", "missing": one sentence or ""}
POST /duogen/documents  multipart: one .zip of a document folder, or the files of such a folder under their relative
                        names. Answers {"document": as DuoGen Load Document lists it}, or 400 and {"error": a sentence}

A file may come from anybody. It is read as strictly as the node reads it (`duogen_core.document.reading`) before it
lies where it is listed; until then, and if it is refused, in a hidden folder that is removed. ComfyUI adds the twins of
these routes under /api itself, and refuses what other sites send.
"""

from __future__ import annotations

import asyncio
import filecmp
import os
import re
import secrets
import shutil
import zipfile
from functools import partial
from pathlib import Path

import folder_paths
from aiohttp import BodyPartReader, web
from comfy.cli_args import args

from . import self_check
from .language import translated

MOST_FILES = 4096
LONGEST_NAME = 80
PIECE = 1 << 20
PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
# Names that Windows keeps for devices.
DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)", re.IGNORECASE)


def add_routes() -> None:
    from server import PromptServer

    from duogen_core import __version__

    if getattr(PromptServer, "instance", None) is None:  # the pack is loaded without a server, by a test or a tool
        return
    routes = PromptServer.instance.routes
    # As it was at the start: what was installed since counts after the next one.
    about = {"version": __version__, "url": documentation(), "missing": self_check.lacking()}

    @routes.get("/duogen/about")
    async def tell(request: web.Request) -> web.Response:
        said = translated(about["missing"], request.query.get("language", ""))
        return web.json_response({**about, "missing": said})

    @routes.post("/duogen/documents")
    async def take(request: web.Request) -> web.Response:
        from duogen_core.errors import DuoGenError

        said = partial(translated, locale=request.query.get("language", ""))
        try:
            return web.json_response({"document": await receive(request)})
        except (DuoGenError, ValueError) as error:  # aiohttp's own of a broken body is a ValueError
            return web.json_response({"error": said(str(error))}, status=400)
        except OSError as error:
            notice = f"It could not be saved: {error.strerror or error}."
            return web.json_response({"error": said(notice)}, status=507)


def documentation() -> str:
    """Where the documentation of this pack is, as pyproject.toml says; "" where it says nothing."""
    text = PROJECT.read_text("utf-8") if PROJECT.is_file() else ""
    found = re.search(r'^Documentation\s*=\s*"(https://[^"\s]+)"', text, re.MULTILINE)
    return found[1] if found else ""


async def receive(request: web.Request) -> str:
    """Puts what was sent into ComfyUI's input folder, as one .zip, and returns its name in the list."""
    from duogen_core.errors import DuoGenError

    if not request.content_type.startswith("multipart/"):
        raise DuoGenError("Expected the files of a document, as a form sends them (multipart/form-data).")
    folder = Path(folder_paths.get_input_directory()) / f".duogen-upload-{secrets.token_hex(6)}"
    folder.mkdir(parents=True)
    try:
        file = folder / "document.zip"
        name = await write(request, file)
        await asyncio.to_thread(check, file, name)
        return f"{await asyncio.to_thread(place, file, name)} [input]"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def write(request: web.Request, file: Path) -> str:
    """Writes the .zip that came, or packs the files that came into one; returns the name that it came with."""
    from duogen_core.document.reading import check_relative
    from duogen_core.errors import DuoGenError

    limit = left = int(args.max_upload_size * 2**20)
    came: list[str] = []
    archive: zipfile.ZipFile | None = None
    try:
        async for part in await request.multipart():
            if not isinstance(part, BodyPartReader) or not part.filename:
                continue
            name = part.filename
            check_relative(name, "The upload")
            if came and (archive is None or len(came) == MOST_FILES):
                raise DuoGenError("Send one .zip, or the files of one document folder.")
            came.append(name)
            whole = len(came) == 1 and name.lower().endswith(".zip") and "/" not in name
            if not whole and archive is None:
                archive = zipfile.ZipFile(file, "w")
            # The same files give the same .zip: no time stands in it.
            with file.open("wb") if archive is None else archive.open(zipfile.ZipInfo(name), "w") as target:
                while data := await part.read_chunk(PIECE):
                    left -= len(data)
                    if left < 0:
                        raise DuoGenError(
                            f"The document is larger than {limit / 2**20:g} MB, the most that this ComfyUI takes "
                            "(--max-upload-size). Copy it into ComfyUI's input folder instead."
                        )
                    target.write(data)
    finally:
        if archive is not None:
            archive.close()
    if not came:
        raise DuoGenError("Nothing was sent; choose the .zip of a document, or its folder.")
    if archive is None:
        return came[0]
    if not any(name.split("/")[-1] == "document.json" for name in came):
        kind = came[0].rpartition(".")[2].lower()
        more = (
            f" A .{kind} file holds no document, only the workflow that made it: drop it on the canvas for that."
            if kind in ("html", "htm", "pdf", "json")
            else ""
        )
        raise DuoGenError(f"There is no document.json in {came[0].partition('/')[0]}.{more}")
    return came[0].partition("/")[0] if "/" in came[0] else "document"


def check(file: Path, name: str) -> None:
    """Reads the whole document, its images too, so that only one which can be opened is listed."""
    from duogen_core.document.reading import load_document
    from duogen_core.errors import DuoGenError

    try:
        load_document(file)
    except DuoGenError as error:
        raise DuoGenError(str(error).replace(str(file), name)) from None


def place(file: Path, name: str) -> str:
    """Moves the .zip to a name of its own in the input folder; one that lies there already is not kept twice."""
    stem = re.sub(r"[^\w .()-]", "_", re.sub(r"\.zip$", "", name, flags=re.IGNORECASE)).strip(" .")[:LONGEST_NAME]
    if not stem or DEVICES.fullmatch(stem):
        stem = f"document {stem}".strip()
    for number in range(10000):
        target = file.parent.parent / (f"{stem} ({number}).zip" if number else f"{stem}.zip")
        try:
            # A name that is taken meanwhile is never written over.
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            if target.is_file() and filecmp.cmp(target, file, shallow=False):
                return target.name
            continue
        os.replace(file, target)
        return target.name
    raise FileExistsError(0, f"too many files are called {stem}.zip")
