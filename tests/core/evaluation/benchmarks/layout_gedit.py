"""Small files in GEdit-Bench's own layout: two shards of Parquet, images as Hugging Face stores them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from duogen_core.document import Picture
from duogen_core.evaluation.benchmarks.gedit import GROUPS

# (key, language, kind, instruction, intersection): of each kind one in English; of some more, and in Chinese.
REQUESTS = [
    *((f"k{n:02d}", "en", kind, f"Do “{kind}”,\nplease.", True) for n, kind in enumerate(GROUPS)),
    ("second", "en", "text_change", 'Write "OPEN" on it', False),
    ("third.x", "en", "ps_human", "Make him smile", False),
    *((f"k{n:02d}", "cn", kind, f"把它改成 {n}", n % 2 == 0) for n, kind in enumerate(GROUPS[:5])),
]


def picture(number: int) -> Picture:
    return Picture(np.full((20 + number, 30, 3), 40 + 9 * number, np.uint8))


def rows() -> list[dict]:
    found = []
    for key, language, kind, instruction, intersection in REQUESTS:
        number = len(key) if key[0] != "k" else int(key[1:])  # both languages are about the same image
        image = {"bytes": picture(number).to_png(), "path": f"{key}.png"}
        raw = {"bytes": b"not looked at", "path": f"{key}_raw.jpg"}
        found.append({
            "key": key, "instruction": instruction, "instruction_language": language, "task_type": kind,
            "input_image": image, "input_image_raw": raw, "Intersection_exist": intersection,
        })  # fmt: skip
    return found


def write_requests(folder: Path) -> Path:
    import pyarrow
    import pyarrow.parquet

    (folder / "data").mkdir()
    for number, part in enumerate((rows()[:7], rows()[7:])):
        file = folder / f"data/train-0000{number}-of-00002.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(part), file)
    return folder / "data"


def write_results(folder: Path, ids: Sequence[str]) -> Path:
    """As `test_gedit_score.py` writes them, a file for each kind and one for all."""
    place = folder / "m/gpt4o/eval_results_new"
    place.mkdir(parents=True)
    known = {f"{language}-{key}": (key, language, kind, said, there) for key, language, kind, said, there in REQUESTS}
    lines = []
    for number, id in enumerate(ids):
        key, language, kind, said, there = known[id]
        edited = f"/results/m/fullset/{kind}/{language}/{key}"
        lines.append((kind, [f"{edited}_SRCIMG.png", f"{edited}.png", said, number % 11, 4, there, language]))
    for group in (*GROUPS, "combined"):
        with (place / f"m_{group}_gpt_score.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["source_image", "edited_image", "instruction", "sementics_score", "quality_score",
                             "intersection_exist", "instruction_language"])  # fmt: skip
            writer.writerows(line for kind, line in lines if group in (kind, "combined"))
    return place
