"""What a new user meets in the browser: the badge, the settings, few widgets, a search that finds, an upload."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server import Server

import duogen_core
from duogen_core.document import Document, Picture, Text
from duogen_core.document.store import save_document

from .frontend import Frontend

pytestmark = pytest.mark.slow


@pytest.fixture
def document(tmp_path: Path, renderer: str) -> Path:
    """A saved folder, with a page and its .zip beside it."""
    pixels = np.random.default_rng().integers(0, 256, (24, 32, 3), dtype=np.uint8)
    answer = Document().begin_turn("user", [Text("Draw.")]).begin_turn("assistant", [Text("So."), Picture(pixels)])
    folder = tmp_path / f"walls {renderer}"
    save_document(answer, folder)
    (folder / "document.html").write_text("<html></html>", "utf-8")
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w") as archive:
        for file in folder.rglob("*"):
            archive.write(file, file.relative_to(tmp_path).as_posix())
    return folder


def value(frontend: Frontend, node: int, widget: str) -> Any:
    return frontend.page.evaluate(
        "([id, name]) => app.graph.getNodeById(id).widgets.find((widget) => widget.name === name).value", [node, widget]
    )


def choose(frontend: Frontend, **settings: Any) -> None:
    frontend.page.evaluate(
        """async (all) => {
            for (const [id, value] of Object.entries(all)) await app.extensionManager.setting.set(id, value);
        }""",
        {f"DuoGen.{name}": each for name, each in settings.items()},
    )


def press(frontend: Frontend, node: int, label: str, renderer: str) -> None:
    """The canvas renderer draws buttons on the canvas; there it is pressed by its own callback."""
    if renderer == "nodes2":
        frontend.page.locator(f'[data-node-id="{node}"]').get_by_role("button", name=label).click()
        return
    frontend.page.evaluate(
        "([id, label]) => app.graph.getNodeById(id).widgets.find(({ name }) => name === label).callback()",
        [node, label],
    )


def test_about_names_the_version_and_leads_to_the_documentation(frontend: Frontend):
    frontend.page.evaluate("() => app.extensionManager.command.execute('Comfy.Help.AboutComfyUI')")
    badge = frontend.page.get_by_role("link").filter(has_text=f"DuoGen v{duogen_core.__version__}")
    badge.wait_for()
    assert badge.get_attribute("href").startswith("https://")
    icon = badge.locator("i").first
    drawn = icon.evaluate("(icon) => getComputedStyle(icon, '::before').content")
    assert drawn not in ("none", "normal", '""'), "the front end has no such icon"
    frontend.page.keyboard.press("Escape")
    badge.wait_for(state="detached")


def test_new_nodes_begin_with_what_the_settings_say_and_saved_ones_do_not(frontend: Frontend):
    before = [frontend.add("DuoGenSaveDocument", (100, 100)), frontend.add("DuoGenPrompt", (100, 400), text="Hello")]
    saved = frontend.page.evaluate("() => app.graph.serialize()")
    assert value(frontend, before[0], "filename_prefix") == "duogen/answer"
    try:
        choose(frontend, Folder="stories/%date:yyyy%/part", Language="German")
        save, prompt = frontend.add("DuoGenSaveDocument", (100, 700)), frontend.add("DuoGenPrompt", (500, 100))
        assert value(frontend, save, "filename_prefix") == "stories/%date:yyyy%/part"
        assert value(frontend, prompt, "system") == "Answer in German."
        frontend.load(saved)
        assert value(frontend, before[0], "filename_prefix") == "duogen/answer"
        assert value(frontend, before[1], "system") == "" and value(frontend, before[1], "text") == "Hello"
    finally:
        choose(frontend, Folder="duogen/answer", Language="")
    kept = json.loads((frontend.server.base / "user" / "default" / "comfy.settings.json").read_text("utf-8"))
    assert kept["DuoGen.Language"] == "", "settings are the server's"


def test_what_needs_no_thought_is_out_of_sight_and_keeps_its_value(frontend: Frontend, renderer: str):
    node = frontend.add("DuoGenInterleave", (100, 100), steps=7, max_images=3)
    frontend.look_at(node)
    kept = frontend.page.evaluate("(id) => app.graph.getNodeById(id).serialize().widgets_values", node)
    assert kept[2] == 7 and kept[6] == 3
    if renderer == "nodes2":  # the canvas renderer shows all, as it does for ComfyUI's own nodes
        frontend.page.evaluate("() => { app.canvas.ds.scale = 0.6; app.canvas.setDirty(true, true); }")
        box = frontend.page.locator(f'[data-node-id="{node}"]')
        box.get_by_text("max_images").wait_for()
        frontend.page.wait_for_timeout(300)
        assert box.get_by_text("steps").count() == 0 and box.get_by_text("scheduler").count() == 0
        closed = box.bounding_box()["height"]
        assert closed < 0.6 * 420, "as high as if all its widgets were in sight"
        box.get_by_text("Show advanced inputs").click()
        box.get_by_text("scheduler").wait_for()
        frontend.page.wait_for_timeout(300)
        assert box.bounding_box()["height"] > closed + 0.6 * 200, "too low for what is shown now"
        box.get_by_text("Hide advanced inputs").click()
    again = frontend.page.evaluate("(id) => app.graph.getNodeById(id).serialize().widgets_values", node)
    assert again == kept


def test_the_search_finds_interleave_first(frontend: Frontend):
    """As the node search orders them. It puts names before what else a node is found by, and of that ComfyUI's own
    nodes, which it knows to be used more often: so "guide" and "story" find some of those first, then Interleave."""
    found = frontend.page.evaluate(
        """(words) => {
            const page = [...document.querySelectorAll("*")].find((element) => element.__vue_app__);
            const nodes = page.__vue_app__.config.globalProperties.$pinia._s.get("nodeDef");
            return Object.fromEntries(words.map(
                (word) => [word, nodes.nodeSearchService.searchNode(word).map((each) => each.display_name)]));
        }""",
        ["illustrated", "illustrated guide", "story", "interleave", "guide"],
    )
    for word in ("illustrated", "illustrated guide", "interleave"):
        assert found[word][0] == "DuoGen Interleave", (word, found[word][:5])
    for word in ("story", "guide"):
        ours = [name for name in found[word] if name.startswith("DuoGen")]
        assert ours[0] == "DuoGen Interleave", (word, ours)


def test_a_zip_and_a_folder_are_uploaded_and_chosen(frontend: Frontend, document: Path, renderer: str):
    node = frontend.add("DuoGenLoadDocument", (300, 200))
    frontend.look_at(node)
    chosen = "(name) => app.graph._nodes[0].widgets.find((widget) => widget.name === 'document').value === name"
    for label, given in (("Upload a .zip", document.with_suffix(".zip")), ("Upload a folder", document)):
        with frontend.page.expect_file_chooser() as chooser:
            press(frontend, node, label, renderer)
        chooser.value.set_files(str(given))
        name = f"{document.name}.zip [input]" if given.suffix else f"{document.name} (1).zip [input]"
        frontend.page.wait_for_function(chosen, arg=name)
        options = frontend.page.evaluate("() => app.graph._nodes[0].widgets[0].options.values")
        assert name in options, "the list was not refreshed"
    kept = frontend.page.evaluate("() => app.graph._nodes[0].serialize().widgets_values")
    assert kept == [name], "the buttons are saved with the workflow"
    assert frontend.page.locator("input.duogen-upload").count() == 0
    queued = frontend.page.evaluate("async () => (await app.graphToPrompt()).output")
    assert queued[str(node)]["inputs"] == {"document": name}


def drop(frontend: Frontend, node: int, name: str, data: bytes) -> None:
    """A file, dropped on the middle of the node."""
    frontend.page.evaluate(
        """([id, name, bytes]) => {
            const node = app.graph.getNodeById(id);
            const [x, y] = app.canvasPosToClientPos([node.pos[0] + node.size[0] / 2, node.pos[1] + 10]);
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([new Uint8Array(bytes)], name));
            const place = { bubbles: true, cancelable: true, composed: true, clientX: x, clientY: y, dataTransfer };
            const target = document.elementFromPoint(x, y);
            target.dispatchEvent(new DragEvent("dragover", place));
            target.dispatchEvent(new DragEvent("drop", place));
        }""",
        [node, name, list(data)],
    )


def test_a_document_dropped_on_the_node_is_uploaded(frontend: Frontend, document: Path):
    node = frontend.add("DuoGenLoadDocument", (300, 200))
    frontend.look_at(node)
    name = f"dropped {document.name}"
    drop(frontend, node, f"{name}.zip", document.with_suffix(".zip").read_bytes())
    chosen = "(name) => app.graph._nodes[0].widgets[0].value === name"
    frontend.page.wait_for_function(chosen, arg=f"{name}.zip [input]")
    drop(frontend, node, "<img src=x onerror=hit>.html", b"<html><script>window.hit = 1</script></html>")
    said = frontend.page.get_by_text("A .html file holds no document, only the workflow that made it").first
    said.wait_for()
    assert value(frontend, node, "document") == f"{name}.zip [input]"
    assert frontend.page.evaluate("() => window.hit === undefined")
    frontend.complaints[:] = [line for line in frontend.complaints if "400" not in line]  # the refusal


def test_the_help_panel_shows_the_images(frontend: Frontend, renderer: str):
    """Addresses in a help page count from the folder docs, whatever the language."""
    node = frontend.add("DuoGenInterleave", (300, 200))
    frontend.look_at(node)
    frontend.page.evaluate("(id) => app.canvas.selectItems([app.graph.getNodeById(id)])", node)
    frontend.page.get_by_test_id("info-button").click()
    image = frontend.page.locator(".node-help-content img").first
    image.wait_for()
    frontend.page.wait_for_function("() => document.querySelector('.node-help-content img').naturalWidth > 0")
    assert image.get_attribute("src").endswith("/docs/images/DuoGenInterleave.jpg") and image.get_attribute("alt")
    # The front end asks for a page of this language first, docs/DuoGenInterleave/en.md, then for the one without.
    frontend.complaints[:] = [line for line in frontend.complaints if "404" not in line]


def test_the_page_says_which_packages_are_missing(chromium: Any, server: Server):
    """As plain text, whatever it holds."""
    said = 'DuoGen needs <img src=x onerror="window.hit = 1"> gguf>=0.17. Install it: "python" -m pip install'
    page = chromium.new_page()
    body = {"version": "1.0.0", "url": "", "missing": said}
    page.route("**/duogen/about*", lambda route: route.fulfill(json=body))
    page.goto(f"http://127.0.0.1:{server.port}")
    page.get_by_text(said).first.wait_for(timeout=60000)
    assert page.get_by_text("DuoGen lacks Python packages").count() >= 1
    assert page.evaluate("() => window.hit === undefined")
    page.close()
