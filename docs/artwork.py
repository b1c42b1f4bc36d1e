"""Draws the pack's icon (400 x 400) and banner (21:9) from an answer of the bundled model.

    python -m duogen_core generate "How do I draw a house with a red roof?" --seed 7 --out answer/
    python docs/artwork.py answer/ docs/

In: a document folder. Out: icon.png and banner.png, which pyproject.toml names for the ComfyUI Registry.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

PAPER, CARD, INK, FAINT, ACCENT = (250, 247, 240), (255, 255, 255), (40, 40, 40), (214, 207, 193), (220, 50, 47)
ICON, BANNER = 400, (1680, 720)
SHARP = 4  # everything is drawn so much larger, then made smaller: smooth edges


def rounded(image: Image.Image, radius: int) -> Image.Image:
    mask = Image.new("L", image.size, 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, image.width - 1, image.height - 1), radius, fill=255)
    image = image.convert("RGBA")
    image.putalpha(mask)
    return image


def icon(picture: Image.Image) -> Image.Image:
    """A page: two lines of text, an image, a line of text, and the next one being written."""
    side = ICON * SHARP
    page = Image.new("RGB", (side, side), PAPER)
    draw = ImageDraw.Draw(page)
    margin, height = side // 8, side // 22

    def line(top: float, length: float, colour: tuple[int, int, int]) -> None:
        box = (margin, top * side, margin + length * (side - 2 * margin), top * side + height)
        draw.rounded_rectangle(box, height // 2, fill=colour)

    line(0.10, 1.0, INK)
    line(0.185, 0.62, INK)
    shown = rounded(picture.resize((side * 9 // 20,) * 2, Image.Resampling.LANCZOS), side // 30)
    page.paste(shown, ((side - shown.width) // 2, int(0.285 * side)), shown)
    line(0.785, 0.85, INK)
    line(0.87, 0.3, ACCENT)
    return rounded(page, side // 8).resize((ICON, ICON), Image.Resampling.LANCZOS)


def banner(pictures: list[Image.Image]) -> Image.Image:
    """The name, what it does, and the images of the answer, each on a card with its number."""
    width, height = BANNER
    page = Image.new("RGB", (width * 2, height * 2), PAPER)
    draw = ImageDraw.Draw(page)
    left = 140
    draw.text((left, 130), "DuoGen", INK, ImageFont.load_default(210))
    draw.text((left + 10, 400), "text and images in turn, for ComfyUI", (110, 104, 94), ImageFont.load_default(92))
    gap, count = 60, len(pictures)
    side = (2 * width - 2 * left - (count - 1) * gap) // count
    for index, picture in enumerate(pictures):
        x, y = left + index * (side + gap), 2 * height - side - 150
        draw.rounded_rectangle((x - 14, y - 14, x + side + 14, y + side + 14), 40, fill=CARD, outline=FAINT, width=4)
        shown = rounded(picture.resize((side, side), Image.Resampling.LANCZOS), 30)
        page.paste(shown, (x, y), shown)
        draw.text((x + 40, y + 24), str(index + 1), (110, 104, 94), ImageFont.load_default(72))
    return page.resize(BANNER, Image.Resampling.LANCZOS)


def main(answer: str, out: str) -> None:
    pictures = [Image.open(file).convert("RGB") for file in sorted((Path(answer) / "images").glob("*.png"))]
    icon(pictures[-1]).save(Path(out) / "icon.png", optimize=True)
    banner(pictures).quantize(128).save(Path(out) / "banner.png", optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
