"""The images of the help pages, taken of the real front end (Nodes 2.0) after real runs with the bundled model.

In: `python help_pictures.py [node …]`; a ComfyUI is found as the tests find it (server.py), and Chromium must be there.
Out: web/docs/images/<node>.jpg. Run it again when nodes look different; test_help_pictures.py says which are missing.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from browser import frontend as driver
from browser.frontend import Frontend, workflow_file
from PIL import Image
from playwright.sync_api import sync_playwright
from server import PACK, Server, find_comfyui

IMAGES = PACK / "web" / "docs" / "images"
WIDTH, QUALITY, GAP, EDGE = 860, 84, 50, 16
# Nothing of ComfyUI's own lies over the nodes.
SETTINGS = {
    "Comfy.VueNodes.Enabled": True,
    "Comfy.TutorialCompleted": True,
    "Comfy.Locale": "en",
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Canvas.SelectionToolbox": False,
    "DuoGen.LivePreview": True,
}


def template(frontend: Frontend, name: str) -> None:
    frontend.load(workflow_file(PACK / "workflows" / f"{name}.json"))


def finish(frontend: Frontend) -> dict[str, Any]:
    job = frontend.run()
    if job["status"]["status_str"] != "success":
        raise SystemExit(str(job["status"]["messages"][-1]))
    frontend.page.wait_for_timeout(1500)  # the last images load
    return job


def place(frontend: Frontend, *nodes: int, sizes: dict[int, tuple[int, int]] | None = None) -> None:
    """Lines these nodes up, in sight and at their own size, and takes the groups away."""
    frontend.page.evaluate(
        """([ids, sizes, gap]) => {
            app.graph._groups.length = 0;
            let x = 5000;
            for (const id of ids) {
                const node = app.graph.getNodeById(id);
                if (sizes[id]) node.setSize(sizes[id]);
                node.pos = [x, 5000];
                x += node.size[0] + gap;
            }
            app.canvas.ds.scale = 1;
            app.canvas.ds.offset = [120 - 5000, 160 - 5000];
            app.canvas.deselectAll();
            app.canvas.setDirty(true, true);
        }""",
        [list(nodes), sizes or {}, GAP],
    )
    frontend.page.mouse.move(5, 1100)
    frontend.page.wait_for_timeout(1200)


def shot(frontend: Frontend, *nodes: int) -> bytes:
    """The part of the page that these nodes take."""
    boxes = [frontend.page.locator(f'[data-node-id="{node}"]').first.bounding_box() for node in nodes]
    left, top = (min(box[side] for box in boxes) - EDGE for side in ("x", "y"))
    right = max(box["x"] + box["width"] for box in boxes) + EDGE
    bottom = max(box["y"] + box["height"] for box in boxes) + EDGE
    return frontend.page.screenshot(clip={"x": left, "y": top, "width": right - left, "height": bottom - top})


def guide(frontend: Frontend) -> None:
    """The shortest graph. Its answer is made once: ComfyUI keeps it for the images that follow."""
    template(frontend, "01 Illustrated guide")
    frontend.set(3, seed=3, steps=8, control_after_generate="fixed")


def without(frontend: Frontend, *nodes: int) -> None:
    """These nodes do not run."""
    frontend.page.evaluate("(ids) => ids.forEach((id) => { app.graph.getNodeById(id).mode = 2; })", list(nodes))


def interleave(frontend: Frontend) -> bytes:
    guide(frontend)
    place(frontend, 3, 10, sizes={10: (480, 900)})
    finish(frontend)
    return shot(frontend, 3, 10)


def preview(frontend: Frontend) -> bytes:
    guide(frontend)
    frontend.set(10, part="conversation")
    place(frontend, 10, sizes={10: (520, 940)})
    finish(frontend)
    return shot(frontend, 10)


def prompt(frontend: Frontend) -> bytes:
    source = PACK / "workflows" / "examples" / "shapes" / "images" / "000.png"
    shutil.copy(source, frontend.server.base / "input" / "drawing.png")
    frontend.page.evaluate("() => app.refreshComboInNodes()")
    frontend.clear()
    image = frontend.add("LoadImage", (0, 0), image="drawing.png")
    node = frontend.add("DuoGenPrompt", (400, 0), text="Make the star of <image1> yellow, and keep everything else.")
    frontend.connect(image, "IMAGE", node, "images.image1")
    place(frontend, image, node, sizes={image: (300, 340), node: (400, 260)})
    frontend.page.wait_for_timeout(6000)  # what refreshing says goes away
    return shot(frontend, image, node)


def load_document(frontend: Frontend) -> bytes:
    template(frontend, "06 Continue a document")
    without(frontend, 5, 6, 7)
    place(frontend, 2, 3, sizes={3: (460, 560)})
    finish(frontend)
    return shot(frontend, 2, 3)


def edit_plan(frontend: Frontend) -> bytes:
    template(frontend, "07 Your own plan")
    without(frontend, 4, 5, 6)
    shown = frontend.add("DuoGenPreview", (0, 0))
    frontend.connect(3, "context", shown, "context")
    place(frontend, 3, shown, sizes={3: (440, 700), shown: (420, 700)})
    finish(frontend)
    return shot(frontend, 3, shown)


def with_review(frontend: Frontend) -> int:
    """The loop, with a critic between what draws and Loop Close."""
    template(frontend, "08 Own nodes in the loop")
    node = frontend.add("DuoGenReviewImage", (2030, 900), critic="sketchbook", redraws=2)
    frontend.connect(9, "IMAGE", node, "image")
    frontend.connect(3, "context", node, "context")
    frontend.connect(3, "seed", node, "seed")
    frontend.connect(node, "image", 12, "image")
    frontend.set(12, max_images=1)
    frontend.set(8, steps=1)  # so that the critic has something to refuse
    frontend.set(2, text="Draw a small red star at the top left and a large blue circle in the centre.")
    return node


def review(frontend: Frontend) -> bytes:
    node = with_review(frontend)
    place(frontend, node, 13, sizes={13: (520, 760)})
    finish(frontend)
    tries = frontend.viewer(13).locator("details")
    if tries.count():
        tries.first.evaluate("(details) => { details.open = true; }")
        frontend.page.wait_for_timeout(800)
    return shot(frontend, node, 13)


def loop(frontend: Frontend) -> bytes:
    template(frontend, "08 Own nodes in the loop")
    place(frontend, 3, 8, 10, 12, sizes={3: (280, 240), 8: (280, 260), 10: (320, 120), 12: (280, 160)})
    return shot(frontend, 3, 8, 10, 12)


def split(frontend: Frontend) -> bytes:
    guide(frontend)
    node, shown = frontend.add("DuoGenFormat", (0, 0)), frontend.add("PreviewImage", (0, 0))
    text = frontend.add("PreviewAny", (0, 0))
    frontend.connect(3, "context", node, "context")
    frontend.connect(node, "images", shown, "images")
    frontend.connect(node, "markdown", text, "source")
    place(frontend, node, shown, text, sizes={node: (240, 140), shown: (340, 420), text: (420, 420)})
    finish(frontend)
    return shot(frontend, node, shown, text)


def save(frontend: Frontend) -> bytes:
    """The page that was saved, opened by itself."""
    guide(frontend)
    job = finish(frontend)
    folder = frontend.server.base / "output" / job["outputs"]["5"]["document"][0]["folder"]
    page = frontend.page.context.browser.new_page(viewport={"width": 900, "height": 980})
    page.goto((folder / "document.html").as_uri())
    taken = page.screenshot()
    page.close()
    return taken


PICTURES: dict[str, Callable[[Frontend], bytes]] = {
    "DuoGenInterleave": interleave,
    "DuoGenPreview": preview,
    "DuoGenPrompt": prompt,
    "DuoGenLoadDocument": load_document,
    "DuoGenSaveDocument": save,
    "DuoGenFormat": split,
    "DuoGenEditPlan": edit_plan,
    "DuoGenReviewImage": review,
    "DuoGenLoopOpen": loop,
}


def main(*names: str) -> None:
    comfyui = find_comfyui()
    if comfyui is None:
        raise SystemExit("No ComfyUI here; set COMFYUI_PATH to one.")
    IMAGES.mkdir(exist_ok=True)
    driver.SECONDS = 1800  # a whole answer, on a busy machine too
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        server = Server(comfyui, Path(folder))
        try:
            server.wait().post("/settings", SETTINGS)
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1700, "height": 1200})
            frontend = Frontend(page, server, Path(folder)).open()
            page.evaluate("() => app.extensionManager.command.execute('Workspace.ToggleFocusMode')")
            for name in names or PICTURES:
                image = Image.open(io.BytesIO(PICTURES[name](frontend))).convert("RGB")
                if image.width > WIDTH:
                    height = round(image.height * WIDTH / image.width)
                    image = image.resize((WIDTH, height), Image.Resampling.LANCZOS)
                image.save(IMAGES / f"{name}.jpg", quality=QUALITY, optimize=True)
                print(name, image.size, (IMAGES / f"{name}.jpg").stat().st_size, flush=True)
            browser.close()
        finally:
            server.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
