"""A plan is edited where it is shown: descriptions and texts, before anything is drawn and after it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from duogen_core.planning.markdown import plan_from_markdown, plan_to_markdown
from duogen_core.planning.plan import Plan

from .frontend import Frontend
from .test_actions import SEED, listen, ran, saved, shown_images, tool, value

HOSTILE = '<img src=x onerror="window.hit = 1"><script>window.hit = 2</script>'
PARTS = [
    {"text": f"Lay bricks. {HOSTILE}", "picture": "A wall of red bricks."},
    {"text": "Image: odd words\n---\nof a text.", "picture": {"shows": "A roof of brown tiles.", "size": [96, 64]}},
    {"text": "", "picture": "A door."},
    {"text": "Done.", "picture": None},
]
CAST = [{"name": "Bricks: red", "looks": "small"}]
PLAN = {"title": "A wall", "style": "flat", "cast": CAST, "parts": PARTS}
pytestmark = pytest.mark.slow

EDIT = """async ([markdown, changes]) => {
    const sheets = [...document.querySelectorAll("link")].map((link) => link.href);
    const ours = sheets.find((href) => href.endsWith("viewer.css"));
    const { planParts, withPlanPart } = await import(ours.replace("viewer.css", "plan.js"));
    for (const [index, change] of changes) markdown = withPlanPart(markdown, index, change);
    return [markdown, planParts(markdown).map(({ text, shows }) => [text, shows])]; }"""


def test_one_part_changes_and_no_other(frontend: Frontend):
    """The page reads and writes Markdown as duogen_core.planning.markdown does."""
    plan = Plan.from_json(PLAN)
    markdown = plan_to_markdown(plan)
    changes = [
        [1, {"text": "Size: none\n# New\n\nwords"}],
        [0, {"shows": "A wall\nof stone."}],
        [2, {"text": "A way in."}],
    ]
    changed, parts = frontend.page.evaluate(EDIT, [markdown, changes])
    wanted = json.loads(json.dumps(PLAN))
    wanted["parts"][1]["text"] = "Size: none\n# New\n\nwords"
    wanted["parts"][0]["picture"], wanted["parts"][2]["text"] = "A wall of stone.", "A way in."
    assert plan_from_markdown(changed) == Plan.from_json(wanted)
    assert parts == [[one.text, one.picture and one.picture.shows] for one in Plan.from_json(wanted).parts]
    bare = "Lay bricks.\n\nImage: A wall\nof bricks.\n\n---\n\nDone."
    changed, parts = frontend.page.evaluate(EDIT, [bare, [[1, {"text": "The end."}]]])
    assert plan_from_markdown(changed).parts[1].text == "The end." and parts[0] == ["Lay bricks.", "A wall of bricks."]


def build(frontend: Frontend, checkpoint: str, seed: int) -> dict[str, int]:
    ids: dict[str, Any] = {
        "load": frontend.add("DuoGenLoadCheckpoint", (50, 50), checkpoint=checkpoint),
        "prompt": frontend.add("DuoGenPrompt", (50, 300), text="How do I build a wall?"),
        "plan": frontend.add("DuoGenPlanFromText", (450, 50), text=json.dumps(PLAN), painter="conversation"),
        "show": frontend.add("DuoGenPreview", (1300, 50)),
    }
    frontend.connect(ids["prompt"], "context", ids["plan"], "context")
    frontend.connect(ids["plan"], "context", ids["show"], "context")
    return ids


def draw(frontend: Frontend, ids: dict[str, int], seed: int) -> None:
    """DuoGen Interleave between the plan, or what holds it now, and the preview."""
    last = frontend.page.evaluate("(id) => app.graph.getNodeById(id).getInputNode(0).id", ids["show"])
    ids["draw"] = frontend.add("DuoGenInterleave", (900, 50), seed=seed, steps=1)
    ids["save"] = frontend.add("DuoGenSaveDocument", (1300, 700))
    for output in ("mllm", "connector", "model", "vae"):
        frontend.connect(ids["load"], output, ids["draw"], output)
    for source, target in ((last, "draw"), (ids["draw"], "show"), (ids["draw"], "save")):
        frontend.connect(source, "context", ids[target], "context")


def test_a_plan_is_edited_in_place(frontend: Frontend, random_model: Path, renderer: str):
    """First without a DuoGen Edit Plan, which is put in; then it holds the changes; then after it was drawn."""
    page, ids = frontend.page, build(frontend, random_model.name, SEED[renderer])
    frontend.look_at(ids["show"])
    viewer = frontend.viewer(ids["show"])
    frontend.run()
    viewer.locator(".duogen-pending").first.wait_for()
    assert viewer.locator(".duogen-pending").count() == 3
    tool(frontend, ids["show"], 2, "edit").click()
    field = viewer.get_by_role("textbox", name="What image 1 shows")
    field.fill("A wall of grey stones.")
    assert "node is put in" in viewer.locator(".duogen-editor").inner_text()
    page.keyboard.press("Control+Enter")
    viewer.get_by_text("to be drawn: A wall of grey stones.").wait_for()
    edits = page.evaluate(
        "() => app.graph._nodes.filter((node) => node.type === 'DuoGenEditPlan').map((node) => node.id)"
    )
    assert len(edits) == 1
    queued = page.evaluate("async () => (await app.graphToPrompt()).output")
    assert queued[str(ids["show"])]["inputs"]["context"] == [str(edits[0]), 0]
    assert queued[str(edits[0])]["inputs"]["context"] == [str(ids["plan"]), 0]

    tool(frontend, ids["show"], 1, "edit").click()
    viewer.get_by_role("textbox", name="Text of part 1").fill(f"Lay stones. {HOSTILE}")
    viewer.get_by_role("button", name="Change the plan").click()
    viewer.get_by_text("Draw draws it.").wait_for()
    plan = plan_from_markdown(value(frontend, edits[0], "markdown"))
    assert plan.parts[0].text == f"Lay stones. {HOSTILE}" and plan.pictures[0].shows == "A wall of grey stones."
    assert plan.parts[1:] == Plan.from_json(PLAN).parts[1:] and plan.cast == Plan.from_json(PLAN).cast

    draw(frontend, ids, SEED[renderer])
    job = frontend.run(lambda: viewer.get_by_role("button", name="Run the workflow").click())
    old = saved(frontend, job, ids["save"])
    assert len(old.pictures) == 3 and old.turns[-1].text.startswith(f"Lay stones. {HOSTILE}")
    shown_images(frontend, ids["show"], 3)
    listen(frontend)
    tool(frontend, ids["show"], 3, "edit").click()
    viewer.get_by_role("textbox", name="Text of part 3").fill("Now the roof.")
    new = saved(frontend, frontend.run(lambda: page.keyboard.press("Control+Enter")), ids["save"])
    assert new.pictures[0].digest == old.pictures[0].digest and ran(frontend, "sample") == 2
    assert new.turns[-1].parts[2].text.strip() == "Now the roof." and new.generation["seed"] == SEED[renderer]
    assert page.evaluate("() => window.hit") is None
