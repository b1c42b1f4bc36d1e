"""What the log says where a ComfyUI lacks something; that a real one lacks nothing is test_server.py's."""

from __future__ import annotations

import ast
import runpy
from collections.abc import Iterator

import pytest
from server import PACK, Server

pytestmark = pytest.mark.every_comfyui


def test_missing_modules_and_names_are_told():
    missing = runpy.run_path(str(PACK / "nodes" / "host" / "self_check.py"))["missing"]
    assert missing({"json": ("dumps", "not_there"), "no_such_module": ("any",)}) == [
        "json.not_there",
        "no_such_module.any",
    ]


# ComfyUI's documented side, and what is asked for with an eye to its absence.
PUBLIC = {"folder_paths", "server", "comfy_extras.nodes_train"}
COMFYUI = ("comfy", "comfy_api", "comfy_execution", "comfy_extras", "execution", "folder_paths", "latent_preview",
           "node_helpers", "server")  # fmt: skip


def names_of_comfyui(source: str) -> Iterator[tuple[str, str]]:
    """(module, name) of everything that runs; not what is there for types alone."""
    tree = ast.parse(source)
    typing = [
        node.body for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    typing += [
        node.annotation for node in ast.walk(tree) if isinstance(node, (ast.arg, ast.AnnAssign)) and node.annotation
    ]
    typing += [node.returns for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    parts = [part for each in typing for part in (each if isinstance(each, list) else [each]) if part is not None]
    skipped = {id(inner) for part in parts for inner in ast.walk(part)}
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {
                each.asname or each.name: each.name for each in node.names if each.name.split(".")[0] in COMFYUI
            }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and not node.level and node.module.split(".")[0] in COMFYUI:
            yield from ((node.module, each.name) for each in node.names)
        if isinstance(node, ast.Attribute) and (module := modules.get(ast.unparse(node.value))):
            yield module, node.attr


def test_every_name_of_comfyui_that_the_pack_uses_is_looked_for():
    used = runpy.run_path(str(PACK / "nodes" / "host" / "self_check.py"))["USED"]
    found = {name for file in (PACK / "nodes").rglob("*.py") for name in names_of_comfyui(file.read_text("utf-8"))}
    assert ("comfy.controlnet", "ControlBase") in found and len(found) > 60
    assert not [name for name in sorted(found) if name[0] not in PUBLIC and name[1] not in used.get(name[0], ())]


def test_this_comfyui_lacks_nothing(server: Server):
    assert "this ComfyUI lacks" not in server.log
