"""What the import of the pack, and a whole run, leave of ComfyUI: all as it was, and what was registered beside it.

The snapshot is a custom node that is loaded first: its folder bears the pack's name, in the first of two folders of
custom nodes; the pack itself is a link in the second.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import running
from server import LINK, PACK, Server
from ui_to_api import convert

pytestmark = pytest.mark.slow
# What ComfyUI itself sets after it has loaded custom nodes: its database, its progress bars, of each run the progress
# and the names of new nodes; and its tuple of cache providers, among which ours is registered by comfy_api's Caching.
ITS_OWN = {
    "app.database.db.Session", "comfy.utils.PROGRESS_BAR_HOOK", "comfy_execution.progress.global_progress_registry",
    "comfy_execution.graph_utils.GraphBuilder._default_prefix_root",
    "comfy_execution.cache_provider._providers_snapshot",
}  # fmt: skip
FILLED = (".SCHEMA",)  # what its nodes keep of themselves when somebody asks for /object_info
FOLDERS = {"duogen", "duogen_gguf_diffusion_models", "duogen_gguf_duogen", "duogen_gguf_text_encoders"}


@pytest.fixture(scope="module")
def watched(comfyui: Path, random_model: Path, tmp_path_factory: pytest.TempPathFactory):
    base = tmp_path_factory.mktemp("watched")
    first, second = base / "custom_nodes" / LINK, base / "second" / LINK
    first.mkdir(parents=True)
    (first / "__init__.py").symlink_to(Path(__file__).with_name("probe_snapshot.py"))
    second.parent.mkdir()
    second.symlink_to(PACK, target_is_directory=True)
    paths = base / "paths.yaml"
    paths.write_text(yaml.safe_dump({"tests": {"base_path": str(base), "custom_nodes": "second"}}), "utf-8")
    yield from running(comfyui, random_model, base, "--extra-model-paths-config", str(paths))


def its_own(name: str) -> bool:
    return name in ITS_OWN or name.endswith(FILLED)


def changed(server: Server) -> dict[str, Any]:
    found = server.post("/duogen_test/snapshot", {})
    assert found["looked at"] > 10_000 and found["pack loaded now"] and not found["pack loaded before"], found
    return {**found, "changed": [name for name in found["changed"] if not its_own(name)]}


def test_import_and_a_run_replace_nothing(watched: Server, random_model: Path):
    after_import = changed(watched)
    assert after_import["changed"] == []
    registered = {name.partition("[")[2].removesuffix("]") for name in after_import["registered"]}
    assert {name for name in registered if not name.startswith("DuoGen")} == FOLDERS
    workflow = json.loads((PACK / "workflows" / "01 Illustrated guide.json").read_text("utf-8"))
    graph = convert(workflow, watched.get("/object_info"))
    for node in graph.values():
        if "checkpoint" in node["inputs"]:
            node["inputs"]["checkpoint"] = random_model.name
    result = watched.run(graph)
    assert result.error is None, result.error
    assert changed(watched)["changed"] == []
