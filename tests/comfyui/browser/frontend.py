"""The front end in a browser tab, driven by its own interfaces: `window.app`, and the mouse and keyboard.

In: a Playwright page and the running server. Out: `Frontend`, with what the tests do again and again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from server import LINK, Server

READY = "() => !!(window.app?.extensionManager && window.LiteGraph?.registered_node_types.DuoGenPreview)"
SECONDS = 120
EMPTY = {"nodes": [], "links": [], "groups": [], "version": 0.4, "last_node_id": 0, "last_link_id": 0}


class Frontend:
    def __init__(self, page: Any, server: Server, folder: Path) -> None:
        self.page, self.server, self.folder = page, server, folder
        self.complaints: list[str] = []
        page.set_default_timeout(SECONDS * 1000)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda message: self._console(message))

    def _console(self, message: Any) -> None:
        """What the page says about us; the rest is the front end's own."""
        ours = LINK in message.text or "DuoGen" in message.text or "duogen" in (message.location or {}).get("url", "")
        if message.type in ("error", "warning") and ours:
            self.complaints.append(message.text)

    def open(self) -> Frontend:
        self.page.goto(f"http://127.0.0.1:{self.server.port}")
        self.page.wait_for_function(READY)
        self.page.wait_for_selector("#graph-canvas")
        return self

    def clear(self) -> None:
        self.complaints.clear()
        self.page.evaluate("() => app.extensionManager.setting.set('Comfy.RightSidePanel.IsOpen', false)")
        self.load(EMPTY)

    def load(self, workflow: dict[str, Any]) -> None:
        self.page.evaluate("workflow => window.app.loadGraphData(workflow)", workflow)
        count = len(workflow["nodes"])
        self.page.wait_for_function("count => window.app.graph._nodes.length === count", arg=count)

    def add(self, type_: str, position: tuple[int, int], **values: Any) -> int:
        """A new node with these widget values; returns its id."""
        return self.page.evaluate(
            """([type, position, values]) => {
                const node = LiteGraph.createNode(type);
                node.pos = position;
                app.graph.add(node);
                for (const [name, value] of Object.entries(values))
                    node.widgets.find((widget) => widget.name === name).value = value;
                return node.id;
            }""",
            [type_, list(position), values],
        )

    def set(self, node: int, **values: Any) -> None:
        self.page.evaluate(
            """([id, values]) => {
                const node = app.graph.getNodeById(id);
                for (const [name, value] of Object.entries(values))
                    node.widgets.find((widget) => widget.name === name).value = value;
            }""",
            [node, values],
        )

    def connect(self, source: int, output: str, target: int, entry: str) -> None:
        self.page.evaluate(
            """([source, output, target, entry]) => {
                const [from, to] = [source, target].map((id) => app.graph.getNodeById(id));
                from.connect(from.findOutputSlot(output), to, to.findInputSlot(entry));
            }""",
            [source, output, target, entry],
        )

    def look_at(self, node: int) -> None:
        self.page.evaluate(
            """(id) => {
                const node = app.graph.getNodeById(id);
                app.canvas.ds.scale = 1;
                app.canvas.centerOnNode(node);
                app.canvas.setDirty(true, true);
            }""",
            node,
        )
        self.page.wait_for_timeout(200)

    def output(self, node: int, document: dict[str, Any]) -> None:
        """As if the server had sent this node's output."""
        self.send("executed", {"node": str(node), "display_node": str(node), "output": {"duogen_document": [document]}})

    def send(self, kind: str, detail: dict[str, Any]) -> None:
        """A message as if the server had sent it."""
        self.page.evaluate("([kind, detail]) => app.api.dispatchEvent(new CustomEvent(kind, {detail}))", [kind, detail])

    def hold(self, text: str) -> None:
        """The run waits where it says this on its node, until this is called again or the run is cancelled."""
        self.server.post("/duogen_test/hold", {"text": text})

    def run(self, start: Callable[[], None] | None = None) -> dict[str, Any]:
        """Queue the workflow, or do what queues it, and wait until the page knows of its end; returns the job as the
        server keeps it."""
        before = set(self.server.get("/history"))
        self.page.evaluate(
            """() => {
                window.ended = [];
                for (const kind of ["execution_success", "execution_error", "execution_interrupted"])
                    app.api.addEventListener(kind, ({detail}) => ended.push(detail.prompt_id));
            }"""
        )
        if start is None:
            self.page.evaluate("() => void app.queuePrompt(0, 1)")
        else:
            start()
        for _ in range(SECONDS * 5):
            # By what the page was told: a run that an earlier test cancelled may come into the history only now.
            ended = [key for key in self.page.evaluate("() => window.ended") if key not in before]
            history = self.server.get("/history") if ended else {}
            if done := [key for key in ended if key in history]:
                return history[done[0]]
            self.page.wait_for_timeout(200)
        raise AssertionError(f"The page saw no end of the workflow in {SECONDS} s:\n{self.server.log[-3000:]}")

    def viewer(self, node: int) -> Any:
        """The viewer of this node, wherever the renderer has put it."""
        self.page.evaluate(
            """(id) => {
                const node = (app.canvas.graph ?? app.graph).getNodeById(id); // of the subgraph that is open
                const widget = node.widgets.find((widget) => widget.name === "answer");
                widget.element.dataset.testNode = id;
            }""",
            node,
        )
        return self.page.locator(f'[data-test-node="{node}"]')

    def order(self, node: int) -> list[str]:
        """What the viewer shows, in order: texts, and "[picture]" for each picture that has loaded."""
        self.page.wait_for_function(
            "() => [...document.querySelectorAll('.duogen-answer img')].every((image) => image.complete)"
        )
        return self.viewer(node).evaluate(
            """(viewer) => [...viewer.querySelectorAll(".duogen-answer .duogen-text, .duogen-answer img")].map(
                (part) => part.tagName === "IMG" ? (part.complete && part.naturalWidth ? "[picture]" : "[broken]")
                                                 : part.textContent)"""
        )


def workflow_file(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))
