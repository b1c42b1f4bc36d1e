"""Finished pictures are in the page while the rest is drawn: in the preview node, or in the node that makes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .frontend import Frontend
from .test_reload import build, start, wait_for_draft, wait_for_job, wait_for_status

FIRST, NEXT = "First a wall.", "Now the roof"
pytestmark = pytest.mark.slow


def interleave(frontend: Frontend) -> int:
    return frontend.page.evaluate("() => app.graph._nodes.find((node) => node.type === 'DuoGenInterleave').id")


def wait_for_pictures(frontend: Frontend, count: int) -> list[list[int]]:
    """Until so many are there and loaded; their sizes."""
    frontend.page.wait_for_function(
        """count => { const images = [...document.querySelectorAll(".duogen-answer img")];
            return images.length === count && images.every((image) => image.naturalWidth); }""",
        arg=count,
    )
    return frontend.page.evaluate(
        """() => [...document.querySelectorAll(".duogen-answer img")].map(
            (image) => [image.naturalWidth, image.naturalHeight])"""
    )


def viewers(frontend: Frontend) -> list[str]:
    return frontend.page.evaluate(
        "() => app.graph._nodes.filter((node) => node.widgets?.some((widget) => widget.name === 'answer'))"
        ".map((node) => node.type)"
    )


@pytest.mark.parametrize("preview", [True, False])
def test_finished_picture_is_shown_while_the_next_is_drawn(
    frontend: Frontend, random_model: Path, renderer: str, preview: bool
):
    """Then the run is cancelled: the picture stays, and the node says what opens the answer again.

    The run is held in its second picture, however fast the server and however slow the page."""
    seed = {"canvas": 50, "nodes2": 52}[renderer] + preview
    _, shower = build(frontend, random_model.name, seed, preview=preview, steps=4)
    shower = shower if preview else interleave(frontend)
    frontend.hold("Image 2 of at most 2, step 1 of")
    before = start(frontend)
    assert wait_for_pictures(frontend, 1) == [[96, 64]], "not yet the whole size"
    wait_for_status(frontend, "Image 2 of at most 2, step 1 of")
    assert not set(frontend.server.get("/history")) - before
    assert viewers(frontend) == ["DuoGenPreview" if preview else "DuoGenInterleave"], "the answer is shown once"
    assert frontend.order(shower)[:2] == [FIRST, "[picture]"]
    frontend.page.evaluate("() => app.api.interrupt()")
    wait_for_status(frontend, "Cancelled; what was finished stays here.")
    status = frontend.viewer(shower).get_by_role("status").inner_text()
    folders = [folder.name for folder in frontend.server.base.glob("output/duogen/unfinished/*")]
    assert any(f"DuoGen Load Document opens it as duogen/unfinished/{name} [output]." in status for name in folders)
    assert frontend.order(shower)[:2] == [FIRST, "[picture]"]
    wait_for_job(frontend, before)


def test_the_whole_answer_in_the_node_that_made_it(frontend: Frontend, random_model: Path, renderer: str):
    """Without a preview: its end as well, and once."""
    seed = {"canvas": 54, "nodes2": 55}[renderer]
    build(frontend, random_model.name, seed, preview=False, steps=2)
    node = interleave(frontend)
    job: dict[str, Any] = frontend.run()
    assert job["status"]["status_str"] == "success"
    wait_for_pictures(frontend, 2)
    frontend.page.wait_for_timeout(500)
    assert viewers(frontend) == ["DuoGenInterleave"]
    assert frontend.order(node)[:4] == [FIRST, "[picture]", NEXT, "[picture]"]
    assert frontend.viewer(node).get_by_role("status").inner_text() == "Stopped at the limit of images."
    assert frontend.page.locator(".duogen-work:not([hidden])").count() == 0


def test_a_cancelled_answer_is_there_after_a_reload(frontend: Frontend, random_model: Path, renderer: str):
    seed = {"canvas": 56, "nodes2": 57}[renderer]
    build(frontend, random_model.name, seed, preview=False, steps=4)
    frontend.hold("Image 2 of at most 2, step 1 of")
    before = start(frontend)
    wait_for_pictures(frontend, 1)
    wait_for_draft(frontend)
    frontend.page.evaluate("() => app.api.interrupt()")
    wait_for_job(frontend, before)
    frontend.open()
    wait_for_pictures(frontend, 1)
    wait_for_status(frontend, "Cancelled; what was finished stays here. DuoGen Load Document opens it as ")
