"""What one does in the viewer, in the real front end: reroll, keep, use as reference, edit and go on, plan, open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from server import LINK, PACK

from duogen_core.document import Document
from duogen_core.document.reading import load_document

from .frontend import EMPTY, Frontend, workflow_file

HOSTILE = '<img src=x onerror="window.hit = 1"><script>window.hit = 2</script>'
MINE = f"A wall of my own. {HOSTILE}"
SEED = {"canvas": 4100, "nodes2": 4200}
FIELD = "(id, name) => app.graph.getNodeById(id)?.widgets.find((widget) => widget.name === name)"
pytestmark = pytest.mark.slow


def build(frontend: Frontend, checkpoint: str, request: str, **values: Any) -> dict[str, int]:
    """The shortest graph that answers, shows and saves; its seed changes with every run, as it does by default."""
    ids = {
        "load": frontend.add("DuoGenLoadCheckpoint", (50, 50), checkpoint=checkpoint),
        "prompt": frontend.add("DuoGenPrompt", (50, 300), text=request),
        "draw": frontend.add("DuoGenInterleave", (450, 50), **{"steps": 2, "max_images": 3, **values}),
        "show": frontend.add("DuoGenPreview", (900, 50)),
        "save": frontend.add("DuoGenSaveDocument", (900, 700)),
    }
    for output in ("mllm", "connector", "model", "vae"):
        frontend.connect(ids["load"], output, ids["draw"], output)
    for source, target in (("prompt", "draw"), ("draw", "show"), ("draw", "save")):
        frontend.connect(ids[source], "context", ids[target], "context")
    return ids


def saved(frontend: Frontend, job: dict[str, Any], node: int | str) -> Document:
    assert job["status"]["status_str"] == "success", job["status"]["messages"][-1][1].get("exception_message")
    return load_document(frontend.server.base / "output" / job["outputs"][str(node)]["document"][0]["folder"])


def tool(frontend: Frontend, node: int, part: int, action: str) -> Any:
    return frontend.viewer(node).locator(f'[data-part="{part}"] [data-action="{action}"]')


def value(frontend: Frontend, node: int, name: str) -> Any:
    return frontend.page.evaluate(
        "([id, name]) => app.graph.getNodeById(id).widgets.find((widget) => widget.name === name).value", [node, name]
    )


def listen(frontend: Frontend) -> None:
    """Every message of the server as it comes, with the ids of nodes that others put in."""
    frontend.page.evaluate(
        """() => {
            if (!window.heard) app.api.socket.addEventListener("message", ({data}) =>
                typeof data === "string" && heard.push(JSON.parse(data)));
            window.heard = []; }"""
    )


def ran(frontend: Frontend, stage: str) -> int:
    heard = frontend.page.evaluate("() => heard.filter(({type}) => type === 'executing').map(({data}) => data.node)")
    return sum(str(node).endswith(f".{stage}") for node in heard)


def shown_images(frontend: Frontend, node: int, count: int) -> None:
    frontend.page.wait_for_function(
        """([id, count]) => {
            const viewer = document.querySelector(`[data-test-node="${id}"]`);
            return viewer && viewer.querySelectorAll(".duogen-answer img").length === count
                && !viewer.querySelector(".duogen-work:not([hidden])"); }""",
        arg=[str(node), count],
    )


def press(frontend: Frontend, node: int, part: int, action: str) -> dict[str, Any]:
    """Reroll, or whatever else runs the workflow with one click; returns the job."""
    return frontend.run(lambda: tool(frontend, node, part, action).click())


def test_a_reroll_by_one_click_draws_from_there_only(frontend: Frontend, random_model: Path, renderer: str):
    """The base seed has changed by itself after the run; the answer's own is put back, so image 1 stays."""
    ids = build(frontend, random_model.name, "Reroll me.", seed=SEED[renderer])
    frontend.look_at(ids["show"])
    frontend.viewer(ids["show"])
    old = saved(frontend, frontend.run(), ids["save"])
    shown_images(frontend, ids["show"], 3)
    assert value(frontend, ids["draw"], "seed") != SEED[renderer], "the control left the seed alone"
    frontend.set(ids["draw"], seeds="3: 77")
    listen(frontend)
    frontend.viewer(ids["show"]).hover()
    job = press(frontend, ids["show"], 4, "reroll")
    inputs = job["prompt"][2][str(ids["draw"])]["inputs"]
    assert inputs["seed"] == SEED[renderer]
    first, second = inputs["seeds"].split(", ")
    assert first.startswith("2: ") and second == "3: 77", "what was written stays"
    new = saved(frontend, job, ids["save"])
    assert new.pictures[0] == old.pictures[0] and new.pictures[1].meta["seed"] == int(first[3:])
    assert all(new.pictures[k].digest != old.pictures[k].digest for k in (1, 2))
    assert ran(frontend, "sample") == 2, "image 1 was drawn again"
    cached = frontend.page.evaluate("() => heard.find(({type}) => type === 'execution_cached').data.nodes")
    assert {str(ids["load"]), str(ids["prompt"])} <= set(cached)
    shown_images(frontend, ids["show"], 3)
    assert "seed " + first[3:] in frontend.viewer(ids["show"]).locator("figcaption").nth(1).inner_text()


