"""A page that is reloaded while its workflow runs shows the answer all the same."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from .frontend import EMPTY, SECONDS, Frontend

FIRST, NEXT = "First a wall.", "Now the roof"
REQUEST = "Reload me."
pytestmark = pytest.mark.slow


def build(frontend: Frontend, checkpoint: str, seed: int, *, preview: bool, steps: int) -> tuple[int, int | None]:
    """The shortest graph that answers and saves; returns the ids of the nodes that save and show."""
    load = frontend.add("DuoGenLoadCheckpoint", (50, 50), checkpoint=checkpoint)
    prompt = frontend.add("DuoGenPrompt", (50, 300), text=REQUEST)
    settings = {"max_images": 2, "seed": seed, "steps": steps}
    answer = frontend.add("DuoGenInterleave", (450, 50), **settings)
    saver = frontend.add("DuoGenSaveDocument", (900, 50))
    for output in ("mllm", "connector", "model", "vae"):
        frontend.connect(load, output, answer, output)
    frontend.connect(prompt, "context", answer, "context")
    frontend.connect(answer, "context", saver, "context")
    shower = frontend.add("DuoGenPreview", (900, 400)) if preview else None
    if shower is not None:
        frontend.connect(answer, "context", shower, "context")
    return saver, shower


def start(frontend: Frontend) -> set[str]:
    """Queue the workflow and wait until it is drawing; returns the jobs that were finished before."""
    before = set(frontend.server.get("/history"))
    frontend.page.evaluate(
        """() => {
            window.drawing = false;
            app.api.addEventListener("progress_text", ({detail}) => { drawing ||= /step \\d+ of/.test(detail.text); });
            app.queuePrompt(0, 1);
        }"""
    )
    frontend.page.wait_for_function("() => window.drawing")
    return before


def wait_for_draft(frontend: Frontend) -> None:
    """Until the front end has kept this workflow for the next page, which it does a moment after a change."""
    frontend.page.wait_for_function(
        """words => [localStorage, sessionStorage].flatMap((storage) => Object.values(storage))
            .some((kept) => kept.includes(app.graph.id) && kept.includes(words))""",
        arg=REQUEST,
    )


def wait_for_job(frontend: Frontend, before: set[str]) -> None:
    end = time.monotonic() + SECONDS
    while not set(frontend.server.get("/history")) - before:
        assert time.monotonic() < end, frontend.server.log[-3000:]
        time.sleep(0.2)


def wait_for_status(frontend: Frontend, words: str) -> None:
    frontend.page.wait_for_function(
        """words => [...document.querySelectorAll(".duogen-status")]
            .some((status) => status.textContent.includes(words))""",
        arg=words,
    )


def wait_for_answer(frontend: Frontend) -> None:
    frontend.page.wait_for_function("() => document.querySelectorAll('.duogen-answer img').length === 2")
    frontend.page.wait_for_timeout(500)


def test_reload_while_it_runs(frontend: Frontend, random_model: Path, renderer: str):
    """The rest of the run arrives at the new page, and can be cancelled from there."""
    seed = {"canvas": 41, "nodes2": 42}[renderer]
    _, shower = build(frontend, random_model.name, seed, preview=True, steps=4)
    frontend.hold("Image 1 of at most 2, step 1 of")
    start(frontend)
    wait_for_draft(frontend)
    frontend.open()
    frontend.page.wait_for_function("(id) => app.graph.getNodeById(id)?.type === 'DuoGenPreview'", arg=shower)
    frontend.hold("Image 1 of at most 2, step 2 of")
    wait_for_status(frontend, "step 2 of")
    assert frontend.viewer(shower).locator(".duogen-work .duogen-text").all_text_contents()[0] == FIRST
    frontend.page.evaluate("() => app.api.interrupt()")
    wait_for_status(frontend, "Cancelled; what was finished stays here.")


def test_the_run_ends_while_the_page_is_away(frontend: Frontend, random_model: Path, renderer: str):
    """Nothing arrives any more: the answer comes from the server's history, on the node that saved it."""
    seed = {"canvas": 43, "nodes2": 44}[renderer]
    saver, _ = build(frontend, random_model.name, seed, preview=False, steps=4)
    frontend.hold("Image 1 of at most 2, step 1 of")
    before = start(frontend)
    wait_for_draft(frontend)
    frontend.page.goto("about:blank")
    frontend.hold("")
    wait_for_job(frontend, before)
    frontend.open()
    wait_for_answer(frontend)
    assert frontend.order(saver)[1:5] == [FIRST, "[picture]", NEXT, "[picture]"], "the request stands before them"


def test_another_tab_in_front_while_it_runs(frontend: Frontend, random_model: Path, renderer: str):
    """Back again, the finished image is there, and the rest of the run arrives."""
    seed = {"canvas": 45, "nodes2": 46}[renderer]
    build(frontend, random_model.name, seed, preview=True, steps=4)
    frontend.hold("Image 2 of at most 2, step 1 of")
    before = start(frontend)
    wait_for_status(frontend, "Image 2 of at most 2, step 1 of")
    frontend.load(EMPTY)
    frontend.hold("Image 2 of at most 2, step 2 of")
    frontend.page.wait_for_timeout(500)
    assert frontend.page.locator(".duogen-viewer").count() == 0
    frontend.page.locator(".workflow-tab").nth(-2).click()
    frontend.page.wait_for_function("() => document.querySelectorAll('.duogen-answer img').length === 1")
    frontend.hold("Image 2 of at most 2, step 3 of")
    wait_for_status(frontend, "Image 2 of at most 2, step 3 of")
    assert frontend.page.locator(".duogen-answer img").count() == 1, "the finished image is still there"
    frontend.hold("")
    wait_for_job(frontend, before)
    wait_for_answer(frontend)


def test_the_end_of_a_run_that_was_not_heard_of(frontend: Frontend, random_model: Path, renderer: str):
    """The connection was gone: the answer comes from the history; a server that knows no such run has lost it."""
    seed = {"canvas": 47, "nodes2": 48}[renderer]
    _, shower = build(frontend, random_model.name, seed, preview=True, steps=2)
    frontend.run()
    wait_for_answer(frontend)
    whole = frontend.order(shower)
    idle = {"exec_info": {"queue_remaining": 0}}
    drawing = {"prompt_id": "x", "node": str(shower), "display_node": str(shower), "phase": "drawing", "text": "Gone."}
    frontend.send("duogen_progress", drawing)
    assert frontend.order(shower) == [] and frontend.viewer(shower).get_by_text("Gone.").is_visible()
    frontend.send("status", idle)
    wait_for_answer(frontend)
    assert frontend.order(shower) == whole and frontend.viewer(shower).get_by_text("Gone.").count() == 0
    frontend.server.post("/history", {"clear": True})
    frontend.send("duogen_progress", drawing)
    frontend.send("status", idle)
    wait_for_status(frontend, "The run failed; what was finished stays here.")
