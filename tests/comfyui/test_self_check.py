"""What the log says where a ComfyUI lacks something; that a real one lacks nothing is test_server.py's."""

from __future__ import annotations

import runpy

from server import PACK, Server


def test_missing_modules_and_names_are_told():
    missing = runpy.run_path(str(PACK / "nodes" / "host" / "self_check.py"))["missing"]
    assert missing({"json": ("dumps", "not_there"), "no_such_module": ("any",)}) == [
        "json.not_there",
        "no_such_module.any",
    ]


def test_this_comfyui_lacks_nothing(server: Server):
    assert "this ComfyUI lacks" not in server.log