def test_kept_images_stay(frontend: Frontend, random_model: Path, renderer: str):
    """Under another seed and with words chosen by chance; a second click lets them go."""
    ids = build(frontend, random_model.name, "Keep me.", seed=SEED[renderer], temperature=1.0)
    frontend.look_at(ids["show"])
    frontend.viewer(ids["show"])
    old = saved(frontend, frontend.run(), ids["save"])
    shown_images(frontend, ids["show"], 3)
    keep = tool(frontend, ids["show"], 4, "keep")
    keep.click()
    frontend.page.wait_for_function(
        "(id) => document.querySelectorAll(`[data-test-node='${id}'] [aria-pressed=true]`).length === 2",
        arg=ids["show"],
    )
    assert keep.inner_text() == "Kept"
    assert frontend.viewer(ids["show"]).get_by_role("status").inner_text() == "Images 1 to 2 are kept."
    given = json.loads(value(frontend, ids["draw"], "given"))
    assert {key: entry["seed"] for key, entry in given.items()} == {
        "1": SEED[renderer],
        "2": old.pictures[1].meta["seed"],
    }
    listen(frontend)
    new = saved(frontend, frontend.run(), ids["save"])
    assert new.generation["seed"] != SEED[renderer] and ran(frontend, "sample") == 1
    assert new.last_turn.parts[:4] == old.last_turn.parts[:4] and new.pictures[2] != old.pictures[2]
    shown_images(frontend, ids["show"], 3)
    status = frontend.viewer(ids["show"]).get_by_role("status")
    assert status.get_attribute("title") == status.text_content(), "the tooltip tells of the action before"
    tool(frontend, ids["show"], 4, "keep").click()
    frontend.page.wait_for_function(
        "(id) => document.querySelectorAll(`[data-test-node='${id}'] [aria-pressed=true]`).length === 1",
        arg=ids["show"],
    )
    assert set(json.loads(value(frontend, ids["draw"], "given"))) == {"1"}
    frontend.page.evaluate("async () => app.extensionManager.workflow.activeWorkflow.changeTracker.undo()")
    frontend.page.wait_for_function(
        """(id) => app.graph.getNodeById(id)?.widgets.find(({name}) => name === "given").value.includes('"2"')""",
        arg=ids["draw"],
    )
    frontend.viewer(ids["show"])
    shown_images(frontend, ids["show"], 3)


