"""What a program gets that queues a prompt: progress as data, and images, text and files among the outputs."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from answers import saved_document
from graphs import REQUEST, answer
from PIL import Image
from server import PACK, Result, Server

from duogen_core.document.reading import load_document

FIRST, NEXT = "First a wall.", "Now the roof"


def told(server: Server, graph: dict[str, Any]) -> tuple[Result, list[dict[str, Any]]]:
    """Runs a graph; with what it told on the way, as data."""
    events: list[dict[str, Any]] = []
    result = server.run(graph, watch=lambda kind, data, _: kind == "duogen_progress" and events.append(data))
    assert result.error is None, result.error
    assert all(event["prompt_id"] == result.prompt_id for event in events)
    return result, events


def test_progress_is_sent_as_data(server: Server, random_model: Path):
    """The same as the texts on the node, in the same order, without English words to take apart."""
    request = "Tell me as data."  # of its own: a text that ComfyUI has in its cache is not written again
    result, events = told(server, answer(random_model.name, request, seed=301, max_images=2, steps=4))
    drawing = [event for event in events if event["phase"] == "drawing" and "step" in event]
    assert {event["display_node"] for event in events} == {"3"} and all("." in event["node"] for event in drawing)
    numbers = [(event["image"], event["of"], event["step"], event["steps"]) for event in drawing]
    assert numbers[0] == (1, 2, 1, 4) and numbers[-1] == (2, 2, 4, 4) and numbers == sorted(numbers)
    assert [event["text"] for event in drawing if event["step"] == 1] == [FIRST, NEXT]
    assert all("seconds" in event for event in drawing if event["step"] > 1) and drawing[-1]["seconds"] == 0
    written = [event["text"] for event in events if event["phase"] == "writing"]
    assert FIRST in written and NEXT in written
    assert events[-1]["phase"] == "end" and events[-1]["notice"] == "Stopped at the limit of images."
    assert len(events) == len(result.texts) and f"Image 2 of at most 2, step 4 of 4\n\n{NEXT}" in result.texts


def display_nodes(server: Server, result: Result, node: str) -> list[dict[str, Any]]:
    """The outputs that count as this node's, in the order in which they came."""
    job = server.get(f"/history/{result.prompt_id}")[result.prompt_id]
    return [output for key, output in job["outputs"].items() if job["meta"][key]["display_node"] == node]


def picture(server: Server, file: dict[str, Any]) -> Image.Image:
    return Image.open(BytesIO(server.get_bytes("/view", **file)))


def previewed(checkpoint: str, **inputs: Any) -> dict[str, Any]:
    graph = answer(checkpoint, **inputs)
    return graph | {"8": {"class_type": "DuoGenPreview", "inputs": {"context": ["3", 0], "part": "answer"}}}


def test_images_and_text_of_what_shows_and_saves(server: Server, random_model: Path):
    """The text names the images in their places; each is served in its own size, and so is every file."""
    graph = previewed(random_model.name, seed=302, max_images=2, steps=2)
    graph["5"]["inputs"] |= {"pdf": True, "zip": True}
    result, _ = told(server, graph)
    shown, saved = result.outputs["8"], result.outputs["5"]
    (text,) = shown["text"]
    assert text.startswith(f"{FIRST}\n\n[image 1]\n\n{NEXT}\n\n[image 2]")
    assert saved["text"] == [f"{REQUEST}\n\n{text}"], "the whole conversation is saved"
    assert [file["type"] for file in (*shown["images"], *saved["images"])] == ["temp"] * 2 + ["output"] * 2
    for one, other in zip(shown["images"], saved["images"], strict=True):
        assert picture(server, one).tobytes() == picture(server, other).tobytes()
    (file,) = shown["files"]  # App mode shows texts that are files
    assert server.get_bytes("/view", **{key: file[key] for key in ("filename", "subfolder", "type")}).decode() == text
    files = {file["filename"].rpartition(".")[2]: server.get_bytes("/view", **file) for file in saved["files"]}
    assert set(files) == {"html", "md", "pdf", "zip"}
    assert files["pdf"].startswith(b"%PDF") and b"![" in files["md"] and b"<!doctype html>" in files["html"].lower()
    assert "document.html" in zipfile.ZipFile(BytesIO(files["zip"])).namelist()
    again = server.run(graph)
    assert again.outputs["8"] == shown, "also where ComfyUI's cache had it"
    job = server.get(f"/api/jobs/{result.prompt_id}")
    assert job["preview_output"]["type"] == "output" and job["preview_output"]["mediaType"] == "images"


