"""The templates that open as apps: found in the dialog, filled in, run, and the result seen in App mode."""

from __future__ import annotations

from pathlib import Path

import pytest
from workflow_files import APP, APPS

from .frontend import Frontend

pytestmark = pytest.mark.slow
REQUEST = "What do you draw?"
FEW = {"checkpoint": "random", "steps": 2, "max_images": 2}  # widget -> value, so that a run takes seconds
# Images, and the texts beside them: an answer; the first image and three edits; two frames and their sheet.
SHOWN = {"02 Edit chain": (4, 1), "03 Storyboard": (3, 0)}


def open_template(frontend: Frontend, name: str) -> None:
    """By the dialog, as a user does."""
    frontend.page.evaluate("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    frontend.page.get_by_test_id(f"template-workflow-{name}").click()


@pytest.mark.parametrize("name", APPS)
def test_an_app_runs(frontend: Frontend, random_model: Path, painter: str, name: str, renderer: str):
    open_template(frontend, name + APP)
    entries = frontend.page.get_by_test_id("app-mode-widget-item")
    inputs, _ = APPS[name]
    entries.nth(len(inputs) - 1).wait_for()
    labels = frontend.page.get_by_test_id("builder-widget-label").all_inner_texts()
    assert labels == [label for _, _, label, _ in inputs]

    seed = {"canvas": 31, "nodes2": 32}[renderer]  # not what the other has cached
    small = FEW | {"seed": seed, "ckpt_name": painter, "width": 64, "height": 64}
    frontend.page.evaluate("() => app.refreshComboInNodes()")
    frontend.page.evaluate(
        """(values) => {
            for (const node of app.graph._nodes)
                for (const widget of node.widgets ?? [])
                    if (widget.name in values && !(widget.name === "max_images" && widget.value === 1))
                        widget.value = values[widget.name];
        }""",
        small,
    )
    first = inputs[0][1]
    if first == "text":
        entries.first.get_by_role("textbox").fill(REQUEST)
    frontend.page.get_by_test_id("linear-run-button").get_by_role("button", name="Run", exact=True).click()
    images, texts = SHOWN.get(name, (2, 1))
    items = frontend.page.get_by_test_id("linear-history-item")
    items.nth(images + texts - 1).wait_for()
    assert items.count() == images + texts
    if first == "text":
        asked = frontend.page.evaluate("async () => Object.values((await app.graphToPrompt()).output)")
        assert REQUEST in [node["inputs"].get("text") for node in asked]
    shown = []
    for k in range(images + texts):  # the front end lists them forwards or backwards
        items.nth(k).click()
        shown.append(in_the_middle(frontend))
    assert (shown.count("image"), shown.count("text")) == (images, texts)


def in_the_middle(frontend: Frontend) -> str:
    """What fills the window beside the inputs, once it has loaded: an image, or the text of the answer."""
    frontend.page.wait_for_timeout(300)
    seen = frontend.page.wait_for_function(
        """() => [...document.querySelectorAll("article")].some((text) => text.textContent.includes("First a wall."))
            ? "text"
            : [...document.querySelectorAll("main img, [data-testid=linear-center-panel] img")]
                .some((image) => image.complete && image.naturalWidth && image.width > 200) && "image" """
    )
    return seen.json_value()
