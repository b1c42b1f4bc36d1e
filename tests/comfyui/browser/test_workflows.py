"""Every graph among the templates in the real front end, on both renderers; one is driven through to its end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from server import PACK, Server
from ui_to_api import convert
from workflow_files import APP

from .frontend import Frontend, workflow_file

FILES = sorted(file for file in (PACK / "workflows").glob("*.json") if not file.stem.endswith(APP))
FIRST, NEXT = "First a wall.", "Now the roof"
pytestmark = pytest.mark.slow


@pytest.fixture
def furnished(frontend: Frontend, server: Server) -> Frontend:
    """With what the workflows name and a user has: ComfyUI's example picture, and the files of the other models."""
    picture = server.base / "input" / "example.png"
    if not picture.exists():
        Image.new("RGB", (96, 64), (240, 230, 210)).save(picture)
    named = [
        server.base / "models" / model["directory"] / model["name"]
        for file in FILES
        for node in json.loads(file.read_text("utf-8"))["nodes"]
        for model in node["properties"].get("models", [])
    ]
    lacking = {file for file in named if not file.exists()}
    for file in lacking:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()  # it is listed, and never loaded here
    frontend.page.evaluate("() => app.refreshComboInNodes()")
    yield frontend
    for file in lacking:
        file.unlink()


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_workflow_opens(furnished: Frontend, file: Path, renderer: str):
    """No node is missing, and what the front end would queue is what the file says."""
    workflow = workflow_file(file)
    furnished.load(workflow)
    show_all(furnished)
    strange = furnished.page.evaluate(
        "() => app.graph._nodes.filter((node) => node.has_errors || !LiteGraph.registered_node_types[node.type])"
        ".map((node) => node.type)"
    )
    assert strange == []
    queued = furnished.page.evaluate("async () => (await app.graphToPrompt()).output")
    expected = convert(workflow, furnished.server.get("/object_info"))
    assert {key: node["class_type"] for key, node in queued.items()} == {
        key: node["class_type"] for key, node in expected.items()
    }
    for key, node in expected.items():
        assert {name: queued[key]["inputs"].get(name) for name in node["inputs"]} == node["inputs"]
    if renderer == "nodes2":
        shown = furnished.page.locator("[data-node-id]").evaluate_all("(all) => all.map((e) => e.dataset.nodeId)")
        assert {str(node["id"]) for node in workflow["nodes"]} <= set(shown)


def test_a_workflow_runs_to_its_end(frontend: Frontend, random_model: Path, renderer: str):
    """The loop with a node of the user's between: each picture shows in the user's preview, the answer in ours."""
    workflow = workflow_file(PACK / "workflows" / "08 Own nodes in the loop.json")
    frontend.load(workflow)
    show_all(frontend)
    ids = {node.get("title") or node["type"]: node["id"] for node in workflow["nodes"]}
    frontend.set(ids["DuoGenLoadCheckpoint"], checkpoint=random_model.name)
    frontend.set(ids["DuoGenLoopOpen"], seed={"canvas": 11, "nodes2": 12}[renderer])  # not what the other has cached
    frontend.set(ids["DuoGenLoopClose"], max_images=2)
    job = frontend.run()
    assert job["status"]["status_str"] == "success", job["status"]["messages"][-1][1].get("exception_message")
    frontend.page.wait_for_function("() => document.querySelectorAll('.duogen-answer img').length >= 2")
    frontend.page.wait_for_timeout(500)
    assert frontend.order(ids["The answer"])[:4] == [FIRST, "[picture]", NEXT, "[picture]"]
    previews = frontend.page.evaluate(
        "(id) => Object.entries(app.nodeOutputs).filter(([key]) => key.split(/[.:]/).at(-1) === String(id))"
        ".flatMap(([, output]) => output.images ?? []).length",
        ids["Each image, as it is made"],
    )
    assert previews >= 1, "the picture of the last round is in the user's preview"
    folder = saved_folder(job, ids["DuoGenSaveDocument"])
    assert (frontend.server.base / "output" / folder / "document.html").is_file()


def saved_folder(job: dict[str, Any], node: int) -> str:
    return job["outputs"][str(node)]["document"][0]["folder"]


def show_all(frontend: Frontend) -> None:
    """The whole graph in the window, for the screenshot and because Nodes 2.0 builds what is in sight."""
    frontend.page.evaluate(
        """() => {
            const boxes = app.graph._nodes.map((node) => [...node.pos, ...node.size]);
            const [left, top] = [0, 1].map((k) => Math.min(...boxes.map((box) => box[k])) - 60);
            const [right, bottom] = [0, 1].map((k) => Math.max(...boxes.map((box) => box[k] + box[k + 2])) + 40);
            const view = app.canvas.ds;
            view.scale = Math.min(1400 / (right - left), 860 / (bottom - top));
            view.offset[0] = 60 / view.scale - left;
            view.offset[1] = 70 / view.scale - top;
            app.canvas.setDirty(true, true);
        }"""
    )
    frontend.page.wait_for_timeout(400)
