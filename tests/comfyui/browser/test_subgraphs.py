"""An answer made inside subgraphs, nested twice and more: it runs, previews, shows, and is drawn again from there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .frontend import Frontend
from .test_live_answer import FIRST, NEXT, wait_for_pictures
from .test_reload import build, start, wait_for_job, wait_for_status

pytestmark = pytest.mark.slow


def into_subgraph(frontend: Frontend, nodes: list[int]) -> int:
    """The front end's own command; returns the id of the node that stands for them."""
    return frontend.page.evaluate(
        """async (ids) => {
            app.canvas.deselectAll?.();
            app.canvas.selectItems(ids.map((id) => app.graph.getNodeById(id)));
            await app.extensionManager.command.execute("Comfy.Graph.ConvertToSubgraph");
            return app.graph._nodes.find((node) => node.isSubgraphNode?.()
                && ids.every((id) => !app.graph.getNodeById(id) || node.id !== id)).id;
        }""",
        nodes,
    )


def promote(frontend: Frontend, outer: int, widget: str) -> None:
    """This widget of the Interleave in the innermost subgraph, up to the node of the outermost."""
    frontend.page.evaluate(
        """([id, name]) => {
            const promoted = (node) => {
                const graph = node.subgraph;
                const inner = graph._nodes.find((each) => each.isSubgraphNode?.() || each.type === "DuoGenInterleave");
                if (inner.isSubgraphNode?.()) promoted(inner);
                const slot = inner.inputs.find((input) => input.name === name);
                graph.addInput(name, slot.type).connect(slot, inner);
            };
            promoted(app.graph.getNodeById(id));
        }""",
        [outer, widget],
    )


def enter(frontend: Frontend, node: int) -> None:
    frontend.page.evaluate(
        """(id) => {
            const node = app.graph.getNodeById(id);
            app.canvas.openSubgraph(node.subgraph, node);
            const shower = node.subgraph._nodes.find((each) => each.type === "DuoGenPreview");
            app.canvas.centerOnNode(shower);
        }""",
        node,
    )
    frontend.page.wait_for_timeout(500)


def set_inside(frontend: Frontend, widget: str, value: str) -> None:
    """Of the node, in the subgraph that is open, that stands for another subgraph."""
    frontend.page.evaluate(
        """([name, value]) => {
            const node = app.canvas.graph._nodes.find((each) => each.isSubgraphNode?.());
            node.widgets.find((widget) => widget.name === name).value = value;
        }""",
        [widget, value],
    )


def nodes_of(frontend: Frontend, *types: str) -> list[int]:
    return frontend.page.evaluate(
        "(types) => app.graph._nodes.filter((node) => types.includes(node.type)).map((node) => node.id)", list(types)
    )


def seeds_shown(job: dict[str, Any]) -> list[int]:
    shown = [output["duogen_document"][0] for output in job["outputs"].values() if "files" in output]
    return [part["seed"] for part in shown[-1]["turns"][-1]["parts"] if part["type"] == "image"]


def test_nested_twice(frontend: Frontend, random_model: Path, renderer: str):
    seed = {"canvas": 70, "nodes2": 75}[renderer]
    _, shower = build(frontend, random_model.name, seed, preview=True, steps=2)
    inner = into_subgraph(frontend, nodes_of(frontend, "DuoGenLoadCheckpoint", "DuoGenPrompt", "DuoGenInterleave"))
    outer = into_subgraph(frontend, [inner])
    frontend.look_at(shower)
    frontend.hold("Image 2 of at most 2, step 1 of")
    before = start(frontend)
    assert wait_for_pictures(frontend, 1) == [[96, 64]]
    wait_for_status(frontend, "Image 2 of at most 2, step 1 of")
    frontend.hold("Image 2 of at most 2, step 2 of")
    wait_for_status(frontend, "Image 2 of at most 2, step 2 of")
    frontend.page.locator(".duogen-preview:not([hidden])").wait_for()
    frontend.hold("")
    wait_for_pictures(frontend, 2)
    wait_for_job(frontend, before)
    assert frontend.order(shower)[:4] == [FIRST, "[picture]", NEXT, "[picture]"]
    assert frontend.page.locator(".duogen-viewer").count() == 1, "the answer is shown once"
    promote(frontend, outer, "seeds")
    frontend.set(outer, seeds="2: 4321")
    job = frontend.run()
    assert job["status"]["status_str"] == "success", job["status"]["messages"]
    assert seeds_shown(job)[1] == 4321
    assert frontend.order(shower)[:4] == [FIRST, "[picture]", NEXT, "[picture]"]
    everything = frontend.page.evaluate("() => app.graph._nodes.map((node) => node.id)")
    whole = into_subgraph(frontend, everything)
    enter(frontend, whole)
    set_inside(frontend, "seeds", "2: 4322")
    job = frontend.run()
    assert job["status"]["status_str"] == "success", job["status"]["messages"]
    assert seeds_shown(job)[1] == 4322
    frontend.page.wait_for_function(
        "() => document.querySelector('.duogen-viewer .duogen-answer')?.textContent.includes('seed 4322')"
    )
    assert frontend.page.locator(".duogen-viewer").count() == 1


def test_a_viewer_inside_follows_what_is_outside(frontend: Frontend):
    """And only that: of two answers that go into a subgraph, each viewer in it shows its own."""
    sources = [frontend.add("DuoGenInterleave", (100, 100 + 600 * k)) for k in range(2)]
    showers = [frontend.add("DuoGenPreview", (600, 100 + 600 * k)) for k in range(2)]
    for source, shower in zip(sources, showers, strict=True):
        frontend.connect(source, "context", shower, "context")
    into_subgraph(frontend, [into_subgraph(frontend, showers)])
    event = {"prompt_id": "p", "node": f"{sources[1]}.0.1", "display_node": str(sources[1]), "phase": "writing"}
    frontend.send("duogen_progress", {**event, "text": NEXT})
    shown = frontend.page.evaluate(
        """() => [...app.graph.subgraphs.values()].flatMap((graph) => graph._nodes)
            .filter((node) => node.type === "DuoGenPreview")
            .map((node) => node.widgets.find((widget) => widget.name === "answer").element)
            .map((viewer) => viewer.querySelector(".duogen-work").textContent)"""
    )
    assert shown == ["", NEXT], "in one viewer of the two; Nodes 2.0 has neither in the page yet"
