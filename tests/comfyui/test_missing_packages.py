"""The pack's folder copied into ComfyUI, its requirements not installed: it loads, and says which command is missing.

A module file in the server's base folder keeps packages from being imported (blocked_imports.py); it is shortened
while the server runs, as if somebody installed one package after the other.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import graphs
import pytest
from conftest import running
from server import PACK, Server

# What ComfyUI does not bring itself. jinja2 is left out: torch needs it.
OURS = {
    "accelerate": "accelerate",
    "diffusers": "diffusers",
    "fpdf": "fpdf2",
    "gguf": "gguf",
    "llguidance": "llguidance",
    "markdown_it": "markdown-it-py",
}
COMMAND = f'"{sys.executable}" -m pip install -r "{PACK / "requirements.txt"}"'
PROBE = Path(__file__).with_name("probe_import.py")


def probe(comfyui: Path, *arguments: str) -> list[dict[str, Any]]:
    """What the log says when ComfyUI loads the pack, once for each argument, in forks of one process."""
    command = [sys.executable, str(PROBE), str(comfyui), str(PACK), *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_each_package_that_is_missing_is_named(comfyui: Path):
    for package, found in zip(OURS.values(), probe(comfyui, *OURS), strict=True):
        assert found["nodes"] > 30, "the pack did not load"
        (line,) = [line for line in found["log"] if "DuoGen" in line]
        assert f"{package}>=" in line and line.endswith(COMMAND), line
        others = [name for name in OURS.values() if name != package and name in line.split("Install")[0]]
        assert not others, line


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_an_old_comfyui_gets_a_sentence_and_no_traceback(comfyui: Path):
    """0.27: one that lacks what the nodes' files import, and one that has it all."""
    lacking, whole, new = probe(comfyui, "ComfyUI 0.27 without Caching", "ComfyUI 0.27", "nothing")
    sentence = "DuoGen needs ComfyUI 0.28 or newer, and this is 0.27.1: update ComfyUI."
    assert lacking["nodes"] == 0 and lacking["log"][0] == sentence
    assert "comfy_api.latest.Caching" in lacking["log"][1] and not any("Traceback" in line for line in lacking["log"])
    assert whole["nodes"] > 30 and whole["log"] == [sentence]
    assert new["log"] == [], "nothing to say"


@pytest.mark.slow
def test_a_new_comfyui_that_lacks_a_name_is_no_old_one(comfyui: Path):
    """There the fault is ours, and ComfyUI shows its traceback."""
    (found,) = probe(comfyui, "without Caching")
    assert "Caching" in found["error"]


@pytest.fixture(scope="module")
def bare(comfyui: Path, random_model: Path, tmp_path_factory: pytest.TempPathFactory):
    """A server without any of the packages."""
    base = tmp_path_factory.mktemp("bare")
    (base / "blocked.txt").write_text("\n".join(OURS), "utf-8")
    os.environ["DUOGEN_TEST_BLOCKED"] = str(base / "blocked.txt")
    try:
        yield from running(comfyui, random_model, base)
    finally:
        del os.environ["DUOGEN_TEST_BLOCKED"]


@pytest.mark.slow
def test_without_any_the_nodes_name_what_they_need_until_all_is_there(bare: Server, random_model: Path):
    assert len([name for name in bare.get("/object_info") if name.startswith("DuoGen")]) > 30
    assert COMMAND in bare.log and "Traceback" not in bare.log
    assert bare.get("/duogen/about")["missing"].endswith(COMMAND), "the page is not told"
    graph = graphs.answer(random_model.name, prefix="bare", steps=1, max_images=1)
    save = next(node for node in graph.values() if node["class_type"] == "DuoGenSaveDocument")
    save["inputs"]["pdf"] = True
    blocked, named = bare.base / "blocked.txt", []
    for _ in OURS:
        result = bare.run(graph)
        if result.error is None:
            break
        said = result.error["exception_message"]
        assert "which this node needs, is not installed" in said and COMMAND in said, said
        left = blocked.read_text("utf-8").split()
        named += [module for module in left if f"package {OURS[module]}>=" in said]
        blocked.write_text("\n".join(module for module in left if module not in named), "utf-8")
    assert result.error is None, result.error
    assert {"accelerate", "diffusers", "fpdf", "markdown_it"} == set(named)
