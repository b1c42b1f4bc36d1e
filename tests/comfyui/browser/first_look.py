"""The path of a stranger: an empty ComfyUI with this pack in it, opened for the first time.

ComfyUI shows its templates by itself then. Three actions: the pack's name, a card, Run. In: a Playwright page that has
not been anywhere, ComfyUI's address, a template's name. Out: what was done and seen, with the seconds since the page
was asked for; only `ACTIONS` of it are the stranger's.
"""

from __future__ import annotations

import time
from typing import Any

from server import LINK

ACTIONS = ("pack chosen", "card chosen", "Run pressed")
SETTINGS = {"Comfy.TutorialCompleted": False, "Comfy.OnboardingCoachmarks.Seen": ["appMode"], "Comfy.Locale": "en"}
IMAGES = "document.querySelectorAll('.duogen-answer img').length"


def look(page: Any, address: str, template: str, images: int) -> dict[str, float]:
    begun, seen = time.monotonic(), {}

    def note(what: str) -> None:
        seen[what] = round(time.monotonic() - begun, 1)

    page.goto(address)
    pack = page.get_by_role("dialog").get_by_text(LINK, exact=True)
    pack.wait_for()
    note("templates shown")
    pack.click()
    note("pack chosen")
    page.get_by_test_id(f"template-workflow-{template}").click()
    page.wait_for_function("() => app.graph._nodes.some((node) => node.comfyClass === 'DuoGenPreview')")
    page.wait_for_function("() => !document.querySelector('[role=dialog]')")
    note("card chosen")
    page.get_by_role("button", name="Run", exact=True).first.click()
    note("Run pressed")
    for count in (1, images):
        page.wait_for_function(f"(count) => {IMAGES} >= count", arg=count)
        note("first image seen" if count == 1 else "answer seen")
    return seen
