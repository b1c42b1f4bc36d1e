"""Small pages and pictures of our own for the tests of the web engine."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

WORDS = "Put the flour into the bowl and add the water while you stir, then let it rest for an hour in the warm room. "


def photo(width: int = 320, height: int = 240, seed: int = 0) -> np.ndarray:
    """Soft shapes with noise, as cameras make them."""
    rng = np.random.default_rng(seed)
    small = rng.integers(30, 220, (6, 8, 3), np.uint8)
    soft = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC), np.float32)
    return np.clip(soft + rng.normal(0, 6, soft.shape), 0, 255).astype(np.uint8)


def screenshot(width: int = 480, height: int = 320, dialog: int | None = None, seed: int = 0) -> np.ndarray:
    """A window with a title bar, a list and buttons; `dialog` puts a dialog with that text over it."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (width, height), (236, 236, 236))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, width, 24), fill=(60, 90, 150))
    draw.text((8, 6), f"Window {seed}", fill="white")
    for row in range(40, height - 40, 18):
        draw.rectangle((10, row, width - 10, row + 16), outline=(180, 180, 180), fill="white")
        draw.text((14, row + 2), "".join(rng.choice(list("abcdefghij klm"), 24)), fill=(20, 20, 20))
    for column in (10, 100, 190):
        draw.rectangle((column, height - 30, column + 80, height - 8), outline=(120, 120, 120), fill=(220, 220, 220))
    if dialog is not None:
        draw.rectangle((140, 90, 330, 190), outline=(40, 40, 40), fill=(245, 245, 245))
        draw.rectangle((140, 90, 330, 108), fill=(60, 90, 150))
        question = ("Save the changes?", "Which folder is it in?", "The file is gone.", "Try it again later?")
        draw.text((150, 130), question[dialog % 4], fill="black")
    return np.asarray(image)


def document_page(width: int = 420, height: int = 594, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    for row in range(50, height - 50, 15):
        if rng.random() < 0.9:
            draw.text((45, row), "".join(rng.choice(list("abcdefgh ijkl mnop "), 52)), fill=(10, 10, 10))
    return np.asarray(image)


def file(pixels: np.ndarray, format_: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format_, **options)
    return buffer.getvalue()


def page(body: str, title: str = "How to bake bread", head: str = "") -> str:
    return f"<!doctype html><html lang=en><head><title>{title}</title>{head}</head><body>{body}</body></html>"


def site(folder: Path, pages: dict[str, str], pictures: dict[str, bytes] | None = None) -> Path:
    """A folder of pages with pictures beside them; a.png to d.png are there when none are given."""
    if pictures is None:
        pictures = {"a.png": file(photo(seed=1)), "b.png": file(screenshot(seed=2)), "c.png": file(photo(seed=3))}
    for name, value in {**pages, **pictures}.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(value if isinstance(value, bytes) else value.encode())
    return folder


def recipe(*images: str) -> str:
    """A page that passes every rule, with these pictures between its steps."""
    steps = "".join(f"<p>Step {k}. {WORDS}</p><img src='{image}'>" for k, image in enumerate(images))
    return page(f"<h1>Bread</h1>{steps}<p>{WORDS.replace('flour', 'butter')}</p>")
