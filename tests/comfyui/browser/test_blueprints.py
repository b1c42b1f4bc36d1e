"""The blueprints in subgraphs/: put on the canvas from the node library, run, and the answer seen in a viewer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from workflow_files import BLUEPRINTS

from .frontend import Frontend

pytestmark = pytest.mark.slow
ANSWER, STEP, PLAN, CRITIC = BLUEPRINTS
FIRST, NEXT = "First a wall.", "Now the roof"


def add(frontend: Frontend, name: str, position: tuple[int, int], **values: Any) -> int:
    """The blueprint from the node library, placed by a click; values: of its widgets, or Class__widget inside it."""
    page = frontend.page
    if not page.get_by_placeholder("Search").first.is_visible():
        page.evaluate("() => app.extensionManager.command.execute('Workspace.ToggleSidebarTab.node-library')")
    page.get_by_placeholder("Search").first.fill(name)
    page.get_by_role("treeitem", name=name).first.click()
    page.mouse.move(*position)
    page.wait_for_timeout(100)
    page.mouse.click(*position)
    page.wait_for_function("(title) => app.graph._nodes.some((node) => node.title === title)", arg=name)
    page.evaluate("() => app.extensionManager.command.execute('Workspace.ToggleSidebarTab.node-library')")
    return page.evaluate(
        """([title, values]) => {
            const node = app.graph._nodes.filter((node) => node.title === title).at(-1);
            for (const [field, value] of Object.entries(values)) {
                const [type, name] = field.split("__");
                const owners = name ? node.subgraph._nodes.filter((inner) => inner.type === type) : [node];
                for (const owner of owners)
                    owner.widgets.find((widget) => widget.name === (name ?? field)).value = value;
            }
            return node.id;
        }""",
        [name, values],
    )


def seen(frontend: Frontend, source: int, parts: int) -> list[str]:
    """Runs the workflow with a viewer behind this node, and returns what it shows."""
    viewer = frontend.add("DuoGenPreview", (1100, 100), part="answer")
    frontend.connect(source, "context", viewer, "context")
    job = frontend.run()
    assert job["status"]["status_str"] == "success", job["status"]["messages"][-1]
    frontend.look_at(viewer)
    frontend.page.wait_for_function(
        "(count) => document.querySelectorAll('.duogen-answer img').length >= count", arg=parts
    )
    return frontend.order(viewer)


def promoted(frontend: Frontend, node: int) -> list[str]:
    return frontend.page.evaluate(
        "(id) => app.graph.getNodeById(id).widgets.map((widget) => widget.label ?? widget.name)", node
    )


def test_answer_with_images(frontend: Frontend, random_model: Path, renderer: str):
    seed = {"canvas": 41, "nodes2": 42}[renderer]
    node = add(frontend, ANSWER, (700, 500), checkpoint=random_model.name, max_images=2, seed=seed)
    assert promoted(frontend, node) == ["request", "model", "images at most", "seed"]
    assert seen(frontend, node, 2)[:4] == [FIRST, "[picture]", NEXT, "[picture]"]


def test_one_image_after_the_other(frontend: Frontend, random_model: Path, renderer: str):
    """Two in a row, which share one checkpoint and go on from each other's context."""
    load = frontend.add("DuoGenLoadCheckpoint", (100, 100), checkpoint=random_model.name)
    ask = frontend.add("DuoGenPrompt", (100, 400), text="How do I draw a house?")
    steps = [add(frontend, STEP, (600 + 200 * k, 600), seed=51 + k, steps=2, cfg=2) for k in range(2)]
    if steps[0] == steps[1]:
        steps[0] = frontend.page.evaluate("() => app.graph._nodes.find((node) => node.subgraph).id")
    for source, step in zip((ask, steps[0]), steps, strict=True):
        for socket in ("mllm", "connector", "model", "vae"):
            frontend.connect(load, socket, step, socket)
        frontend.connect(source, "context", step, "context")
    assert promoted(frontend, steps[1]) == ["seed", "steps", "cfg", "looks at"]
    assert seen(frontend, steps[1], 2)[:4] == [FIRST, "[picture]", NEXT, "[picture]"]


def test_plan_and_draw(frontend: Frontend, small_qwen3: str, painter: str, renderer: str):
    """A Qwen3-VL of random weights plans nonsense, but a whole plan; a stand-in for Stable Diffusion draws it."""
    if renderer == "nodes2":
        pytest.skip("The others show that blueprints open and run with Nodes 2.0 as well.")
    frontend.page.evaluate("() => app.refreshComboInNodes()")
    writer = frontend.add("DuoGenLoadMLLM", (100, 100))
    choices = frontend.page.evaluate(
        "(id) => app.graph.getNodeById(id).widgets.find((widget) => widget.name === 'checkpoint').options.values",
        writer,
    )
    frontend.set(writer, checkpoint=next(choice for choice in choices if small_qwen3 in choice))
    draws = frontend.add("CheckpointLoaderSimple", (100, 400), ckpt_name=painter)
    values = {"text": "How do I draw a circle? Show 3 steps.", "painter": "text", "width": 64, "height": 64, "steps": 2}
    inside = {"DuoGenPlanAnswer__temperature": 1.0, "DuoGenPlanAnswer__seed": 2}
    node = add(frontend, PLAN, (700, 300), **values, **inside, max_images=2)
    assert promoted(frontend, node)[:3] == ["request", "style", "painter"]
    frontend.connect(writer, "mllm", node, "mllm")
    for output, entry in (("MODEL", "model"), ("CLIP", "clip"), ("VAE", "vae")):
        frontend.connect(draws, output, node, entry)
    assert "[picture]" in seen(frontend, node, 1)


def test_answer_with_a_critic(frontend: Frontend, renderer: str):
    """As it comes: duogen-tiny answers, and the checker of its world looks at the image."""
    seed = {"canvas": 7, "nodes2": 8}[renderer]
    node = add(frontend, CRITIC, (700, 300), max_images=1, redraws=1, seed=seed)
    assert promoted(frontend, node) == ["request", "model", "critic", "redraws at most", "images at most", "seed"]
    assert "[picture]" in seen(frontend, node, 1)
    reviewed = frontend.page.evaluate(
        """() => Object.values(app.nodeOutputs).flatMap((output) => output.duogen_document ?? [])
            .flatMap((document) => document.turns).flatMap((turn) => turn.parts).some((part) => part.tries)"""
    )
    assert reviewed, "the critic said nothing"