def test_a_text_is_edited_and_the_answer_goes_on(frontend: Frontend, random_model: Path, renderer: str):
    """By the keyboard alone. Escape leaves everything as it was."""
    ids = build(frontend, random_model.name, "Edit me.", seed=SEED[renderer])
    frontend.look_at(ids["show"])
    viewer = frontend.viewer(ids["show"])
    old = saved(frontend, frontend.run(), ids["save"])
    shown_images(frontend, ids["show"], 3)
    page = frontend.page
    tool(frontend, ids["show"], 4, "keep").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("() => document.activeElement.dataset.action") == "edit"
    page.keyboard.press("Enter")
    field = viewer.get_by_role("textbox", name="Text of part 3")
    field.wait_for()
    assert field.input_value() == old.last_turn.parts[2].text.strip()
    page.keyboard.type("Nothing ")
    page.keyboard.press("Escape")
    field.wait_for(state="detached")
    assert page.evaluate("() => document.activeElement.dataset.action") == "edit", "the focus is lost"
    assert page.evaluate("(id) => !!app.graph.getNodeById(id)", ids["show"]), "a key reached the graph"
    page.keyboard.press("Enter")
    field.wait_for()
    field.fill(MINE)
    listen(frontend)
    job = frontend.run(lambda: page.keyboard.press("Control+Enter"))
    new = saved(frontend, job, ids["save"])
    assert new.pictures[0] == old.pictures[0] and new.pictures[1].digest != old.pictures[1].digest
    assert new.last_turn.parts[2].text.strip() == MINE and new.generation["seed"] == SEED[renderer]
    assert ran(frontend, "sample") == len(new.pictures) - 1
    assert frontend.order(ids["show"])[2] == MINE and page.evaluate("() => window.hit") is None
    assert len(frontend.server.get("/history")[job["prompt"][1]]["outputs"]) > 0


def test_an_image_becomes_a_reference(frontend: Frontend, random_model: Path, renderer: str):
    ids = build(frontend, random_model.name, "Refer to me.", seed=SEED[renderer], max_images=1)
    frontend.look_at(ids["show"])
    viewer = frontend.viewer(ids["show"])
    old = saved(frontend, frontend.run(), ids["save"])
    shown_images(frontend, ids["show"], 1)
    tool(frontend, ids["show"], 2, "reference").click()
    loaders = "() => app.graph._nodes.filter((node) => node.type === 'LoadImage')"
    frontend.page.wait_for_function(f"() => ({loaders})().length === 1")
    viewer.get_by_text("is now an input of DuoGen Prompt").wait_for()
    graph = frontend.page.evaluate("async () => (await app.graphToPrompt()).output")
    (loader,) = [key for key, node in graph.items() if node["class_type"] == "LoadImage"]
    given = graph[str(ids["prompt"])]["inputs"]
    assert [loader, 0] in given.values() and graph[loader]["inputs"]["image"].startswith("duogen/image_1")
    frontend.set(ids["save"], filename_prefix="duogen/referred")
    new = saved(frontend, frontend.run(), ids["save"])
    assert new.turns[0].pictures[0].digest == old.pictures[0].digest, "other pixels"
    shown_images(frontend, ids["show"], 1)
    tool(frontend, ids["show"], 2, "reference").click()
    frontend.page.wait_for_function(f"() => ({loaders})().length === 2")
    viewer.get_by_text("ready to be connected").wait_for()
    selected = frontend.page.evaluate("() => Object.values(app.canvas.selected_nodes).map((node) => node.type)")
    assert selected == ["LoadImage"]
    frontend.page.evaluate("async () => app.extensionManager.workflow.activeWorkflow.changeTracker.undo()")
    frontend.page.wait_for_function(f"() => ({loaders})().length === 1")


def into_subgraph(frontend: Frontend, nodes: list[int]) -> int:
    """The front end's own command; returns the id of the node that stands for them."""
    return frontend.page.evaluate(
        """async (ids) => {
            app.canvas.deselectAll();
            app.canvas.selectItems(ids.map((id) => app.graph.getNodeById(id)));
            await app.extensionManager.command.execute("Comfy.Graph.ConvertToSubgraph");
            return app.graph._nodes.find((node) => node.isSubgraphNode?.() && !ids.includes(node.id)).id;
        }""",
        nodes,
    )


INNER = """(outer) => {
    const middle = app.rootGraph.getNodeById(outer).subgraph;
    const inner = middle._nodes.find((node) => node.isSubgraphNode?.());
    return inner.subgraph._nodes; }"""


