"""What every evaluation reports: means, counts, 95% intervals, the JSON report, a table, and an overview image.

In: the checks and measures of each answer, by name. A check is a number in [0, 1]. A measure (PSNR in dB, seconds) is
any number and is reported apart, under "extra". A gain is the difference of two checks of the same cases, in [-1, 1].
"""

from __future__ import annotations

import io
import json
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duogen_core.errors import DuoGenError

if TYPE_CHECKING:
    from PIL import Image

    from duogen_core.document import Document

FORMAT = "duogen-report"


def interval(mean: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """The 95% interval of a mean of `count` values in [0, 1], after Wilson; a little wide if some lie between."""
    if count == 0:
        return 0.0, 1.0
    # Unlike mean ± 1.96 standard errors, it stays in [0, 1] and does not shrink to nothing when all are right.
    middle = (mean + z * z / (2 * count)) / (1 + z * z / count)
    reach = z / (1 + z * z / count) * math.sqrt(mean * (1 - mean) / count + z * z / (4 * count * count))
    return max(0.0, middle - reach), min(1.0, middle + reach)


def figures(checks: Iterable[Mapping[str, float]], names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Returns {"figures": name -> mean, "counts": name -> n, "intervals": name -> [low, high]}, ordered as `names`."""
    values: dict[str, list[float]] = {name: [] for name in names}
    for one in checks:
        for name, value in one.items():
            if not 0.0 <= value <= 1.0:  # the interval below would be wrong without a word
                raise ValueError(f"The check {name} gave {value}, which is not in [0, 1].")
            values.setdefault(name, []).append(value)
    values = {name: found for name, found in values.items() if found}
    means = {name: sum(found) / len(found) for name, found in values.items()}
    return {
        "figures": {name: round(mean, 4) for name, mean in means.items()},
        "counts": {name: len(found) for name, found in values.items()},
        "intervals": {
            name: [round(end, 4) for end in interval(mean, len(values[name]))] for name, mean in means.items()
        },
    }


def gain(pairs: Sequence[tuple[float, float]], z: float = 1.96) -> tuple[float, list[float]]:
    """Returns the mean of `with - without` over pairs (with, without) of zeros and ones, and its 95% interval.

    After Bonett and Price (2012): a case is added to each way in which a pair can differ, so that few pairs
    give no false certainty.
    """
    n = len(pairs)
    better, worse = (sum(a > b for a, b in pairs) + 1) / (n + 2), (sum(a < b for a, b in pairs) + 1) / (n + 2)
    reach = z * math.sqrt((better + worse - (better - worse) ** 2) / (n + 2))
    ends = [max(-1.0, better - worse - reach), min(1.0, better - worse + reach)]
    return round(sum(a - b for a, b in pairs) / n, 4), [round(end, 4) for end in ends]


def means(measures: Iterable[Mapping[str, float]]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for one in measures:
        for name, value in one.items():
            values.setdefault(name, []).append(value)
    return {name: round(sum(found) / len(found), 3) for name, found in sorted(values.items())}


def table(report: Mapping[str, Any]) -> str:
    """Returns the figures as a text table."""
    width = max(map(len, report["figures"]), default=5)
    lines = [f"{'check':<{width}}  figure     n  95% interval"]
    for name, mean in report["figures"].items():
        low, high = report["intervals"][name]
        less = "  (less is better)" if name in report.get("lower_is_better", ()) else ""
        lines.append(f"{name:<{width}}  {mean:6.3f}  {report['counts'][name]:4d}  {low:.2f} to {high:.2f}{less}")
    lines += [f"{name:<{width}}  {value:6.2f}" for name, value in report["extra"].items()]
    return "\n".join(lines)


def checked_target(name: str) -> Path:
    """Returns where the report goes; checked before the long run begins."""
    target = Path(name)
    if not name.strip() or target.is_dir():
        raise DuoGenError(f"--out {name!r} must be the name of a JSON file, for example report.json.")
    if not target.absolute().parent.is_dir():
        raise DuoGenError(f"--out {name} lies in a folder that does not exist; make it first.")
    return target


def write(report: Mapping[str, Any], target: Path) -> None:
    from duogen_core.files import write_atomically

    write_atomically(target, (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())


# ---------------------------------------------------------------- the overview, as one image

TILE, EDGE, LINE = 128, 4, 12  # pixels: an image's side, the frame around it, a line of text
FRAMES = {"prompt": "#999999", "right": "#2e9e4f", "partly": "#e08a1e", "wrong": "#d23a32"}


def contact_sheet(
    rows: Sequence[tuple[str, Document, int, Mapping[str, float]]], path: Path, columns: int = 7, most: int = 60
) -> None:
    """Writes a PNG with a row for each answer: the request and what the model wrote, above its images.

    rows: (label, answered document, number of turns of its prompt, checks). At most `most` rows. Images of the
    prompt have a grey frame, drawn ones a green (all checks right), orange or red (all wrong) one.
    """
    from PIL import Image

    from duogen_core.files import write_atomically

    strips = [_strip(*row, columns=columns) for row in rows[:most]]
    if not strips:
        return
    sheet = Image.new("RGB", (strips[0].width, sum(one.height for one in strips)), "white")
    top = 0
    for one in strips:
        sheet.paste(one, (0, top))
        top += one.height
    file = io.BytesIO()
    sheet.save(file, "PNG")
    write_atomically(path, file.getvalue())


def _strip(
    label: str, document: Document, prompt_turns: int, checks: Mapping[str, float], *, columns: int
) -> Image.Image:
    from PIL import Image, ImageDraw

    width = columns * (TILE + 2 * EDGE)
    asked = " / ".join(turn.text for turn in document.turns[:prompt_turns] if turn.text)
    wrote = " ".join("".join(turn.text for turn in document.turns[prompt_turns:]).split())
    marks = "  ".join(f"{name.partition('.')[2]} {value:.2g}" for name, value in checks.items())
    lines = [f"{label}   {marks}", *textwrap.wrap(f"> {asked}", 150)[:2], *textwrap.wrap(wrote, 150)[:4]]
    before = sum(len(turn.pictures) for turn in document.turns[:prompt_turns])
    pictures = document.pictures[:columns]
    image = Image.new("RGB", (width, LINE * len(lines) + 2 * EDGE + (TILE + 2 * EDGE if pictures else 0)), "white")
    draw = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        # Pillow's built-in font has Latin-1 only; anything else becomes a question mark instead of an error.
        draw.text((EDGE, EDGE + number * LINE), line.encode("latin-1", "replace").decode("latin-1"), fill="black")
    values = list(checks.values())
    state = "right" if values and min(values) >= 0.95 else "wrong" if not any(values) else "partly"
    top = LINE * len(lines) + EDGE
    for index, picture in enumerate(pictures):
        tile = Image.fromarray(picture.pixels)
        tile.thumbnail((TILE, TILE))
        left = index * (TILE + 2 * EDGE)
        frame = FRAMES["prompt" if index < before else state]
        draw.rectangle((left, top, left + tile.width + 2 * EDGE - 1, top + tile.height + 2 * EDGE - 1), fill=frame)
        image.paste(tile, (left + EDGE, top + EDGE))
    return image
