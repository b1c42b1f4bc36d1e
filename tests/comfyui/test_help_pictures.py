"""The images in the help pages: each is there and shown, in every language of the page, and all of them are small."""

from __future__ import annotations

import re

import pytest
from PIL import Image
from server import PACK

DOCS = PACK / "web" / "docs"
PICTURE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")
# Where people would rather look than read.
SHOWN = {
    *("DuoGenInterleave", "DuoGenPreview", "DuoGenPrompt", "DuoGenLoadDocument", "DuoGenSaveDocument"),
    *("DuoGenFormat", "DuoGenEditPlan", "DuoGenReviewImage", "DuoGenLoopOpen", "DuoGenLoopClose"),
}


@pytest.mark.parametrize("node", sorted(SHOWN))
def test_the_page_shows_its_image_in_every_language(node: str):
    """The front end reads relative addresses from the folder docs, for pages in folders of their own, too."""
    pages = [DOCS / f"{node}.md", *(DOCS / node).glob("*.md")]
    for page in pages:
        ((alt, place),) = PICTURE.findall(page.read_text("utf-8"))
        assert place.startswith("images/") and (DOCS / place).is_file(), f"{page}: {place}"
        assert alt.strip(), f"{page}: what the image shows, for those who do not see it"
    assert len({PICTURE.search(page.read_text("utf-8"))[2] for page in pages}) == 1


def test_no_page_shows_what_is_not_there_and_no_image_is_left_over():
    named = {place for page in DOCS.rglob("*.md") for _, place in PICTURE.findall(page.read_text("utf-8"))}
    assert named == {f"images/{file.name}" for file in (DOCS / "images").iterdir()}


def test_images_are_small():
    files = list((DOCS / "images").iterdir())
    assert sum(file.stat().st_size for file in files) < 2 * 2**20
    for file in files:
        with Image.open(file) as image:
            assert image.format == "JPEG" and image.width <= 900, file
            image.load()
