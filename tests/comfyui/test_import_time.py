"""What the pack adds to ComfyUI's start: little time, and no model code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# As ComfyUI loads a custom node, in a process that has loaded what ComfyUI itself loads before any custom node.
PROBE = """
import importlib.util, json, sys, time
from pathlib import Path
comfyui, pack, here = sys.argv[1:4]
sys.path[:] = [comfyui, *(p for p in sys.path if p and Path(p).resolve() != Path(here))]
sys.path.append(here)
import standins
standins.install()
sys.argv = ["main.py", "--cpu"]
begun = time.process_time()
import comfy.options
comfy.options.enable_args_parsing()
import nodes, execution, server, comfy_api.latest, node_helpers, latent_preview, folder_paths
before = set(sys.modules)
start = time.process_time()
spec = importlib.util.spec_from_file_location("pack", pack + "/__init__.py", submodule_search_locations=[pack])
module = importlib.util.module_from_spec(spec)
sys.modules["pack"] = module
spec.loader.exec_module(module)
import asyncio
async def load():
    extension = await module.comfy_entrypoint()
    await extension.on_load()
    return [node.GET_SCHEMA() for node in await extension.get_node_list()]
count = len(asyncio.run(load()))
seconds = time.process_time() - start
share = seconds / (start - begun)
modules = sorted(set(sys.modules) - before)
print(json.dumps({"seconds": seconds, "share": share, "nodes": count, "modules": modules}))
"""
LIMIT = 0.05  # of what ComfyUI's own modules take: both take longer on a busy machine
# Packages that belong to models, and that ComfyUI has not loaded for itself.
HEAVY = {"diffusers", "accelerate", "peft", "matplotlib", "jinja2", "markdown_it"}


@pytest.mark.slow
def test_import_is_quick_and_brings_no_model_code(comfyui: Path):
    here = Path(__file__).resolve().parent
    seen = []
    for _ in range(3):  # the first one may have to compile
        done = subprocess.run(
            [sys.executable, "-c", PROBE, str(comfyui), str(here.parents[1]), str(here)],
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        assert done.returncode == 0, done.stderr[-4000:]
        seen.append(json.loads(done.stdout.splitlines()[-1]))
        if seen[-1]["share"] < LIMIT:
            break
    assert seen[-1]["nodes"] > 20
    new = seen[-1]["modules"]
    core = {name for name in new if name.startswith("duogen_core.")}
    assert not {name for name in core if name.split(".")[1] in ("mllm", "dit", "connector", "vae", "training", "data")}
    assert not {name for name in new if name.split(".")[0] in HEAVY}
    assert not [name for name in new if name.startswith(("transformers.models", "torch."))]
    quickest = min(seen, key=lambda run: run["share"])
    said = f"{quickest['seconds']:.2f} s of processor time, {quickest['share']:.0%} of what ComfyUI itself takes"
    assert quickest["share"] < LIMIT, said
    print(said)
