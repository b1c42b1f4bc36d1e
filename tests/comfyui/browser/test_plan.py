"""A plan is edited in the browser and drawn: a button fills it in, a person types, the next run draws what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from duogen_core.document.reading import load_document

from .frontend import Frontend

HOSTILE = '<img src=x onerror="window.hit = 1"><script>window.hit = 2</script>'
PLAN = {
    "title": "A wall",
    "parts": [
        {"text": f"Lay bricks. {HOSTILE}", "picture": "A wall of red bricks."},
        {"text": "Done.", "picture": None},
    ],
}
pytestmark = pytest.mark.slow


def build(frontend: Frontend, checkpoint: str, seed: int) -> dict[str, int]:
    """A plan that any writer wrote -> Edit Plan -> Interleave -> a preview, and the folder."""
    ids = {
        "load": frontend.add("DuoGenLoadCheckpoint", (50, 50), checkpoint=checkpoint),
        "prompt": frontend.add("DuoGenPrompt", (50, 300), text="How do I build a wall?"),
        "plan": frontend.add("DuoGenPlanFromText", (450, 50), text=json.dumps(PLAN), painter="conversation"),
        "edit": frontend.add("DuoGenEditPlan", (900, 50)),
        "draw": frontend.add("DuoGenInterleave", (1400, 50), seed=seed, steps=1, control_after_generate="fixed"),
        "show": frontend.add("DuoGenPreview", (1800, 50)),
        "save": frontend.add("DuoGenSaveDocument", (1800, 700)),
    }
    for source, target in (("prompt", "plan"), ("plan", "edit"), ("edit", "draw"), ("draw", "show"), ("draw", "save")):
        frontend.connect(ids[source], "context", ids[target], "context")
    for output in ("mllm", "connector", "model", "vae"):
        frontend.connect(ids["load"], output, ids["draw"], output)
    return ids


def fill_in(frontend: Frontend, node: int, renderer: str) -> None:
    """Press the node's button. The canvas renderer draws it on the canvas; there it is pressed by its own callback."""
    if renderer == "nodes2":
        shown = frontend.page.locator(f'[data-node-id="{node}"]')
        shown.get_by_role("button", name="Fill in the plan that ran last").click()
        return
    frontend.page.evaluate(
        "(id) => app.graph.getNodeById(id).widgets.find((widget) => widget.type === 'button').callback()", node
    )


def markdown(frontend: Frontend, node: int) -> str:
    return frontend.page.evaluate(
        "(id) => app.graph.getNodeById(id).widgets.find((widget) => widget.name === 'markdown').value", node
    )


def saved(frontend: Frontend, job: dict[str, Any], node: int) -> Any:
    assert job["status"]["status_str"] == "success", job["status"]["messages"][-1][1].get("exception_message")
    return load_document(frontend.server.base / "output" / job["outputs"][str(node)]["document"][0]["folder"])


def test_a_plan_is_edited_in_the_browser_and_drawn(frontend: Frontend, random_model: Path, renderer: str):
    ids = build(frontend, random_model.name, {"canvas": 71, "nodes2": 72}[renderer])
    frontend.look_at(ids["edit"])
    fill_in(frontend, ids["edit"], renderer)
    assert markdown(frontend, ids["edit"]) == "", "nothing ran yet, and nothing is made up"
    first = saved(frontend, frontend.run(), ids["save"])
    assert len(first.pictures) == 1 and first.turns[-1].text == f"Lay bricks. {HOSTILE}Done."

    fill_in(frontend, ids["edit"], renderer)
    plan = markdown(frontend, ids["edit"])
    assert plan.startswith("# A wall\n") and HOSTILE in plan and "Image: A wall of red bricks." in plan
    field = frontend.page.locator("textarea").filter(visible=True)
    field = next(each for each in field.all() if each.input_value() == plan)
    field.fill(plan.replace("Done.", "Now the roof.\n\nImage: A roof of brown tiles."))
    field.blur()
    second = saved(frontend, frontend.run(), ids["save"])
    assert second.turns[-1].text == f"Lay bricks. {HOSTILE}Now the roof." and len(second.pictures) == 2
    assert second.pictures[0] == first.pictures[0], "drawn with another look"
    frontend.page.wait_for_function("() => document.querySelectorAll('.duogen-answer img').length === 2")
    assert frontend.order(ids["show"])[1::2] == ["[picture]", "[picture]"]
    assert frontend.page.evaluate("() => window.hit === undefined"), "the plan's text became a part of the page"


def test_what_is_planned_stands_where_its_image_will_be(frontend: Frontend):
    node = frontend.add("DuoGenPreview", (100, 100))
    frontend.look_at(node)
    parts = [{"type": "text", "text": "First."}, {"type": "image", "pending": True, "shows": HOSTILE}]
    frontend.output(node, {"turns": [{"role": "assistant", "parts": parts}], "generation": {}})
    place = frontend.viewer(node).locator(".duogen-pending")
    assert place.inner_text() == f"Image 1, to be drawn: {HOSTILE}"
    assert frontend.page.evaluate("() => window.hit === undefined")


def test_the_button_is_not_saved_with_the_workflow(frontend: Frontend):
    node = frontend.add("DuoGenEditPlan", (100, 100), markdown="---\nA wall.")
    kept = frontend.page.evaluate("(id) => app.graph.getNodeById(id).serialize().widgets_values", node)
    assert kept == ["---\nA wall.", "as planned"]


def test_the_settings_have_a_place_for_keys(frontend: Frontend):
    value = frontend.page.evaluate("() => app.extensionManager.setting.get('DuoGen.Keys')")
    assert value == "", "the setting is not registered"
