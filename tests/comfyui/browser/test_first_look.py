"""A stranger sees an answer after three actions, and nothing of ours opens by itself before them."""

from __future__ import annotations

from typing import Any

import pytest
from server import Server

from . import first_look

pytestmark = pytest.mark.slow
AFTER = {"Comfy.TutorialCompleted": True, "Comfy.OnboardingCoachmarks.Seen": ["appMode", "firstRun"]}
HOUSE = 4  # images of the answer that duogen-tiny gives to the request of 01


def test_three_actions_to_an_answer(chromium: Any, server: Server):
    kept = server.get("/settings")
    server.post("/settings", first_look.SETTINGS)
    context = chromium.new_context(viewport={"width": 1280, "height": 720})
    try:
        page = context.new_page()
        page.set_default_timeout(120_000)
        seen = first_look.look(page, f"http://127.0.0.1:{server.port}", "01 Illustrated guide", HOUSE)
        assert [what for what in seen if what in first_look.ACTIONS] == list(first_look.ACTIONS)
        assert list(seen)[-2:] == ["first image seen", "answer seen"]
        page.wait_for_function("() => document.querySelectorAll('.duogen-answer img').length === 4")
    finally:
        context.close()
        server.post("/settings", AFTER | {key: kept[key] for key in first_look.SETTINGS if key in kept})
