"""Documents as `data web` makes them, small and of our own, for the tests of the dialogue steps."""

from __future__ import annotations

import tarfile
from pathlib import Path

from duogen_core.data.runs.shards import add_document, photos_as_jpeg
from duogen_core.document import (
    Document,
    Part,
    Picture,
    Text,
    Turn,
)
from tests.core.web_pages import screenshot

STEPS = (
    ("Open the valve", "Turn the red valve to the left until water drips from the pipe.", "The red valve of the pipe"),
    ("Drain the tank", "Put a bucket under the tank and wait until it is empty, about 12 minutes.", "A bucket, a tank"),
    ("Change the filter", "Unscrew the filter, rinse the grey housing and put the new cartridge in.", "Filter housing"),
    ("Close the lid", "Press the lid down evenly and fasten both of its clamps by hand.", "The lid with its clamps"),
)


def page(number: int = 0, places: tuple[int, ...] = (1, 2, 3, 4), text: str = "") -> Document:
    """A guide of four steps; places[i]: after how many steps the picture of step i stands."""
    parts: list[Part] = []
    for k in range(len(STEPS) + 1):
        if k:
            heading, body, _ = STEPS[k - 1]
            parts.append(Text(f"## {k}. {heading}\n\n{body}" + (f"\n\n{text}" if k == 2 and text else "")))
        parts += [picture(i, number) for i, place in enumerate(places) if place == k]
    meta = {"source": "web", "url": f"http://example.org/{number}", "page": f"{number}.html", "licence": "CC-BY"}
    title = f"Service the water cleaner {number}"
    return Document((Turn("user", (Text(title),)), Turn("assistant", tuple(parts))), meta=meta)


def picture(step: int, number: int = 0) -> Picture:
    alt = STEPS[step][2]
    meta = {"alt": alt, "caption": f"Figure {step + 1}. {alt}", "class": "screenshot"}
    return Picture(screenshot(160, 120, seed=10 * number + step), meta)


def write_pages(folder: Path, count: int) -> Path:
    """A folder like the --out of `data web`, as far as reading it goes."""
    (folder / "shards").mkdir(parents=True)
    with tarfile.open(folder / "shards" / "00000.tar", "w") as archive:
        for number in range(count):
            add_document(archive, f"{number:08d}", page(number), photos_as_jpeg(92))
    return folder
