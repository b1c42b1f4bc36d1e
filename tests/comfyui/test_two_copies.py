"""Two copies of the pack under different folder names: the second stays out, and one sentence names both."""

from __future__ import annotations

import shutil
from pathlib import Path

import graphs
import pytest
from server import LINK, PACK, Server

COPY = "duogen-main"  # as GitHub names a downloaded archive


@pytest.mark.slow
def test_the_second_copy_stays_out(comfyui: Path, random_model: Path, tmp_path: Path):
    copy = tmp_path / "custom_nodes" / COPY
    copy.mkdir(parents=True)
    for name in ("nodes", "duogen_core", "web"):
        shutil.copytree(PACK / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PACK / "__init__.py", copy)
    (tmp_path / "models" / "duogen").mkdir(parents=True)
    (tmp_path / "models" / "duogen" / random_model.name).symlink_to(random_model, target_is_directory=True)
    server = Server(comfyui, tmp_path, "--whitelist-custom-nodes", LINK, COPY)
    try:
        server.wait()
        told = [line for line in server.log.splitlines() if "DuoGen is there twice" in line]
        assert len(told) == 1, server.log[-2000:]
        # Which comes first is up to the file system.
        assert any(
            f"the one in {out} is not loaded, because the one in {there} is; remove one" in told[0]
            for out, there in ((PACK, copy.resolve()), (copy.resolve(), PACK))
        ), told
        assert "Traceback" not in server.log
        scripts = [path for path in server.get("/extensions") if path.endswith("/duogen/index.js")]
        assert len(scripts) == 1, "the front end is there twice"
        result = server.run(graphs.answer(random_model.name, prefix="twice/x", max_images=1, steps=1))
        assert result.error is None, result.error
    finally:
        server.stop()
