"""Documents sent by the page: a .zip or the files of a folder are read as strictly as the node reads them, and only
what can be opened is listed. Nothing that is refused stays."""

from __future__ import annotations

import http.client
import io
import json
import secrets
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from server import Server

from duogen_core.document import Document, Picture, Text
from duogen_core.document.reading import load_document
from duogen_core.document.store import save_document


def send(
    server: Server, *files: tuple[str, bytes], headers: dict[str, str] | None = None
) -> tuple[int, dict[str, Any]]:
    mark = f"mark{secrets.token_hex(8)}"
    body = b"".join(
        f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode() + data + b"\r\n"
        for name, data in files
    )
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    kind = {"Content-Type": f"multipart/form-data; boundary={mark}", **(headers or {})}
    connection.request("POST", "/duogen/documents", body + f"--{mark}--\r\n".encode(), kind)
    answer = connection.getresponse()
    data = answer.read()
    return answer.status, json.loads(data) if data.startswith(b"{") else {}


def listed(server: Server) -> list[str]:
    node = server.get("/object_info/DuoGenLoadDocument")["DuoGenLoadDocument"]
    options = node["input"]["required"]["document"]
    return options[0] if isinstance(options[0], list) else options[1]["options"]


@pytest.fixture
def document(tmp_path: Path) -> Path:
    """A saved folder, with the page beside it."""
    pixels = np.random.default_rng().integers(0, 256, (24, 32, 3), dtype=np.uint8)
    answer = Document().begin_turn("user", [Text("Draw.")]).begin_turn("assistant", [Text("So."), Picture(pixels)])
    save_document(answer, tmp_path / "my answer")
    return tmp_path / "my answer"


def parts(folder: Path) -> list[tuple[str, bytes]]:
    return [
        (f"{folder.name}/{file.relative_to(folder).as_posix()}", file.read_bytes())
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    ]


def zipped(files: list[tuple[str, bytes]]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files:
            archive.writestr(name, content)
    return data.getvalue()


def rests(server: Server) -> list[str]:
    """What an upload that was refused or finished has left behind."""
    return [entry.name for entry in (server.base / "input").iterdir() if entry.name.startswith(".")]


def test_a_folder_and_its_zip_are_listed_and_opened(server: Server, document: Path):
    status, said = send(server, *parts(document))
    assert (status, said) == (200, {"document": "my answer.zip [input]"})
    assert send(server, *parts(document))[1] == said, "the same document is not kept twice"
    status, other = send(server, ("bilder_Größe 1.zip", zipped(parts(document))))
    assert (status, other) == (200, {"document": "bilder_Größe 1.zip [input]"})
    assert {said["document"], other["document"]} <= set(listed(server)) and rests(server) == []
    for name in ("my answer.zip", "bilder_Größe 1.zip"):
        assert load_document(server.base / "input" / name) == load_document(document)
    graph = {
        "1": {"class_type": "DuoGenLoadDocument", "inputs": {"document": said["document"]}},
        "2": {"class_type": "DuoGenPreview", "inputs": {"context": ["1", 0], "part": "answer"}},
    }
    assert server.run(graph).error is None


def test_a_name_that_is_taken_is_not_written_over(server: Server, document: Path):
    first = send(server, *parts(document))[1]["document"]
    before = (server.base / "input" / first.removesuffix(" [input]")).read_bytes()
    changed = json.loads((document / "document.json").read_text("utf-8"))
    changed["meta"] = {"other": secrets.token_hex(4)}
    (document / "document.json").write_text(json.dumps(changed), "utf-8")
    second = send(server, *parts(document))[1]["document"]
    assert second != first and second.startswith("my answer (")
    assert (server.base / "input" / first.removesuffix(" [input]")).read_bytes() == before


def test_what_is_refused(server: Server, document: Path):
    before = set(listed(server))
    good = dict(parts(document))
    text = good["my answer/document.json"].decode()
    bomb = Image.new("1", (30000, 30000))
    data = io.BytesIO()
    bomb.save(data, "PNG")
    cases: list[tuple[str, list[tuple[str, bytes]]]] = [
        ("Nothing was sent", []),
        ("There is no document.json in picture.png", [("picture.png", b"x")]),
        ("A .html file holds no document, only the workflow", [("document.html", b"<html>")]),
        ("damaged or not a .zip file", [("a.zip", b"PK but no")]),
        ("holds no document.json", [("a.zip", zipped([("readme.txt", b"x")]))]),
        ("is not allowed", [("../../evil/document.json", text.encode())]),
        ("is not allowed", [("a.zip", zipped([("../document.json", text.encode())]))]),
        ("is not allowed", [("a/document.json", text.replace("images/000.png", "../../000.png").encode())]),
        ("is not in", [("a/document.json", text.encode())]),
        ("the version is 99", [("a/document.json", text.replace('"version": 1', '"version": 99').encode())]),
        ("images/000.png", [("a/document.json", text.encode()), ("a/images/000.png", data.getvalue())]),
        ("one .zip, or the files of one", [("a.zip", zipped(parts(document))), ("b.zip", b"x")]),
        ("stands in it twice", [*parts(document), ("my answer/document.json", b"{}")]),
    ]  # fmt: skip
    for sentence, files in cases:
        status, said = send(server, *files)
        assert status == 400 and sentence in said["error"], (sentence, status, said)
        assert ".duogen-upload" not in said["error"] and str(server.base) not in said["error"], said
    assert set(listed(server)) == before and rests(server) == []
    assert not (server.base.parent / "evil").exists() and not (server.base / "evil").exists()


def test_hostile_names_become_plain_ones(server: Server, document: Path):
    data = zipped(parts(document))
    for given, kept in (
        ("con.zip", "document con.zip"),
        (".hidden.zip", "hidden.zip"),
        ("<img src=x>.zip", "_img src_x_.zip"),
    ):
        status, said = send(server, (given, data))
        assert (status, said["document"]) == (200, f"{kept} [input]")
    status, said = send(server, ("x" * 400 + ".zip", data))
    assert status == 200 and len(said["document"]) < 110


def test_another_site_cannot_send_any(server: Server, document: Path):
    status, _ = send(server, *parts(document), headers={"Origin": "http://evil.example"})
    assert status == 403


def test_a_document_that_is_too_large_is_refused(server: Server):
    """100 MB is ComfyUI's default for uploads."""
    piece = ("a/document.json", b" " * (101 * 2**20))
    status, said = send(server, piece)
    assert status == 400 and "larger than 100 MB" in said["error"] and rests(server) == []


def test_the_page_learns_the_version(server: Server):
    import duogen_core

    assert server.get("/duogen/about")["version"] == duogen_core.__version__
