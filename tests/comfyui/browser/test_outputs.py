"""What a node puts out besides its viewer: files to download, and images that the front end must not draw twice."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from .frontend import Frontend
from .test_reload import build

pytestmark = pytest.mark.slow


def native_images(frontend: Frontend) -> list[str]:
    """Nodes below whose widgets the front end itself draws images, on either renderer."""
    frontend.page.evaluate("() => app.canvas.setDirty(true, true)")
    frontend.page.wait_for_timeout(600)
    return frontend.page.evaluate(
        """() => app.graph._nodes.filter((node) => {
            const image = `[data-node-id="${node.id}"] img[src*="/view"]:not(.duogen-viewer img)`;
            const native = node.widgets?.some((widget) => widget.name.startsWith("$$canvas-image"));
            return native || document.querySelector(image);
        }).map((node) => node.type)"""
    )


def test_files_are_downloaded_and_images_drawn_once(frontend: Frontend, random_model: Path, renderer: str):
    """From the viewer of what is not saved, and from the node that saves, whether it has a viewer or not."""
    seed = {"canvas": 60, "nodes2": 61}[renderer]
    saver, shower = build(frontend, random_model.name, seed, preview=True, steps=2)
    frontend.set(saver, pdf=True, zip=True)
    other = frontend.add("PreviewImage", (1300, 50))
    split = frontend.add("DuoGenFormat", (1300, 400))
    frontend.connect(shower, "context", split, "context")
    frontend.connect(split, "images", other, "images")
    frontend.look_at(shower)
    job = frontend.run()
    assert job["status"]["status_str"] == "success"
    frontend.page.wait_for_function("() => document.querySelectorAll('.duogen-answer img').length === 2")
    frontend.look_at(other)
    assert native_images(frontend) == ["PreviewImage"], "other nodes draw theirs"
    frontend.look_at(shower)
    assert native_images(frontend) == ["PreviewImage"]
    assert download(frontend, frontend.viewer(shower), "HTML").read_bytes().lower().startswith(b"<!doctype html>")
    assert download(frontend, frontend.viewer(shower), "PDF").read_bytes().startswith(b"%PDF")
    with zipfile.ZipFile(download(frontend, frontend.viewer(shower), "zip")) as archive:
        assert {"document.json", "images/000.png", "images/001.png"} <= set(archive.namelist())
    frontend.look_at(saver)
    row = frontend.page.locator(".duogen-files")
    assert row.locator("button").all_text_contents() == ["HTML", "PDF", "Markdown", "zip"]
    assert download(frontend, row, "Markdown").name == "document.md"
    assert download(frontend, row, "PDF").read_bytes().startswith(b"%PDF")


def download(frontend: Frontend, row, name: str) -> Path:
    with frontend.page.expect_download() as waited:
        row.get_by_role("button", name=f"Download as {name}").click()
    file = frontend.folder / waited.value.suggested_filename
    waited.value.save_as(file)
    return file
