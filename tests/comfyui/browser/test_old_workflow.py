"""A workflow that an older version of this pack saved opens and runs: what came later takes its default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from server import PACK

from .frontend import Frontend, workflow_file

pytestmark = pytest.mark.slow
BEFORE = {"DuoGenInterleave": "seeds", "DuoGenSaveDocument": "pdf"}  # the first input that came later
OUTPUTS = {"DuoGenFormat": 3}
OLD = {"sampler_name": "euler", "scheduler": "simple"}


def older(workflow: dict[str, Any], frontend: Frontend) -> dict[str, Any]:
    """The workflow without the inputs and outputs that came later, with a widget that is gone since, and with the
    sampler and scheduler that were the first choice then."""
    for node in workflow["nodes"]:
        if node["type"] in BEFORE:
            widgets = frontend.page.evaluate(
                "type => LiteGraph.createNode(type).widgets.map((widget) => widget.name)", node["type"]
            )
            kept = widgets[: widgets.index(BEFORE[node["type"]])]
            values = list(node["widgets_values"])[: len(kept)]
            if node["type"] == "DuoGenInterleave":
                values = [OLD.get(name, value) for name, value in zip(kept, values, strict=True)]
            node["widgets_values"] = values
            node["inputs"] = [
                entry for entry in node["inputs"] if entry["name"] not in widgets or entry["name"] in kept
            ]
            node["inputs"].append({"name": "keep_pictures", "type": "BOOLEAN", "link": None})
        if node["type"] in OUTPUTS:
            node["outputs"] = node["outputs"][: OUTPUTS[node["type"]]]
    return workflow


def split_document() -> dict[str, Any]:
    """The node of another template, without its links."""
    nodes = workflow_file(PACK / "workflows" / "05 Draft then answer.json")["nodes"]
    (split,) = [node for node in nodes if node["type"] == "DuoGenFormat"]
    for socket in split["inputs"]:
        socket["link"] = None
    for socket in split["outputs"]:
        socket["links"] = []
    return split | {"id": 99}


def test_an_older_workflow_opens_and_runs(frontend: Frontend, random_model: Path, renderer: str):
    workflow = workflow_file(PACK / "workflows" / "01 Illustrated guide.json")
    workflow["nodes"].append(split_document())
    workflow = older(workflow, frontend)
    frontend.load(workflow)
    ids = {node["type"]: node["id"] for node in workflow["nodes"]}
    seed = {"canvas": 71, "nodes2": 72}[renderer]
    frontend.set(ids["DuoGenLoadCheckpoint"], checkpoint=random_model.name)
    frontend.set(ids["DuoGenInterleave"], max_images=1, seed=seed)
    prompt = frontend.page.evaluate("async () => (await app.graphToPrompt()).output")
    inputs = prompt[str(ids["DuoGenInterleave"])]["inputs"]
    assert (inputs["mode"], inputs["seeds"], inputs["references"], inputs["temperature"]) == (
        "as it goes",
        "",
        "all",
        0,
    )
    assert inputs["seed"] == seed and {name: inputs[name] for name in OLD} == OLD, "what was there keeps its place"
    saved = prompt[str(ids["DuoGenSaveDocument"])]["inputs"]
    assert (saved["pdf"], saved["zip"]) == (False, False)
    outputs = frontend.page.evaluate(
        "(id) => app.graph.getNodeById(id).outputs.map((output) => output.name)", ids["DuoGenFormat"]
    )
    assert outputs == ["markdown", "images", "count", "paragraphs"]
    job = frontend.run()
    assert job["status"]["status_str"] == "success", job["status"]["messages"][-1]