def test_in_subgraphs_nested_twice(frontend: Frontend, random_model: Path, renderer: str):
    """The viewer outside: the seed is written inside, then where a person has promoted it to."""
    page = frontend.page
    ids = build(frontend, random_model.name, "Nest me.", seed=SEED[renderer], max_images=2)
    inner = into_subgraph(frontend, [ids["load"], ids["prompt"], ids["draw"]])
    outer = into_subgraph(frontend, [inner])
    frontend.look_at(ids["show"])
    frontend.viewer(ids["show"])
    old = saved(frontend, frontend.run(), ids["save"])
    shown_images(frontend, ids["show"], 2)
    listen(frontend)
    job = press(frontend, ids["show"], 4, "reroll")
    new = saved(frontend, job, ids["save"])
    made = next(node for node in job["prompt"][2].values() if node["class_type"] == "DuoGenInterleave")
    assert made["inputs"]["seed"] == SEED[renderer] and made["inputs"]["seeds"].startswith("2: ")
    assert new.pictures[0] == old.pictures[0] and new.pictures[1].digest != old.pictures[1].digest
    assert ran(frontend, "sample") == 1
    shown_images(frontend, ids["show"], 2)

    page.evaluate(
        """(id) => {
            const promoted = (node) => {
                const [inner] = node.subgraph._nodes.filter((each) =>
                    each.isSubgraphNode?.() || each.type === "DuoGenInterleave");
                if (inner.isSubgraphNode?.()) promoted(inner);
                const slot = inner.inputs.find((input) => input.name === "seeds");
                node.subgraph.addInput("seeds", slot.type).connect(slot, inner);
            };
            promoted(app.graph.getNodeById(id)); }""",
        outer,
    )
    frontend.set(outer, seeds="1: 5")
    job = press(frontend, ids["show"], 2, "reroll")
    new = saved(frontend, job, ids["save"])
    assert value(frontend, outer, "seeds") == f"1: {new.pictures[0].meta['seed']}", "not where it was promoted to"
    assert new.pictures[0].meta["seed"] not in (5, SEED[renderer])
    shown_images(frontend, ids["show"], 2)


def test_the_viewer_inside_subgraphs(frontend: Frontend, random_model: Path, renderer: str):
    page = frontend.page
    ids = build(frontend, random_model.name, "Nest us all.", seed=SEED[renderer], max_images=2)
    inner = into_subgraph(frontend, [ids[name] for name in ("load", "prompt", "draw", "show", "save")])
    outer = into_subgraph(frontend, [inner])
    page.evaluate(
        """async (outer) => {
            const first = app.rootGraph.getNodeById(outer);
            app.canvas.openSubgraph(first.subgraph, first);
            const second = first.subgraph._nodes.find((node) => node.isSubgraphNode?.());
            app.canvas.openSubgraph(second.subgraph, second);
            app.canvas.ds.scale = 1;
            app.canvas.centerOnNode(second.subgraph._nodes.find((node) => node.type === "DuoGenPreview"));
            app.canvas.setDirty(true, true); }""",
        outer,
    )
    show = page.evaluate(f"(outer) => ({INNER})(outer).find((node) => node.type === 'DuoGenPreview').id", outer)
    frontend.viewer(show)
    first = frontend.run()
    (save,) = [key for key, node in first["prompt"][2].items() if node["class_type"] == "DuoGenSaveDocument"]
    assert save.count(":") == 2
    old = saved(frontend, first, save)
    shown_images(frontend, show, 2)
    new = saved(frontend, press(frontend, show, 4, "reroll"), save)
    assert new.pictures[0] == old.pictures[0] and new.pictures[1].digest != old.pictures[1].digest
    page.evaluate("() => app.canvas.setGraph(app.rootGraph)")


def reads_as_queued(frontend: Frontend) -> None:
    """What the buttons read of the graph is what ComfyUI would queue."""
    mine, queued = frontend.page.evaluate(
        """async (module) => {
            const { promptOf } = await import(module);
            const { output } = await app.graphToPrompt();
            for (const node of Object.values(output)) delete node._meta;
            return [promptOf(app.rootGraph), output]; }""",
        f"/extensions/{LINK}/duogen/graph.js",
    )
    assert mine == queued


