"""The viewer in the real front end, on the canvas renderer and on Nodes 2.0."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from server import PACK

from .frontend import EMPTY, Frontend, workflow_file

HOSTILE = (
    '<img src=x onerror="window.hit = 1"> <script>window.hit = 2</script> <b>bold</b> [a](javascript:hit) \u202etxt'
)
FIRST, NEXT = "First a wall.", "Now the roof"
pytestmark = pytest.mark.slow


def picture(frontend: Frontend, name: str, size: tuple[int, int]) -> dict[str, Any]:
    pixels = np.random.default_rng(len(name)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(frontend.server.base / "input" / name)
    return {"type": "image", "filename": name, "subfolder": "", "folder": "input", "width": size[0], "height": size[1]}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def answer(*parts: dict[str, Any], stop_reason: str = "end") -> dict[str, Any]:
    return {"turns": [{"role": "assistant", "parts": list(parts)}], "generation": {"stop_reason": stop_reason}}


@pytest.fixture
def shown(frontend: Frontend) -> int:
    """A preview node with an answer in it."""
    node = frontend.add("DuoGenPreview", (100, 100))
    parts = [
        text(FIRST), {**picture(frontend, "small.png", (96, 64)), "seed": 7}, text(NEXT),
        picture(frontend, "wide.png", (1200, 300)), text("Done."),
    ]  # fmt: skip
    frontend.look_at(node)
    frontend.output(node, answer(*parts, stop_reason="max_images"))
    frontend.page.wait_for_function(
        "() => { const images = [...document.querySelectorAll('.duogen-answer img')];"
        " return images.length === 2 && images.every((image) => image.naturalWidth && image.clientWidth); }"
    )
    return node


def test_workflow_runs_and_shows_the_answer(frontend: Frontend, random_model: Path, renderer: str):
    """The template with random weights: text and pictures in order, a request that is hostile stays text."""
    workflow = workflow_file(PACK / "workflows" / "01 Illustrated guide.json")
    frontend.load(workflow)
    ids = {node["type"]: node["id"] for node in workflow["nodes"]}
    frontend.set(ids["DuoGenLoadCheckpoint"], checkpoint=random_model.name)
    frontend.set(ids["DuoGenPrompt"], text=HOSTILE)
    seed = {"canvas": 1, "nodes2": 2}[renderer]  # not what the other has cached
    frontend.set(ids["DuoGenInterleave"], max_images=2, seed=seed)
    node = frontend.add("DuoGenPreview", (900, 700), part="conversation")
    frontend.connect(ids["DuoGenInterleave"], "context", node, "context")
    frontend.look_at(node)
    frontend.page.evaluate(
        """() => { window.seen = [];
            app.api.addEventListener("progress_text", () => seen.push(
                [...document.querySelectorAll(".duogen-status")].map((status) => status.textContent)));
            app.api.addEventListener("b_preview_with_metadata", () => seen.push(
                [...document.querySelectorAll(".duogen-preview:not([hidden])")].map(() => "preview"))); }"""
    )
    job = frontend.run()
    assert job["status"]["status_str"] == "success", job["status"]["messages"][-1][1].get("exception_message")
    frontend.page.wait_for_function("() => document.querySelectorAll('.duogen-answer img').length >= 2")
    frontend.page.wait_for_timeout(500)
    sections = frontend.page.locator(".duogen-turn h3").all_text_contents()
    assert sections[:2] == ["Request", "Answer"]
    order = frontend.order(node)
    assert order[0] == HOSTILE
    assert order[1:5] == [FIRST, "[picture]", NEXT, "[picture]"]
    assert frontend.page.evaluate("() => window.hit") is None
    assert frontend.viewer(node).locator("script, b, a").count() == 0
    live = [piece for pieces in frontend.page.evaluate("() => window.seen") for piece in pieces]
    assert any("Image 1 of at most 2" in piece for piece in live), "no running text reached the viewer"
    assert "preview" in live, "no sampling preview reached the viewer"
    assert frontend.page.locator(".duogen-work:not([hidden])").count() == 0, "still at work after the end"
    saver = ids["DuoGenSaveDocument"]
    widgets = frontend.page.evaluate("(id) => app.graph.getNodeById(id).widgets.map((widget) => widget.name)", saver)
    assert "answer" not in widgets, "the answer is shown once"


def progress(frontend: Frontend, node: int, *, phase: str = "writing", text: str, **data: Any) -> None:
    """As if a node that this one put in had said how far it is."""
    event = {"prompt_id": "p", "node": f"{node}.0.0.7", "display_node": str(node), "phase": phase, "text": text}
    frontend.send("duogen_progress", {**event, **data})


def test_hostile_document(frontend: Frontend):
    node = frontend.add("DuoGenPreview", (100, 100))
    frontend.look_at(node)
    document = {
        "turns": [
            {"role": "__proto__", "parts": [text(HOSTILE), {"type": "html", "text": HOSTILE}, None, 7]},
            {"role": "assistant", "parts": [{"type": "image", "filename": '" onload=hit', "text": HOSTILE}]},
            {"parts": "none"},
        ],
        "generation": {"stop_reason": "<b>"},
    }  # fmt: skip
    frontend.output(node, document)
    frontend.page.wait_for_timeout(400)
    assert frontend.order(node) == [HOSTILE]
    assert frontend.viewer(node).locator("script, b, a, .duogen-answer img").count() == 0
    assert "no longer on the server" in frontend.viewer(node).inner_text()
    assert frontend.page.evaluate("() => window.hit") is None
    frontend.complaints[:] = [
        line for line in frontend.complaints if "404" not in line
    ]  # the picture that is not there


def test_the_panel_of_parameters_leaves_the_viewer_as_wide_as_its_node(frontend: Frontend, shown: int):
    """It draws the widgets of the selected node too, and writes its own width into them."""
    panel = """(open) => app.extensionManager.setting.set("Comfy.RightSidePanel.IsOpen", open)"""
    before = frontend.viewer(shown).bounding_box()["width"]
    frontend.page.evaluate("(id) => app.canvas.selectItems([app.graph.getNodeById(id)])", shown)
    frontend.page.evaluate(panel, True)
    frontend.page.get_by_text("Parameters", exact=True).first.click()
    frontend.page.wait_for_timeout(500)
    frontend.look_at(shown)  # draws the canvas anew
    assert frontend.viewer(shown).bounding_box()["width"] > 0.95 * before
    frontend.page.evaluate(panel, False)
    # The panel asks for the node's help in this language first, docs/DuoGenPreview/en.md, then for the one without.
    frontend.complaints[:] = [line for line in frontend.complaints if "404" not in line]


def test_pictures_keep_their_sizes(frontend: Frontend, shown: int):
    assert frontend.order(shown) == [FIRST, "[picture]", NEXT, "[picture]", "Done."]
    small, wide = [
        image.evaluate("(image) => [image.clientWidth, image.clientHeight]")
        for image in frontend.viewer(shown).locator(".duogen-answer img").all()
    ]
    assert small == [96, 64]
    room = frontend.viewer(shown).locator(".duogen-answer").evaluate("(box) => box.clientWidth")
    room -= 26  # where the numbers of the parts stand
    assert wide[0] == room and abs(wide[1] - room / 4) <= 1, "shrunk to the node, in proportion"
    box = frontend.viewer(shown).bounding_box()
    assert box["height"] >= 300, "the viewer fills the node"
    facts = frontend.viewer(shown).locator("figcaption").all_text_contents()
    assert facts == ["Image 1 · 96 × 64 · seed 7", "Image 2 · 1200 × 300"]
    assert frontend.viewer(shown).get_by_role("status").inner_text() == "Stopped at the limit of images."


def test_copy_text(frontend: Frontend, shown: int):
    frontend.viewer(shown).get_by_role("button", name="Copy text").click()
    frontend.viewer(shown).get_by_role("button", name="Copied").wait_for()
    assert frontend.page.evaluate("() => navigator.clipboard.readText()") == f"{FIRST}\n\n{NEXT}\n\nDone."


def test_open_a_picture(frontend: Frontend, shown: int):
    """By mouse and by keyboard; the dialog names the picture, leads to the next, and gives the focus back."""
    page = frontend.page
    opener = frontend.viewer(shown).get_by_role("button", name=f"Image 1: {FIRST}")
    opener.click()
    dialog = page.locator("dialog.duogen-dialog")
    assert dialog.locator("img").get_attribute("alt") == f"Image 1: {FIRST}"
    page.keyboard.press("ArrowRight")
    assert dialog.locator("img").get_attribute("alt") == f"Image 2: {NEXT}"
    assert re.search(r"/view\?filename=wide\.png", dialog.get_by_role("link", name="Open in").get_attribute("href"))
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    assert opener.evaluate("(button) => button === document.activeElement")
    page.keyboard.press("Enter")
    dialog.wait_for()
    dialog.get_by_role("button", name="Close").click()
    dialog.wait_for(state="detached")
    assert page.evaluate("(id) => !!app.graph.getNodeById(id)", shown), "no key reached the graph"


def test_follows_what_is_upstream(frontend: Frontend):
    """Messages of the nodes before it, also of those an expanding node made; not of others."""
    source = frontend.add("DuoGenInterleave", (100, 100))
    other = frontend.add("DuoGenInterleave", (100, 600))
    foreign = frontend.add("PrimitiveInt", (100, 900))
    frontend.connect(foreign, "INT", source, "seed")
    node = frontend.add("DuoGenPreview", (600, 100))
    frontend.connect(source, "context", node, "context")
    frontend.look_at(node)
    work = frontend.viewer(node).locator(".duogen-work")
    status = frontend.viewer(node).get_by_role("status")
    progress(frontend, other, text="not for you")
    frontend.send("progress_text", {"nodeId": str(source), "text": "as data, too"})
    assert work.is_hidden()
    for words in ("Ima", "Image", "Image of a wall."):
        progress(frontend, source, text=words)
    assert status.inner_text() == "Running …"
    numbers = {"phase": "drawing", "image": 1, "of": 2, "step": 1, "steps": 4, "seconds": 40}
    progress(frontend, source, text="Image of a wall.", **numbers)
    assert status.inner_text() == "Image 1 of at most 2, step 1 of 4, about 40 s left"
    progress(frontend, source, text=HOSTILE, phase="reviewed", image=1, **{"try": 1, "tries": 3})
    assert status.inner_text() == "Image 1, try 1 of at most 3"
    assert work.locator("p").all_text_contents() == ["Image of a wall.", HOSTILE], "what is finished stays"
    frontend.send("execution_error", {"prompt_id": "p", "node_id": str(source), "node_type": "", "executed": []})
    assert work.locator("p").all_text_contents() == ["Image of a wall.", HOSTILE]
    assert frontend.viewer(node).get_by_role("status").inner_text() == "The run failed; what was finished stays here."
    progress(frontend, source, text=NEXT)
    assert work.locator("p").all_text_contents() == [NEXT], "another run"
    frontend.send("progress_text", {"nodeId": str(foreign), "text": "Of another pack"})
    assert work.locator("p").all_text_contents() == [NEXT, "Of another pack"]
    frontend.send(
        "executed", {"node": "9.1", "display_node": str(source), "output": {"duogen_document": [answer(text(FIRST))]}}
    )
    assert frontend.order(node) == [FIRST]
    assert work.is_hidden() and frontend.viewer(node).get_by_role("status").inner_text() == "Running …"
    frontend.send("execution_interrupted", {"prompt_id": "p", "node_id": str(source), "node_type": "", "executed": []})
    assert frontend.viewer(node).get_by_role("status").inner_text() == "Cancelled; what was finished stays here."
    assert frontend.order(node) == [FIRST]
    assert frontend.page.evaluate("() => window.hit") is None


def test_comes_back_with_its_tab(frontend: Frontend, shown: int):
    """Another workflow in front, and back again."""
    order = frontend.order(shown)
    frontend.load(EMPTY)
    frontend.page.locator(".workflow-tab").nth(-2).click()
    frontend.page.wait_for_function("() => document.querySelectorAll('.duogen-answer img').length === 2")
    frontend.page.wait_for_timeout(300)
    assert frontend.order(shown) == order


def test_other_nodes_are_left_alone(frontend: Frontend):
    for index, type_ in enumerate(("PreviewAny", "KSampler", "DuoGenPrompt")):
        frontend.add(type_, (100, 100 + 300 * index))
    frontend.page.wait_for_timeout(200)
    assert frontend.page.locator(".duogen-viewer").count() == 0
    shared = frontend.page.evaluate(
        "() => Object.keys(Object.getPrototypeOf(LiteGraph.createNode('PreviewAny'))).concat("
        "LiteGraph.createNode('PreviewAny').onExecuted.toString()).filter((name) => /duogen/i.test(name))"
    )
    assert shared == []


def test_viewer_is_not_saved_with_the_workflow(frontend: Frontend, shown: int):
    saved = frontend.page.evaluate("(id) => app.graph.getNodeById(id).serialize()", shown)
    assert saved["widgets_values"] in (["answer"], {"part": "answer"})
    queued = frontend.page.evaluate("async () => (await app.graphToPrompt()).output")
    assert set(queued[str(shown)]["inputs"]) == {"part"}


def test_tries_of_an_image_are_shown_as_text(frontend: Frontend):
    """A count that opens: small images of what was refused, with the critic's words, which are hostile here."""
    node = frontend.add("DuoGenPreview", (100, 100))
    refused = picture(frontend, "refused.png", (64, 64))
    tried = [
        {**refused, "seed": 1, "score": 0.25, "shows": False, "same_cast": True, "wrong": HOSTILE},
        {"seed": 2, "score": 0.9, "shows": True, "same_cast": True, "wrong": "", "kept": True},
        None,
    ]
    one = {**picture(frontend, "kept.png", (96, 96)), "tries": tried}
    odd = {**picture(frontend, "odd.png", (96, 96)), "tries": {"no": "list"}}
    frontend.look_at(node)
    frontend.output(node, answer(text(FIRST), one, text(NEXT), odd))
    shown = frontend.page.locator(".duogen-tries")
    shown.wait_for()
    assert shown.count() == 1 and shown.locator("summary").inner_text() == "2 tries"
    shown.locator("summary").dispatch_event("click")
    rows = shown.locator("li")
    assert rows.count() == 2
    assert rows.nth(0).locator("span").text_content() == "Refused · 0.25 · seed 1"
    assert rows.nth(0).locator("p").text_content() == HOSTILE.strip()[:200]
    assert rows.nth(1).text_content() == "Kept · 0.90 · seed 2"
    assert "refused.png" in rows.nth(0).locator("img").get_attribute("src") and rows.nth(1).locator("img").count() == 0
    assert frontend.page.evaluate("() => window.hit") is None
