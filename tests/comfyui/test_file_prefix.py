"""The filename_prefix of DuoGen Save Document: placeholders, a name of its own for every save, none that fails late."""

from __future__ import annotations

import runpy
import sys
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from server import PACK, Result, Server
from test_stock_nodes import node

from duogen_core.errors import DuoGenError

NOW = datetime(2026, 3, 7, 5, 9, 4)


@pytest.fixture
def prefixes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """The module, with no more of ComfyUI than the place of its output folder."""
    stub = ModuleType("folder_paths")
    stub.get_output_directory = lambda: str(tmp_path)
    monkeypatch.setitem(sys.modules, "folder_paths", stub)
    return runpy.run_path(str(PACK / "nodes" / "host" / "metadata.py"))


@pytest.mark.parametrize(
    ("pattern", "date"),
    [
        ("yyyy-MM-dd", "2026-03-07"),
        ("yy-M-d_h.m.s", "26-3-7_5.9.4"),
        ("hh-mm-ss", "05-09-04"),
        ("yyyy.MM.dd", "2026.03.07"),
        ("yyy", "yyy"),
        ("", ""),
    ],
)
def test_dates(prefixes: dict[str, Any], pattern: str, date: str):
    assert prefixes["format_date"](pattern, NOW) == date


PROMPT = {
    "1": {"class_type": "KSampler", "inputs": {"seed": 12, "cfg": 2.0, "model": ["9", 0]}, "_meta": {"title": "Mine"}},
    "2:5": {"class_type": "Text", "inputs": {"text": "a/b: c?", "on": True}},
}
WORKFLOW = {
    "nodes": [],
    "definitions": {"subgraphs": [{"nodes": [{"id": 5, "properties": {"Node name for S&R": "Inner"}}]}]},
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("KSampler.seed", "12"),
        ("Mine.cfg", "2"),
        ("Inner.text", "a_b_ c_"),
        ("Text.on", "true"),
        ("KSampler.model", "%KSampler.model%"),
        ("Nobody.seed", "%Nobody.seed%"),
        ("nothing", "%nothing%"),
    ],
)
def test_values_of_other_nodes(prefixes: dict[str, Any], name: str, value: str):
    assert prefixes["_value"](name, PROMPT, WORKFLOW) == value


@pytest.mark.parametrize(
    "prefix",
    ["a:b", "what?", "CON/answer", "aux.txt/a", "duogen /a", "a./b", "COM1\\a", 'say "x"', "%date:hh:mm%", "lpt9/x/y"],
)
def test_what_windows_refuses(prefixes: dict[str, Any], prefix: str):
    """On Windows alone: elsewhere such names work, in ComfyUI's own save nodes too."""
    filled = prefixes["PLACEHOLDER"].sub(lambda found: prefixes["_value"](found[1], {}, None), prefix)
    with pytest.raises(DuoGenError, match="Windows"):
        prefixes["check"](filled, windows=True)
    prefixes["check"](filled, windows=False)


@pytest.mark.parametrize("prefix", ["duogen/answer", "con", "a/nul", "console/a", "com/a", "größe/答"])
def test_what_windows_takes(prefixes: dict[str, Any], prefix: str):
    prefixes["check"](prefix, windows=True)


@pytest.mark.parametrize("windows", [True, False])
@pytest.mark.parametrize(
    "prefix", ["../x", "a/../../x", "/etc/x", "a\0b", "a\nb", "\ud800", "x" * 250, "é" * 120, ".."]
)
def test_what_no_system_takes(prefixes: dict[str, Any], prefix: str, windows: bool):
    with pytest.raises(DuoGenError, match="filename_prefix"):
        prefixes["check"](prefixes["with_name"](prefix), windows)


# ---------------------------------------------------------------- in ComfyUI


def run(server: Server, prefix: Any, **nodes: Any) -> Result:
    graph = {
        "1": node("DuoGenPrompt", text=f"Save {prefix}."),
        "5": node("DuoGenSaveDocument", context=["1", 0], filename_prefix=prefix),
        **nodes,
    }
    return server.run(graph)


def folder_of(result: Result) -> str:
    assert result.error is None, result.error
    return result.outputs["5"]["document"][0]["folder"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prefix", "start"),
    [
        ("", "answer_"),
        (".", "answer_"),
        ("x/", "x/answer_"),
        ("x/.", "x/answer_"),
        ("a/b/", "a/b/answer_"),
        ("y", "y_"),
    ],
)
def test_every_save_has_a_name_of_its_own(server: Server, prefix: str, start: str):
    graph = {
        "1": node("DuoGenPrompt", text="Twice."),
        "5": node("DuoGenSaveDocument", context=["1", 0], filename_prefix=prefix, zip=True),
        "6": node("DuoGenSaveDocument", context=["1", 0], filename_prefix=prefix, zip=True, pdf=True),
    }
    result = server.run(graph)
    folders = [result.outputs[name]["document"][0]["folder"] for name in ("5", "6") if result.error is None]
    assert len(set(folders)) == 2, result.error
    assert all(folder.startswith(start) and (server.base / "output" / folder).is_dir() for folder in folders)


@pytest.mark.slow
def test_placeholders(server: Server):
    picture = node("EmptyImage", width=48, height=32, batch_size=1, color=0)
    titled = {**node("PrimitiveInt", value=7), "_meta": {"title": "My number"}}
    prefix = "filled/%date:yyyy-MM-dd%/%year%_%My number.value%_%width%x%height%_%DuoGenPrompt.text%"
    graph = {
        "pic": picture,
        "number": titled,
        "number shown": node("PreviewAny", source=["number", 0]),
        "1": node("DuoGenPrompt", text="What: now?", **{"images.image1": ["pic", 0]}),
        "5": node("DuoGenSaveDocument", context=["1", 0], filename_prefix=prefix),
    }
    today = datetime.now()
    folder = folder_of(server.run(graph))
    expected = f"filled/{today:%Y-%m-%d}/{today:%Y}_7_48x32_What_ now__"
    assert folder.startswith(expected), "(at midnight this may fail once)"


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["../../out", "a\0b", "x" * 300])
def test_a_name_that_cannot_be_is_refused_before_anything_runs(server: Server, prefix: str):
    with pytest.raises(RuntimeError, match="filename_prefix") as caught:
        run(server, prefix)
    assert "400" in str(caught.value) and "Traceback" not in str(caught.value)


@pytest.mark.slow
def test_a_name_that_another_node_gives(server: Server):
    result = run(server, ["name", 0], name=node("PrimitiveString", value="../../out"))
    assert "leads out of ComfyUI's output folder" in result.error["exception_message"]
    assert folder_of(run(server, ["name", 0], name=node("PrimitiveString", value="given/here"))) == "given/here_00001_"