def test_the_graph_is_read_as_it_is_queued(frontend: Frontend, random_model: Path):
    """Every template; and reroutes, primitives, muted and bypassed nodes, also inside subgraphs and as one."""
    page = frontend.page
    for file in sorted((PACK / "workflows").glob("*.json")):
        frontend.load(workflow_file(file))
        reads_as_queued(frontend)
    frontend.clear()
    ids = build(frontend, random_model.name, "Read me.", seed=1)
    number, reroute, edit = (
        frontend.add(kind, (50, 600)) for kind in ("PrimitiveNode", "Reroute", "DuoGenEditContext")
    )
    page.evaluate(
        """([number, reroute, edit, { prompt, draw, show, save, load }]) => {
            const node = (id) => app.graph.getNodeById(id);
            const to = (id, name) => node(id).inputs.findIndex((input) => input.name === name);
            node(number).connect(0, node(draw), to(draw, "seed"));
            node(prompt).connect(0, node(reroute), 0);
            node(reroute).connect(0, node(edit), to(edit, "context"));
            node(edit).connect(0, node(draw), to(draw, "context"));
            node(edit).mode = 4;
            node(number).widgets[0].value = 77; }""",
        [number, reroute, edit, ids],
    )
    reads_as_queued(frontend)
    graph = page.evaluate("async () => (await app.graphToPrompt()).output")
    inputs = graph[str(ids["draw"])]["inputs"]
    assert inputs["context"] == [str(ids["prompt"]), 0] and inputs["seed"] == 77 and str(edit) not in graph
    inner = into_subgraph(frontend, [reroute, edit, ids["draw"]])
    reads_as_queued(frontend)
    outer = into_subgraph(frontend, [inner, ids["prompt"]])
    reads_as_queued(frontend)
    for mode in (2, 4):
        page.evaluate("([id, mode]) => { app.graph.getNodeById(id).mode = mode; }", [outer, mode])
        reads_as_queued(frontend)


def test_looking_asks_no_widget_of_others(frontend: Frontend, random_model: Path, renderer: str):
    """A webcam takes its picture, and a recording ends, when its widget is asked for the value to queue."""
    ids = build(frontend, random_model.name, "Look at me.", seed=SEED[renderer], max_images=1)
    frontend.look_at(ids["show"])
    viewer = frontend.viewer(ids["show"])
    frontend.run()
    shown_images(frontend, ids["show"], 1)
    frontend.page.evaluate(
        """(id) => {
            const widget = app.graph.getNodeById(id).widgets.find(({ name }) => name === "text");
            window.asked = 0;
            widget.serializeValue = () => (asked++, widget.value); }""",
        ids["prompt"],
    )
    frontend.page.mouse.move(5, 5)
    viewer.hover()
    keep = tool(frontend, ids["show"], 2, "keep")
    keep.focus()
    keep.click()
    frontend.page.wait_for_function(f"(id) => ({FIELD})(id, 'given').value.includes('seed')", arg=ids["draw"])
    tool(frontend, ids["show"], 1, "edit").click()
    viewer.get_by_role("textbox", name="Text of part 1").press("Escape")
    assert frontend.page.evaluate("() => asked") == 0
    press(frontend, ids["show"], 2, "reroll")
    assert frontend.page.evaluate("() => asked") >= 1, "it is not asked when the workflow runs"
    shown_images(frontend, ids["show"], 1)


def test_an_action_ends_with_its_workflow(frontend: Frontend, random_model: Path, renderer: str):
    """While a reroll waits for the server, another workflow comes to the front: that one is neither changed nor run."""
    ids = build(frontend, random_model.name, "Leave me.", seed=SEED[renderer], max_images=1)
    frontend.look_at(ids["show"])
    frontend.viewer(ids["show"])
    frontend.run()
    shown_images(frontend, ids["show"], 1)
    frontend.page.evaluate(
        """() => {
            const fetchApi = app.api.fetchApi.bind(app.api);
            window.held = new Promise((go) => (window.letGo = go));
            app.api.fetchApi = async (route, ...rest) => {
                if (route.startsWith("/history/")) await held;
                return fetchApi(route, ...rest); };
            const queuePrompt = app.queuePrompt.bind(app);
            window.queued = 0;
            app.queuePrompt = (...rest) => (queued++, queuePrompt(...rest));
            window.unpatch = () => { delete app.api.fetchApi; delete app.queuePrompt; }; }"""
    )
    try:
        tool(frontend, ids["show"], 2, "reroll").click()
        frontend.load(EMPTY)
        frontend.page.evaluate("() => letGo()")
        frontend.page.wait_for_timeout(1000)
        assert frontend.page.evaluate("() => queued") == 0
        frontend.page.locator(".workflow-tab").nth(-2).click()
        frontend.page.wait_for_function(f"(id) => ({FIELD})(id, 'seeds')?.value === ''", arg=ids["draw"])
    finally:
        frontend.page.evaluate("() => unpatch()")


