"""Files that change between two runs: whatever a node gives out was made from the files as they are now."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from server import Server
from test_stock_nodes import node

from duogen_core.document import Document, Picture, Text
from duogen_core.document.reading import load_document
from duogen_core.document.store import save_document

pytestmark = pytest.mark.slow


def ran(server: Server, graph: dict[str, Any], name: str) -> bool:
    result = server.run(graph)
    assert result.error is None, result.error
    return name in result.ran and name not in result.cached


def changed(file: Path) -> None:
    """Another file of the same name, length and time, as an unpacked archive or a synchronised folder brings it."""
    stat = file.stat()
    copy = file.with_name("copy")
    shutil.copyfile(file, copy)
    os.replace(copy, file)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.fixture
def checkpoint(server: Server, random_model: Path):
    folder = server.base / "models" / "duogen" / "changing"
    shutil.copytree(random_model, folder)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("DuoGenLoadDiT", "dit"),
        ("DuoGenLoadDiT", "vae"),
        ("DuoGenLoadMLLM", "mllm"),
        *(("DuoGenLoadCheckpoint", part) for part in ("mllm", "connector", "dit", "vae")),
    ],
)
def test_a_part_of_a_checkpoint(server: Server, checkpoint: Path, kind: str, part: str):
    graph = {"1": node(kind, checkpoint=checkpoint.name), "2": node("DuoGenPrompt", text="How large?")}
    if kind == "DuoGenLoadDiT":
        graph["sigmas"] = node("DuoGenSigmas", model=["1", 0], steps=2)
        graph["shown"] = node("PreviewAny", source=["sigmas", 1])
    else:
        graph["size"] = node(
            "DuoGenPictureSize", context=["2", 0], mllm=["1", 0], size="like the last picture", picture=1, width=64,
            height=64,
        )  # fmt: skip
        graph["shown"] = node("PreviewAny", source=["size", 1])
    assert ran(server, graph, "1") and not ran(server, graph, "1")
    changed(next(file for file in sorted((checkpoint / part).iterdir()) if file.suffix == ".safetensors"))
    assert ran(server, graph, "1"), "the old one was given out"


@pytest.mark.parametrize("zipped", [False, True])
def test_a_picture_of_a_document(server: Server, tmp_path: Path, zipped: bool):
    turns = Document().begin_turn("user", [Text("Look."), Picture(np.full((32, 32, 3), 10, np.uint8))])
    name = f"stale{zipped}"
    folder = save_document(turns, (tmp_path if zipped else server.base / "input") / name)
    if zipped:
        shutil.make_archive(str(server.base / "input" / name), "zip", folder)
    graph = {
        "1": node("DuoGenLoadDocument", document=f"{name}{'.zip' if zipped else ''} [input]"),
        "5": node("DuoGenSaveDocument", context=["1", 0], filename_prefix="stale/answer"),
    }

    def shown() -> int:
        result = server.run(graph)
        saved = load_document(server.base / "output" / result.outputs["5"]["document"][0]["folder"])
        return int(saved.pictures[0].pixels[0, 0, 0])

    assert shown() == 10
    Image.fromarray(np.full((32, 32, 3), 200, np.uint8)).save(folder / "images" / "000.png")
    if zipped:
        shutil.make_archive(str(server.base / "input" / name), "zip", folder)
    assert shown() == 200
