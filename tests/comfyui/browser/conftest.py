"""A real browser in front of the real front end, once for each of its renderers.

Needs Playwright's Python package and a Chromium: the system's, or the one at $CHROMIUM_PATH. Without them these tests
are skipped, with one line that says what is missing.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from server import Server

from .frontend import Frontend

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="package")  # not longer: an open tab keeps a quarter of a core busy
def chromium():
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("Playwright is not installed: pip install playwright (its own browsers are not needed).")
    executable = os.environ.get("CHROMIUM_PATH") or next(filter(None, map(shutil.which, NAMES)), None)
    if executable is None:
        pytest.skip("No Chromium here: install the system's package chromium, or set CHROMIUM_PATH to one.")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="package", params=["canvas", "nodes2"])
def renderer(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="package")
def tab(chromium: Any, server: Server, renderer: str, tmp_path_factory: pytest.TempPathFactory):
    """The front end, started once for each renderer: starting takes longer than any of the tests."""
    settings = {"Comfy.VueNodes.Enabled": renderer == "nodes2", "Comfy.TutorialCompleted": True, "Comfy.Locale": "en"}
    settings["Comfy.OnboardingCoachmarks.Seen"] = ["appMode", "firstRun"]  # ComfyUI's own tours
    server.post("/settings", settings)
    context = chromium.new_context(viewport={"width": 1500, "height": 1000})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    frontend = Frontend(context.new_page(), server, tmp_path_factory.mktemp(f"browser-{renderer}"))
    yield frontend.open()
    context.close()


@pytest.fixture
def frontend(tab: Frontend, renderer: str, request: pytest.FixtureRequest):
    """An empty workflow. What the page complains about fails the test; a screenshot stays in the scratch folder."""
    tab.clear()
    yield tab
    tab.hold("")
    tab.page.screenshot(path=tab.folder / f"{Path(request.node.name).name}.png")
    assert not tab.complaints, "\n".join(tab.complaints)