def test_after_another_tab(frontend: Frontend, random_model: Path, renderer: str):
    """Another workflow in front, and back again: the buttons still reach this graph."""
    ids = build(frontend, random_model.name, "Tab me.", seed=SEED[renderer], max_images=2)
    frontend.look_at(ids["show"])
    frontend.viewer(ids["show"])
    old = saved(frontend, frontend.run(), ids["save"])
    shown_images(frontend, ids["show"], 2)
    frontend.load(EMPTY)
    frontend.page.locator(".workflow-tab").nth(-2).click()
    frontend.page.wait_for_function("() => document.querySelectorAll('.duogen-answer img').length === 2")
    frontend.viewer(ids["show"])
    new = saved(frontend, press(frontend, ids["show"], 4, "reroll"), ids["save"])
    assert new.pictures[0] == old.pictures[0] and new.pictures[1].digest != old.pictures[1].digest


def stages(frontend: Frontend, checkpoint: str, request: str, seeds: list[int]) -> dict[str, Any]:
    """Two images, every stage a node of its own; the seed of each stands in its own sampler."""
    ids: dict[str, Any] = {
        "load": frontend.add("DuoGenLoadCheckpoint", (50, 50), checkpoint=checkpoint),
        "prompt": frontend.add("DuoGenPrompt", (50, 300), text=request),
        "show": frontend.add("DuoGenPreview", (1700, 50)),
        "save": frontend.add("DuoGenSaveDocument", (1700, 700)),
    }
    last = ids["prompt"]
    for k, seed in enumerate(seeds):
        row = {
            "write": frontend.add("DuoGenWrite", (450, 50 + 500 * k)),
            "condition": frontend.add("DuoGenConditionNextImage", (800, 50 + 500 * k)),
            "size": frontend.add("DuoGenPictureSize", (800, 300 + 500 * k)),
            "sample": frontend.add("KSampler", (1100, 50 + 500 * k), seed=seed, steps=2, cfg=2),
            "decode": frontend.add("VAEDecode", (1400, 50 + 500 * k)),
            "append": frontend.add("DuoGenAppendImage", (1400, 200 + 500 * k)),
        }
        links = [
            (ids["load"], "mllm", "write", "mllm"), (last, "context", "write", "context"),
            (ids["load"], "mllm", "condition", "mllm"), (ids["load"], "connector", "condition", "connector"),
            (ids["load"], "vae", "condition", "vae"), (row["write"], "context", "condition", "context"),
            (row["write"], "context", "size", "context"), (ids["load"], "mllm", "size", "mllm"),
            (ids["load"], "model", "sample", "model"), (row["condition"], "positive", "sample", "positive"),
            (row["condition"], "negative", "sample", "negative"), (row["size"], "latent", "sample", "latent_image"),
            (row["sample"], "LATENT", "decode", "samples"), (ids["load"], "vae", "decode", "vae"),
            (row["write"], "context", "append", "context"), (row["decode"], "IMAGE", "append", "image"),
        ]  # fmt: skip
        for source, output, target, entry in links:
            frontend.connect(source, output, row[target], entry)
        last = row["append"]
        ids |= {f"{name}{k}": node for name, node in row.items()}
    frontend.connect(last, "context", ids["show"], "context")
    frontend.connect(last, "context", ids["save"], "context")
    return ids


