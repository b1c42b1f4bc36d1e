"""The language of the page follows ComfyUI's setting at once, on both renderers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import running
from server import LINK, PACK

from .frontend import Frontend
from .test_viewer import answer, picture, text

pytestmark = pytest.mark.slow


def words(locale: str) -> dict[str, Any]:
    return json.loads((PACK / "locales" / locale / "main.json").read_text("utf-8"))["duogen"]


@pytest.fixture
def speak(frontend: Frontend):
    """Chooses a language as the settings dialog does; in the end it is English again."""

    def choose(locale: str) -> None:
        frontend.page.evaluate(
            """locale => {
                const { changeTracker } = app.extensionManager.workflow.activeWorkflow;
                changeTracker.captureCanvasState(); // what a test puts in without the mouse is not noticed
                window.before = app.graph._nodes[0];
                return app.extensionManager.setting.set("Comfy.Locale", locale);
            }""",
            locale,
        )
        frontend.page.wait_for_function(  # the front end puts the whole workflow in anew
            "() => !window.before || (app.graph._nodes.length && app.graph._nodes[0] !== window.before)"
        )

    yield choose
    choose("en")


def test_the_viewer_follows_the_setting(frontend: Frontend, speak: Any):
    node = frontend.add("DuoGenPreview", (100, 100))
    frontend.look_at(node)
    frontend.output(
        node,
        answer(
            text("First a wall."), {**picture(frontend, "small.png", (96, 64)), "seed": 7}, stop_reason="max_images"
        ),
    )
    speak("zh")
    chinese = words("zh")
    viewer = frontend.viewer(node)
    viewer.get_by_role("button", name=chinese["copy"]).wait_for()
    assert viewer.get_by_role("status").inner_text() == chinese["stop"]["max_images"]
    viewer.get_by_text(chinese["seed"].replace("{seed}", "7")).wait_for()
    assert "First a wall." in viewer.inner_text(), "what a model wrote stays"
    viewer.locator(".duogen-picture").click()
    dialog = frontend.page.get_by_role("dialog")
    dialog.get_by_role("link", name=chinese["newTab"]).wait_for()
    dialog.get_by_role("button", name=chinese["close"]).click()


def test_language_is_files_alone(chromium: Any, comfyui: Path, random_model: Path, tmp_path: Path):
    """A French of a few words, in a copy of the pack: what it lacks is English."""
    pack = tmp_path / "custom_nodes" / LINK
    for folder in ("nodes", "web", "locales"):
        shutil.copytree(PACK / folder, pack / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("__init__.py", "pyproject.toml", "requirements.txt"):
        shutil.copy(PACK / name, pack)
    for folder in ("duogen_core", "models"):
        (pack / folder).symlink_to(PACK / folder, target_is_directory=True)
    files = {
        "locales/fr/main.json": {"duogen": {"copy": "Copier le texte", "options": {"answer": "la réponse"}}},
        "locales/fr/nodeDefs.json": {"DuoGenPreview": {"display_name": "DuoGen Aperçu"}},
        "locales/fr/messages.json": {
            "The request is empty; write in DuoGen Prompt what the answer should be about.": "La demande est vide."
        },
    }
    for name, words_ in files.items():
        (pack / name).parent.mkdir(exist_ok=True)
        (pack / name).write_text(json.dumps(words_), encoding="utf-8")
    (pack / "web" / "docs" / "DuoGenPreview").mkdir(exist_ok=True)
    (pack / "web" / "docs" / "DuoGenPreview" / "fr.md").write_text("# DuoGen Aperçu\n", encoding="utf-8")
    for server in running(comfyui, random_model, tmp_path):
        server.post("/settings", {"Comfy.TutorialCompleted": True, "Comfy.Locale": "fr"})
        context = chromium.new_context(viewport={"width": 1500, "height": 1000})
        frontend = Frontend(context.new_page(), server, tmp_path).open()
        frontend.clear()
        node = frontend.add("DuoGenPreview", (100, 100))
        viewer = frontend.viewer(node)
        viewer.get_by_role("button", name="Copier le texte").wait_for()
        assert words("en")["empty"] in viewer.inner_text(), "not translated"
        title, shown = frontend.page.evaluate(
            "id => { const node = app.graph.getNodeById(id), part = node.widgets.find(({ name }) => name === 'part');"
            " return [node.title, part.options.getOptionLabel(part.value)]; }",
            node,
        )
        assert (title, shown) == ("DuoGen Aperçu", "la réponse")
        request = frontend.add("DuoGenPrompt", (700, 100), text="")
        frontend.connect(request, "context", node, "context")
        job = frontend.run()
        assert [
            data["exception_message"].strip() for kind, data in job["status"]["messages"] if kind == "execution_error"
        ] == ["La demande est vide."]
        assert server.get_bytes(f"/extensions/{LINK}/docs/DuoGenPreview/fr.md").decode() == "# DuoGen Aperçu\n"
        context.close()
