"""Sketchbook's guides as web pages with their pictures beside them, clean or dirtied on purpose.

    planted = write_site(folder, count, seed, Dirt())    guide_cases(count, seed) are their documents

A page has the request as its title, and in order a paragraph for each sentence and an <img> for each picture, twice as
large as it was; some pictures have an alt text or a caption, as on real pages. Dirt moves pictures to any place between
the paragraphs, plants copies of them, pictures of other kinds, and text that is of the site and not of the guide. A
picture's file name says what it is: step-2.png, copy-2.jpg, icon-0.png.
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, ImageDraw

from duogen_core.document import Picture
from duogen_core.sketchbook.scene import PALETTE_RGB
from duogen_core.sketchbook.tasks import guides
from duogen_core.sketchbook.tasks.common import Case
from duogen_core.sketchbook.things import thing_named

SCALE = 2  # of the pictures on the pages
ALT, CAPTION = 0.6, 0.2  # shares of the pictures that have an alt text, or else a caption
NOISE = ("icon", "banner", "blank", "code", "related")
NAV = "<nav><a href='/'>Home</a> <a href='/guides'>All guides</a> <a href='/about'>About</a></nav>"
FOOTER = "<footer>All rights reserved. <a href='/terms'>Terms</a></footer>"
BOXES = (  # that say of themselves what they are
    "<div class='newsletter'>Sign up for our newsletter and get a new drawing every week.</div>",
    "<div class='cookie-banner'>This site uses cookies. <button>OK</button></div>",
    "<aside>Did you like this? Leave a comment below.</aside>",
)
LINES = (  # that do not
    "Posted by Anna in May.",
    "Scroll down for more.",
    "Thank you for your visit!",
    "Tell your friends about this page.",
)


@dataclass(frozen=True)
class Dirt:
    shuffled: float = 0.7  # share of the pages whose pictures stand anywhere
    copies: float = 0.3  # share of the pictures that have a copy, half of these next to them, half anywhere
    noise: int = 3  # pictures of other kinds on a page, at most
    boxes: float = 0.7  # share of the pages with navigation, a footer and a box
    lines: float = 0.5  # and with a line of the site in their text


def guide_cases(count: int, seed: int) -> list[Case]:
    return [guides.sample_guide(Random(f"pages-{seed}-{number}")) for number in range(count)]


def write_site(folder: Path, cases: list[Case], seed: int, dirt: Dirt) -> Counter[str]:
    """A folder a page: <folder>/00012/index.html and its pictures. Returns what was written, by its kind."""
    planted: Counter[str] = Counter()
    for number, case in enumerate(cases):
        here = folder / f"{number:05d}"
        here.mkdir(parents=True)
        page = _Page(here, Random(f"dirt-{seed}-{number}"), cases)
        (here / "index.html").write_text(page.html(case, dirt), "utf-8")
        planted.update(pages=1, **page.planted)
    return planted


class _Page:
    def __init__(self, folder: Path, rng: Random, cases: list[Case]) -> None:
        self.folder, self.rng, self.cases = folder, rng, cases
        self.planted: Counter[str] = Counter()

    def html(self, case: Case, dirt: Dirt) -> str:
        rng = self.rng
        body = list(self.body(case, dirt))
        for number in range(rng.randint(0, dirt.noise)):
            body.insert(rng.randint(0, len(body)), self.noise(rng.choice(NOISE), number))
        if rng.random() < dirt.lines:
            body.insert(rng.randint(0, len(body)), f"<p>{rng.choice(LINES)}</p>")
            self.planted["line"] += 1
        if rng.random() < dirt.boxes:
            body = [NAV, *body, rng.choice(BOXES), FOOTER]
            self.planted["boxes"] += 1
        title = html.escape(case.prompt.text.strip())
        head = f"<head><meta charset=utf-8><title>{title}</title></head>"
        return f"<!doctype html>\n<html lang=en>{head}<body>\n" + "\n".join(body) + "\n</body></html>\n"

    def body(self, case: Case, dirt: Dirt) -> Iterator[str]:
        """Paragraphs and pictures in order, the pictures moved and copied."""
        rng, texts, pictures = self.rng, [], []
        for part in case.document.last_turn.parts:
            if isinstance(part, Picture):
                pictures.append((len(texts), len(pictures) + 1, part.pixels))
            else:
                texts += part.text.split("\n\n")
        shuffled = rng.random() < dirt.shuffled
        self.planted["shuffled"] += shuffled
        placed: list[tuple[int, str]] = []
        for place, step, pixels in pictures:
            place = rng.randint(0, len(texts)) if shuffled else place
            words = step_words(case, step)
            placed.append((place, self.image(f"step-{step}.png", large(pixels), words)))
            self.planted["step"] += 1
            if rng.random() < dirt.copies:
                beside = rng.random() < 0.5
                size = rng.choice((180, 220, 320))
                copy = Image.fromarray(pixels).resize((size, size), Image.Resampling.LANCZOS)
                tag = self.image(f"copy-{step}.jpg", np.asarray(copy), words)
                placed.append((place if beside else rng.randint(0, len(texts)), tag))
                self.planted["copy beside" if beside else "copy elsewhere"] += 1
        for number in range(len(texts) + 1):
            if number:
                yield f"<p>{html.escape(texts[number - 1])}</p>"
            yield from (tag for place, tag in placed if place == number)

    def image(self, name: str, pixels: np.ndarray, words: str = "") -> str:
        image = Image.fromarray(pixels)
        image.save(self.folder / name, **({"quality": self.rng.choice((60, 75, 85))} if name.endswith("jpg") else {}))
        drawn = self.rng.random()
        alt = html.escape(words) if drawn < ALT else ""
        tag = f"<img src='{name}' alt='{alt}'>"
        if words and ALT <= drawn < ALT + CAPTION:
            return f"<figure>{tag}<figcaption>{html.escape(words)}</figcaption></figure>"
        return tag

    def noise(self, kind: str, number: int) -> str:
        self.planted[kind] += 1
        name = f"{kind}-{number}.png"
        if kind == "icon":
            return self.image(name, self.shape(48, 48))
        if kind == "blank":
            colour = np.array([self.rng.randrange(256) for _ in range(3)], np.uint8)
            return self.image(name, np.broadcast_to(colour, (200, 300, 3)))
        if kind == "code":
            return self.image(name, qr_code(f"https://example.org/{self.folder.name}/{number}"))
        if kind == "banner":
            tag = f"<a href='https://shop.example.com/'>{self.image(name, self.shape(728, 90))}</a>"
            return f"<div class='ad-slot'>{tag}</div>" if self.rng.random() < 0.5 else tag
        other = self.rng.choice(self.cases).document
        tag = self.image(name, large(other.pictures[-1].pixels))
        title = html.escape(other.turns[0].text.strip())
        return f"<div class='related-posts'><a href='/other'>{tag}{title}</a></div>"

    def shape(self, width: int, height: int) -> np.ndarray:
        """A ground and some marks of the palette."""
        colours = [tuple(int(value) for value in self.rng.choice(PALETTE_RGB.tolist())) for _ in range(4)]
        image = Image.new("RGB", (width, height), colours[0])
        draw = ImageDraw.Draw(image)
        for colour in colours[1:]:
            x, y = self.rng.randrange(width), self.rng.randrange(height)
            draw.ellipse((x - height // 3, y - height // 3, x + height // 3, y + height // 3), fill=colour)
        return np.asarray(image)


def step_words(case: Case, step: int) -> str:
    """What a page says of a step's picture: "Drawing a house: red roof"."""
    thing, name = thing_named(case.truth["thing"]), case.truth["parts"][step - 1]
    return f"Drawing {thing.phrase}: {case.truth['colours'][name]} {name}"


def large(pixels: np.ndarray) -> np.ndarray:
    size = (pixels.shape[1] * SCALE, pixels.shape[0] * SCALE)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def qr_code(text: str) -> np.ndarray:
    import zxingcpp

    code = zxingcpp.create_barcode(text, zxingcpp.BarcodeFormat.QRCode)
    return np.asarray(Image.fromarray(np.array(code.to_image(scale=8))).convert("RGB"))
