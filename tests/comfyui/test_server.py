"""What the pack shows of itself in a running ComfyUI: nodes, tooltips, help pages."""

from __future__ import annotations

from typing import Any

import pytest
from server import LINK, Server

NODES = [
    *("DuoGenLoadCheckpoint", "DuoGenLoadMLLM", "DuoGenLoadConnector", "DuoGenLoadDiT"),
    *("DuoGenPrompt", "DuoGenLoadDocument", "DuoGenInterleave", "DuoGenLoopOpen", "DuoGenLoopClose"),
    *("DuoGenWrite", "DuoGenEncodeContext", "DuoGenConnector", "DuoGenReferenceImages", "DuoGenPictureSize"),
    *("DuoGenSampler", "DuoGenSigmas", "DuoGenAppendImage", "DuoGenEditContext"),
    *("DuoGenFormat", "DuoGenPreview", "DuoGenSaveDocument"),
]


@pytest.fixture(scope="module")
def object_info(server: Server) -> dict[str, Any]:
    return server.get("/object_info")


def test_pack_is_imported_without_complaint(server: Server):
    start = server.log.split("got prompt")[0]  # what other tests did to it is not our concern here
    lines = [line for line in start.splitlines() if LINK in line]
    assert any("seconds" in line for line in lines), start[-3000:]
    assert not [line for line in lines if "IMPORT FAILED" in line or "Error" in line or "Cannot import" in line]
    assert not [line for line in start.splitlines() if "DuoGen" in line and ("Error" in line or "rror:" in line)]


@pytest.mark.parametrize("node", NODES)
def test_node_is_described(object_info: dict[str, Any], node: str):
    info = object_info[node]
    assert info["display_name"].startswith("DuoGen ")
    assert info["category"].startswith("DuoGen")
    assert info["description"].endswith(".")
    for kind in ("required", "optional"):
        for name, specification in info["input"].get(kind, {}).items():
            assert len(specification[1]["tooltip"]) > 10, f"{node}.{name} has no tooltip"
    for name, tooltip in zip(info["output_name"], info["output_tooltips"], strict=True):
        assert tooltip, f"output {name} of {node} has no tooltip"


@pytest.mark.parametrize("node", NODES)
def test_node_has_a_help_page(server: Server, node: str):
    page = server.get_bytes(f"/extensions/{LINK}/docs/{node}.md").decode("utf-8")
    assert page.startswith("# DuoGen ")


def test_loader_lists_the_users_models(object_info: dict[str, Any], random_model):
    options = object_info["DuoGenLoadCheckpoint"]["input"]["required"]["checkpoint"]
    listed = options[0] if isinstance(options[0], list) else options[1]["options"]
    assert random_model.name in listed


def test_sockets(object_info: dict[str, Any]):
    """Core sockets outward; ours only where the core has none."""
    assert object_info["DuoGenLoadCheckpoint"]["output"] == ["DUOGEN_MLLM", "DUOGEN_CONNECTOR", "MODEL", "VAE"]
    assert object_info["DuoGenPrompt"]["output"] == ["DUOGEN_CONTEXT"]
    assert object_info["DuoGenInterleave"]["output"] == ["DUOGEN_CONTEXT", "STRING", "IMAGE"]
    assert object_info["DuoGenInterleave"]["output_is_list"] == [False, False, True]
    assert object_info["DuoGenFormat"]["output"] == ["STRING", "IMAGE", "INT", "STRING"]


def test_workflow_is_offered_as_a_template(server: Server):
    assert "01 Illustrated guide" in server.get("/workflow_templates")[LINK]
