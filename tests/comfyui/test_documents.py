"""What an answer is taken apart into, and what is saved of it: every kind of file, each with the workflow inside."""

from __future__ import annotations

import base64
import html
import json
import re
import runpy
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import graphs
import pytest
from answers import saved_document
from server import PACK, Result, Server

from duogen_core.document import Document
from duogen_core.document.reading import load_document
from duogen_core.document.store import save_document

FIRST, NEXT = "First a wall.", "Now the roof"
WORKFLOW = {"nodes": [], "links": [], "version": 0.4, "note": "Grüße </title>", "odd": float("nan"), "half": "\ud83d"}
KEPT = {**WORKFLOW, "odd": None, "half": "?"}


@pytest.fixture(scope="module")
def saved(server: Server, random_model: Path) -> tuple[Result, Path]:
    """A run that saves everything; the folder it wrote."""
    graph = graphs.answer(random_model.name, prefix="documents/all", seed=31, max_images=2)
    graph["5"]["inputs"] |= {"pdf": True, "zip": True}
    graph["texts"] = {"class_type": "PreviewAny", "inputs": {"source": ["4", 3]}}
    graph["count"] = {"class_type": "PreviewAny", "inputs": {"source": ["4", 2]}}
    result = server.run(graph, extra={"extra_pnginfo": {"workflow": WORKFLOW}})
    assert result.error is None, result.error
    return result, server.base / "output" / result.outputs["5"]["document"][0]["folder"]


@pytest.mark.parametrize("kept", [True, False])
def test_disable_metadata_is_heeded(monkeypatch: pytest.MonkeyPatch, kept: bool):
    """The option of ComfyUI's that keeps workflows out of what is saved."""
    options = ModuleType("comfy.cli_args")
    options.args = SimpleNamespace(disable_metadata=not kept)
    monkeypatch.setitem(sys.modules, "comfy", ModuleType("comfy"))
    monkeypatch.setitem(sys.modules, "folder_paths", ModuleType("folder_paths"))
    monkeypatch.setitem(sys.modules, "comfy.cli_args", options)
    module = runpy.run_path(str(PACK / "nodes" / "host" / "metadata.py"))
    hidden = SimpleNamespace(extra_pnginfo={"workflow": WORKFLOW}, prompt={"1": {}})
    data = module["workflow_of"](hidden)
    assert data == ({"workflow": KEPT, "prompt": {"1": {}}} if kept else {})
    earlier = Document(meta={"comfyui": {"workflow": "of another run"}, "caption": "mine"})
    assert module["with_workflow"](earlier, data).meta == {"caption": "mine", **({"comfyui": data} if kept else {})}


@pytest.mark.slow
def test_format_gives_each_picture_its_paragraph(saved: tuple[Result, Path]):
    result, _ = saved
    assert result.outputs["texts"]["text"] == [FIRST, NEXT, NEXT], "one for each picture, and what follows the last"
    assert result.outputs["count"]["text"] == ["2"]


@pytest.mark.slow
def test_every_file_is_there(saved: tuple[Result, Path]):
    result, folder = saved
    names = {entry.relative_to(folder).as_posix() for entry in folder.rglob("*") if entry.is_file()}
    written = {"document.json", "document.html", "document.md", "document.pdf"}
    assert names == written | {"images/000.png", "images/001.png"}
    said = result.outputs["5"]["document"][0]
    assert said["pdf"] == "document.pdf" and (folder.parent / said["zip"]).is_file()
    assert (folder / "document.pdf").read_bytes().startswith(b"%PDF-")


@pytest.mark.slow
def test_pdf_and_zip_are_written_when_wanted_only(server: Server, random_model: Path):
    graph = graphs.answer(random_model.name, prefix="documents/plain", seed=31, max_images=2)
    result = server.run(graph)
    said = result.outputs["5"]["document"][0]
    folder = server.base / "output" / said["folder"]
    assert "pdf" not in said and "zip" not in said
    assert not (folder / "document.pdf").exists() and not folder.with_name(f"{folder.name}.zip").exists()


