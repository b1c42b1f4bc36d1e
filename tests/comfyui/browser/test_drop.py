"""Dropping what DuoGen Save Document wrote on ComfyUI brings the graph back, and every other drop is left alone."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import graphs
import pytest
from server import PACK, Server

from .frontend import Frontend, workflow_file

pytestmark = pytest.mark.slow
TYPES = {".html": "text/html", ".pdf": "application/pdf", ".zip": "application/zip", ".json": "application/json"}


@pytest.fixture(scope="module")
def workflow() -> dict[str, Any]:
    return workflow_file(PACK / "workflows" / "01 Illustrated guide.json")


def save(server: Server, checkpoint: Path, extra: dict[str, Any], prefix: str) -> dict[str, Path]:
    """Run a small graph and save everything; kind -> file."""
    graph = graphs.answer(checkpoint.name, prefix=prefix, seed=31, max_images=1)
    graph["5"]["inputs"] |= {"pdf": True, "zip": True}
    result = server.run(graph, extra=extra)
    folder = server.base / "output" / result.outputs["5"]["document"][0]["folder"]
    files = {kind: folder / f"document.{kind}" for kind in ("json", "html", "pdf")}
    return {**files, "png": folder / "images" / "000.png", "zip": folder.with_name(f"{folder.name}.zip")}


@pytest.fixture(scope="module")
def saved(server: Server, random_model: Path, workflow: dict[str, Any]) -> dict[str, Path]:
    return save(server, random_model, {"extra_pnginfo": {"workflow": workflow}}, "drop/answer")


def drop(frontend: Frontend, name: str, data: bytes, type_: str) -> None:
    """One file from the desktop, let go over the canvas."""
    frontend.page.evaluate(
        """([name, data, type]) => {
            const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([bytes], name, {type}));
            const place = {bubbles: true, cancelable: true, composed: true, clientX: 700, clientY: 500};
            document.getElementById("graph-canvas").dispatchEvent(new DragEvent("drop", {dataTransfer, ...place}));
        }""",
        [name, base64.b64encode(data).decode("ascii"), type_],
    )


def types(frontend: Frontend) -> list[str]:
    return sorted(frontend.page.evaluate("() => app.graph._nodes.map((node) => node.type)"))


def wait_for_nodes(frontend: Frontend, count: int) -> None:
    frontend.page.wait_for_function("count => app.graph._nodes.length === count", arg=count, timeout=20_000)


@pytest.mark.parametrize("kind", ["png", "json", "html", "pdf", "zip"])
def test_the_graph_is_restored(frontend: Frontend, saved: dict[str, Path], workflow: dict[str, Any], kind: str):
    file = saved[kind]
    drop(frontend, file.name, file.read_bytes(), TYPES.get(file.suffix, "image/png"))
    wait_for_nodes(frontend, len(workflow["nodes"]))
    assert types(frontend) == sorted(node["type"] for node in workflow["nodes"])
    ids = {node["type"]: node["id"] for node in workflow["nodes"]}
    seed = frontend.page.evaluate(
        "(id) => app.graph.getNodeById(id).widgets.find((widget) => widget.name === 'seed').value",
        ids["DuoGenInterleave"],
    )
    (values,) = (node["widgets_values"] for node in workflow["nodes"] if node["type"] == "DuoGenInterleave")
    assert seed == (values["seed"] if isinstance(values, dict) else values[0])


def test_a_queued_graph_without_a_workflow_is_restored(frontend: Frontend, server: Server, random_model: Path):
    """From a script that queued the graph as the server runs it."""
    files = save(server, random_model, {}, "drop/script")
    drop(frontend, "document.html", files["html"].read_bytes(), "text/html")
    wait_for_nodes(frontend, 6)
    assert "DuoGenSaveDocument" in types(frontend)


def test_a_document_without_a_workflow_says_so(frontend: Frontend):
    document = {"format": "duogen-document", "version": 1, "turns": []}
    drop(frontend, "document.json", json.dumps(document).encode(), "application/json")
    frontend.page.get_by_text("This document holds no workflow", exact=True).wait_for()
    assert types(frontend) == []


@pytest.mark.parametrize("name", ["document.json", "other.json"])
def test_other_workflows_open_as_ever(frontend: Frontend, workflow: dict[str, Any], name: str):
    drop(frontend, name, json.dumps(workflow).encode(), "application/json")
    wait_for_nodes(frontend, len(workflow["nodes"]))


@pytest.mark.parametrize("data", [b"PK\x03\x04 cut off", b"PK\x05\x06" + b"\xff" * 18, b""])
def test_other_files_reach_who_waits_for_them(frontend: Frontend, data: bytes):
    """Another pack's listener gets the drop once, with its file and its place."""
    frontend.page.evaluate(
        """() => {
            window.drops = [];
            window.listener = (event) => {
                drops.push([event.dataTransfer.files[0].name, event.dataTransfer.files[0].size, event.clientX]);
                event.preventDefault();
            };
            document.addEventListener("drop", listener);
        }"""
    )
    drop(frontend, "other.zip", data, "application/zip")
    frontend.page.wait_for_function("() => drops.length > 0")
    frontend.page.wait_for_timeout(200)
    frontend.page.evaluate("() => document.removeEventListener('drop', listener)")
    assert frontend.page.evaluate("() => drops") == [["other.zip", len(data), 700]]