def test_an_interleaved_answer_comes_in_pieces(server: Server, random_model: Path):
    """What draws sends each text and each image once, when it is finished; together they are the whole answer."""
    result, _ = told(server, answer(random_model.name, seed=303, max_images=2, steps=2))
    pieces = display_nodes(server, result, "3")
    texts = [text for piece in pieces for text in piece["text"]]
    images = [file for piece in pieces for file in piece["images"]]
    assert texts[:2] == [FIRST, NEXT] and len(images) == 2 and len({file["filename"] for file in images}) == 2
    (saved,) = result.outputs["5"]["text"]
    assert (
        "".join(saved.split()).replace("[image1]", "").replace("[image2]", "").endswith("".join("".join(texts).split()))
    )


def test_a_cancelled_answer_has_what_was_finished(server: Server, random_model: Path):
    graph = answer(random_model.name, seed=304, max_images=3, steps=30)

    def cancel(kind: str, data: Any, result: Result) -> None:
        if kind == "duogen_progress" and data.get("image") == 2 and data.get("step"):
            server.post("/interrupt", {})

    result = server.run(graph, watch=cancel)
    assert result.interrupted
    (piece,) = display_nodes(server, result, "3")
    assert piece["text"] == [FIRST] and len(piece["images"]) == 1
    assert piece["duogen_document"][0]["unfinished"].startswith("duogen/unfinished/")


def test_an_answer_without_images(server: Server, random_model: Path):
    graph = previewed(random_model.name, seed=305, max_images=2, max_tokens=1)
    del graph["6"]
    result, _ = told(server, graph)
    (piece,) = display_nodes(server, result, "3")
    assert result.outputs["8"]["images"] == piece["images"] == [] and result.outputs["8"]["text"] == piece["text"]
    assert piece["text"] and "[image" not in piece["text"][0]


def test_what_is_shown_can_be_downloaded(server: Server, random_model: Path):
    """As a page, a PDF and a folder to go on from, each with the workflow; and nothing else by that way."""
    extra = {"extra_pnginfo": {"workflow": {"id": "mine"}}}
    result = server.run(previewed(random_model.name, seed=306, max_images=2, steps=2), extra=extra)
    (document,) = result.outputs["8"]["duogen_document"]
    source = document["source"]
    files = {kind: server.get_bytes("/duogen/document", source=source, kind=kind) for kind in ("html", "pdf", "zip")}
    assert b"mine" in files["html"] and files["pdf"].startswith(b"%PDF")
    folder = server.base / "input" / "downloaded.zip"
    folder.write_bytes(files["zip"])
    opened = load_document(folder)
    folder.unlink()
    assert opened.meta["comfyui"]["workflow"] == {"id": "mine"} and len(opened.pictures) == 2
    assert opened.turns == saved_document(server, result).turns[-1:]
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/duogen/document?source={source}&kind=html") as reply:
        assert reply.headers["Content-Disposition"] == 'attachment; filename="answer.html"'
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert status(server, source="0" * 32, kind="html") == (404, "no longer in ComfyUI's temp folder")
    assert status(server, source="0" * 32, kind="html", language="zh")[1].startswith("此回答已不在 ComfyUI 的 temp")
    for wrong in ("", "../../user/x", f"{source}/../{source}", source.upper() + "\n", "%2e%2e"):
        assert status(server, source=wrong, kind="html")[0] == 400
    assert status(server, source=source, kind="exe")[0] == 400


def status(server: Server, **query: str) -> tuple[int, str]:
    with pytest.raises(urllib.error.HTTPError) as caught:
        server.get_bytes("/duogen/document", **query)
    said = caught.value.read().decode()
    return caught.value.code, "no longer in ComfyUI's temp folder" if "no longer in" in said else said


def test_the_program_in_the_docs(server: Server, random_model: Path, tmp_path: Path):
    """As it stands in docs/comfyui.md, but for the port."""
    page = (PACK / "docs" / "comfyui.md").read_text("utf-8")
    program = page.partition("```python\n")[2].partition("```")[0].replace(":8188", f":{server.port}")
    graph = answer(random_model.name, "Something else.", seed=307, max_images=2, steps=2)
    graph["5"]["inputs"] |= {"pdf": True, "zip": True}
    (tmp_path / "workflow_api.json").write_text(json.dumps(graph))
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"How do I draw a house with a red roof?\n\n{FIRST}\n\n[image 1]\n\n{NEXT}")
    files = {file.name for file in tmp_path.iterdir()}
    assert {"000.png", "001.png", "document.html", "document.md", "document.pdf"} < files
    assert any(name.endswith(".zip") for name in files)