@pytest.mark.slow
def test_the_workflow_is_in_every_file(saved: tuple[Result, Path]):
    _, folder = saved
    page = (folder / "document.html").read_text("utf-8")
    in_page = json.loads(html.unescape(re.search(r'<meta name="duogen-data" content="([^"]*)">', page)[1]))
    in_pdf = re.search(rb"<duogen:data>([\w+/=]*)</duogen:data>", (folder / "document.pdf").read_bytes())[1]
    of_zip = load_document(folder.with_name(f"{folder.name}.zip"))
    for found in (
        in_page,
        json.loads(base64.b64decode(in_pdf)),
        load_document(folder).meta["comfyui"],
        of_zip.meta["comfyui"],
    ):
        assert found["workflow"] == KEPT
        assert found["prompt"]["3"]["class_type"] == "DuoGenInterleave"


@pytest.mark.slow
def test_saved_loaded_saved_is_the_same(saved: tuple[Result, Path], tmp_path: Path):
    _, folder = saved
    first = save_document(load_document(folder), tmp_path / "first")
    second = save_document(load_document(first), tmp_path / "second")
    assert (folder / "document.json").read_bytes() == (first / "document.json").read_bytes()
    for file in (file for file in first.rglob("*") if file.is_file()):
        assert file.read_bytes() == (second / file.relative_to(first)).read_bytes()
    assert load_document(folder.with_name(f"{folder.name}.zip")) == load_document(folder)


@pytest.mark.slow
def test_a_document_saved_again_holds_the_workflow_of_the_last_time(server: Server, saved: tuple[Result, Path]):
    _, folder = saved
    name = f"{folder.relative_to(server.base / 'output').as_posix()} [output]"
    graph: dict[str, Any] = {
        "1": {"class_type": "DuoGenLoadDocument", "inputs": {"document": name}},
        "5": {
            "class_type": "DuoGenSaveDocument",
            "inputs": {"context": ["1", 0], "filename_prefix": "documents/again"},
        },
    }
    again = saved_document(server, server.run(graph))
    assert again.turns == load_document(folder).turns
    assert again.meta["comfyui"]["prompt"].keys() == graph.keys() and "workflow" not in again.meta["comfyui"]


@pytest.mark.slow
def test_the_history_shows_the_answer(saved: tuple[Result, Path]):
    """For the viewer, which shows a finished job again as it was."""
    result, _ = saved
    (document,) = result.outputs["5"]["duogen_document"]
    parts = document["turns"][-1]["parts"]
    assert [part["type"] for part in parts] == ["text", "image", "text", "image", "text"]
    assert [part["folder"] for part in parts if part["type"] == "image"] == ["output"] * 2
    shown = [(image["filename"], image["subfolder"]) for image in result.outputs["5"]["images"]]
    assert shown == [(part["filename"], part["subfolder"]) for part in parts if part["type"] == "image"]


@pytest.mark.slow
def test_interrupt_ends_a_rendering(server: Server):
    """A document of many megabytes takes minutes as a PDF. The queue must not stand still so long."""
    text = "Word `and` *word*. " * 500_000
    prompt = {"class_type": "DuoGenPrompt", "inputs": {"text": text}}
    save = {"class_type": "DuoGenSaveDocument", "inputs": {"context": ["1", 0], "filename_prefix": "long", "pdf": True}}

    def interrupt(kind: str, data: Any, result: Result) -> None:
        if kind == "executing" and data.get("node") == "2":
            time.sleep(0.5)
            server.post("/interrupt", {})

    result = server.run({"1": prompt, "2": save}, watch=interrupt)
    assert result.interrupted and result.error is None
    assert not list(Path(server.base, "output").glob("long*/document.pdf"))
    prompt["inputs"]["text"] = "Few words."
    result = server.run({"1": prompt, "2": save})
    assert result.error is None and not result.interrupted