def test_a_graph_of_single_stages(frontend: Frontend, random_model: Path, renderer: str):
    """The sampler that drew the image gets the seed, Write Text the words; what cannot be done says why."""
    seed = SEED[renderer]
    ids = stages(frontend, random_model.name, "Stage me.", [seed, seed + 1])
    frontend.look_at(ids["show"])
    viewer = frontend.viewer(ids["show"])
    old = saved(frontend, frontend.run(), ids["save"])
    shown_images(frontend, ids["show"], 2)
    keep = tool(frontend, ids["show"], 2, "keep")
    viewer.hover()
    frontend.page.wait_for_function("(button) => button.ariaDisabled === 'true'", arg=keep.element_handle())
    assert "set the seed of its sampler to fixed" in keep.get_attribute("title")
    job = press(frontend, ids["show"], 4, "reroll")
    inputs = {key: node["inputs"] for key, node in job["prompt"][2].items()}
    assert inputs[str(ids["sample0"])]["seed"] == seed and inputs[str(ids["sample1"])]["seed"] != seed + 1
    new = saved(frontend, job, ids["save"])
    assert new.pictures[0].digest == old.pictures[0].digest and new.pictures[1].digest != old.pictures[1].digest
    shown_images(frontend, ids["show"], 2)
    tool(frontend, ids["show"], 3, "edit").click()
    viewer.get_by_role("textbox", name="Text of part 3").fill(MINE)
    edited = saved(frontend, frontend.run(lambda: frontend.page.keyboard.press("Control+Enter")), ids["save"])
    assert edited.last_turn.parts[2].text.strip() == MINE and edited.pictures[0].digest == old.pictures[0].digest


def test_a_loaded_or_hostile_answer_changes_no_node(frontend: Frontend, random_model: Path, renderer: str):
    """Nothing makes it here, so its buttons say so; foreign values in it reach no field."""
    ids = build(frontend, random_model.name, "Not mine.", seed=1)
    alone = frontend.add("DuoGenPreview", (1500, 50))
    frontend.look_at(alone)
    image = {"type": "image", "filename": "none.png", "seed": "1, 2: 3", "caption": ["x"], "text": HOSTILE}
    document = {
        "turns": [{"role": "assistant", "parts": [{"type": "text", "text": HOSTILE}, image]}],
        "generation": {"seed": "<b>", "images_before": {"a": 1}}, "prompt": "../../x", "plan": {"no": "text"},
    }  # fmt: skip
    graph = "async () => JSON.stringify((await app.graphToPrompt()).output)"
    before = frontend.page.evaluate(graph)
    frontend.output(alone, document)
    frontend.viewer(alone).hover()
    edit = tool(frontend, alone, 1, "edit")
    frontend.page.wait_for_function("(button) => button.ariaDisabled === 'true'", arg=edit.element_handle())
    assert "Nothing in this graph makes this answer" in edit.get_attribute("title")
    edit.dispatch_event("click")
    frontend.output(ids["show"], {**document, "prompt": 7})
    frontend.page.wait_for_timeout(500)
    assert frontend.page.evaluate(graph) == before and frontend.page.evaluate("() => window.hit") is None
    frontend.complaints[:] = [line for line in frontend.complaints if "404" not in line]  # the image is not there


def test_in_a_loop(frontend: Frontend, random_model: Path, renderer: str):
    """The first image's seed is given to Loop Open, which keeps its own; those of others stand in Loop Close."""
    workflow = workflow_file(PACK / "workflows" / "08 Own nodes in the loop.json")
    frontend.load(workflow)
    ids = {node["type"]: node["id"] for node in workflow["nodes"]}
    show, save, opened, close = (ids[f"DuoGen{name}"] for name in ("Preview", "SaveDocument", "LoopOpen", "LoopClose"))
    frontend.set(ids["DuoGenLoadCheckpoint"], checkpoint=random_model.name)
    frontend.set(ids["DuoGenSampler"], steps=2)
    frontend.set(close, max_images=2)
    frontend.set(opened, seed=SEED[renderer], control_after_generate="randomize")
    frontend.look_at(show)
    frontend.viewer(show)
    old = saved(frontend, frontend.run(), save)
    shown_images(frontend, show, 2)
    new = saved(frontend, press(frontend, show, 4, "reroll"), save)
    assert new.pictures[0] == old.pictures[0] and new.pictures[1].digest != old.pictures[1].digest
    assert value(frontend, close, "seeds") == f"2: {new.pictures[1].meta['seed']}"
    shown_images(frontend, show, 2)
    job = press(frontend, show, 2, "reroll")
    first = saved(frontend, job, save)
    given = json.loads(value(frontend, opened, "given"))
    assert given == {"1": {"seed": first.pictures[0].meta["seed"]}} and value(frontend, close, "given") == ""
    assert first.pictures[0].digest != old.pictures[0].digest and first.generation["seed"] == SEED[renderer]
    assert first.last_turn.parts[0] == old.last_turn.parts[0]
