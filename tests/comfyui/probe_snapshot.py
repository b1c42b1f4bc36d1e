"""The first custom node of a test server: remembers ComfyUI as it is before this pack is imported; tells what changed.

POST /duogen_test/snapshot {} -> the names of what has another value than at the start: functions, classes and all that
stands in classes, of every module of ComfyUI's; constants; what PromptServer and its parts can do; what the registries
had under their names. What is new beside it is no change: to register is what a pack is for.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import folder_paths
from aiohttp import web
from server import PromptServer

import nodes

NODE_CLASS_MAPPINGS: dict = {}
COMFYUI, TESTS = Path(folder_paths.__file__).parent, Path(__file__).resolve().parent
CONSTANTS = (int, float, str, bytes, bool, tuple, type(None))
REGISTRIES = {
    "nodes.NODE_CLASS_MAPPINGS": nodes.NODE_CLASS_MAPPINGS,
    "nodes.NODE_DISPLAY_NAME_MAPPINGS": nodes.NODE_DISPLAY_NAME_MAPPINGS,
    "folder_paths.folder_names_and_paths": folder_paths.folder_names_and_paths,
}


def of_comfyui(module: Any) -> bool:
    file = getattr(module, "__file__", None)
    return isinstance(file, str) and Path(file).is_relative_to(COMFYUI) and ".venv" not in file


def state() -> Iterator[tuple[str, Any]]:
    for name, module in list(sys.modules.items()):
        if not of_comfyui(module) or "custom_nodes" in name:
            continue
        for key, value in list(vars(module).items()):
            if callable(value) or isinstance(value, CONSTANTS):
                yield f"{name}.{key}", value
            if isinstance(value, type) and value.__module__ == module.__name__:
                yield from ((f"{name}.{key}.{inner}", each) for inner, each in list(vars(value).items()))
    for key, value in list(vars(PromptServer.instance).items()):
        if callable(value):
            yield f"PromptServer.instance.{key}", value
    for name, registry in REGISTRIES.items():
        yield from ((f"{name}[{key}]", value) for key, value in list(registry.items()))


def same(before: Any, now: Any) -> bool:
    if before is now:
        return True
    return type(before) is type(now) and isinstance(now, CONSTANTS) and before == now


BEFORE = dict(state())


def of_tests(value: Any) -> bool:
    code = getattr(value, "__code__", None)
    return code is not None and Path(code.co_filename).resolve().parent == TESTS


@PromptServer.instance.routes.post("/duogen_test/snapshot")
async def snapshot(request: web.Request) -> web.Response:
    now = dict(state())
    changed = [name for name in BEFORE if name not in now or not same(BEFORE[name], now[name])]
    packs = [name for name in sys.modules if "comfyui-duogen" in name]
    answer = {
        "changed": sorted(name for name in changed if not of_tests(now.get(name))),
        "looked at": len(BEFORE),
        "registered": sorted(name for name in now.keys() - BEFORE.keys() if name.endswith("]")),
        "pack loaded before": any("comfyui-duogen.nodes" in name for name in AT_START),
        "pack loaded now": any(name.endswith(".nodes") for name in packs),
    }
    return web.json_response(answer)


AT_START = set(sys.modules)
