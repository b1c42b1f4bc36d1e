"""Sampling previews: there without being asked for, and gone where the user chose none."""

from __future__ import annotations

from pathlib import Path

import graphs
import pytest
from conftest import running
from server import Server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def without_previews(comfyui: Path, random_model: Path, tmp_path_factory: pytest.TempPathFactory):
    base = tmp_path_factory.mktemp("previews")
    yield from running(comfyui, random_model, base, "--preview-method", "none")


@pytest.mark.parametrize(
    ("flagged", "chosen", "shown"),
    [
        (False, None, True),
        (False, "default", True),
        (False, "none", False),
        (True, None, False),
        (True, "default", False),
        (True, "auto", True),
    ],
)
def test_the_choice_of_none_is_heeded(
    request: pytest.FixtureRequest, random_model: Path, flagged: bool, chosen: str | None, shown: bool
):
    """flagged: on the command line; chosen: in the front end's settings, which it sends with each prompt."""
    server: Server = request.getfixturevalue("without_previews" if flagged else "server")
    graph = graphs.answer(random_model.name, f"Preview {chosen}.", prefix="previews/x", max_images=1)
    result = server.run(graph, extra={"preview_method": chosen} if chosen else None)
    assert result.error is None and result.steps > 0
    assert (result.previews > 0) == shown
