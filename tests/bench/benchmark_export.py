"""1,000 answers that are there: how long their submission, their scores and their report take, and how much memory.

    python tests/bench/benchmark_export.py [--answers N] [--images N] [--side PIXELS]

A run of UEval is written with answers of random images (the worst case for PNG), exported, scored by a file in the
official scorer's layout, and summarised; each step is a process of its own, measured from outside.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from duogen_core.data.runs.run import begin, work  # noqa: E402
from duogen_core.document import Document, Picture, Text  # noqa: E402
from duogen_core.evaluation.models import Model  # noqa: E402
from duogen_core.evaluation.running import RunEngine  # noqa: E402


class Ready(Model):
    """An answer at once: a text before each image."""

    name, uses_gpu = "ready", False

    def __init__(self, images: int, side: int) -> None:
        self.images, self.side = images, side

    def identity(self) -> dict:
        return {"model": self.name, "images": self.images, "side": self.side}

    def reply(self, document: Document, images: int | None, seed: int) -> Document:
        noise = np.random.default_rng(seed)
        parts: list = []
        for k in range(self.images):
            small = noise.integers(0, 256, (self.side // 4, self.side // 4, 3), np.uint8)
            parts += [
                Text(f"Step {k + 1}: {document.last_turn.text} " * 8),
                Picture(small.repeat(4, 0).repeat(4, 1)),
            ]
        return document.begin_turn("assistant", parts)


def requests(folder: Path, count: int) -> tuple[Path, Path]:
    tasks = ("space", "textbook", "diagram", "paper", "art", "life", "tech", "exercise")
    entries = [
        {"id": str(k), "prompt": f"How is thing {k} made?", "task": tasks[k % 8], "text_rubrics": ["a", "b"],
         "image_rubrics": ["c"]}
        for k in range(count)
    ]  # fmt: skip
    items = [
        {"id": str(k), **{f"{kind}_results": [{"criterion": "a", "criteria_met": True}] for kind in ("text", "image")},
         **{f"{kind}_score": {"met": 1, "total": 1, "rate": 1.0} for kind in ("text", "image")}}
        for k in range(count)
    ]  # fmt: skip
    file, results = folder / "ueval.json", folder / "scored.json"
    file.write_text(json.dumps(entries))
    results.write_text(json.dumps({"items": items}))
    return file, results


def measured(*arguments: str) -> None:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "duogen_core", "evaluate", *arguments, "--quiet"], cwd=ROOT, check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"{arguments[0]:>8}: {time.perf_counter() - started:6.1f} s, peak so far {peak:.2f} GB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--answers", type=int, default=1000)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--side", type=int, default=512)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file, results = requests(folder, args.answers)
        engine = RunEngine("ueval", file, lambda: Ready(args.images, args.side), uses_gpu=False)
        started = time.perf_counter()
        count = sum(1 for _ in work(begin(folder / "run", engine, 32), engine))
        print(f"{count} answers with {args.images} images of {args.side} pixels: {time.perf_counter() - started:.1f} s")
        common = ("--requests", str(file))
        measured("export", "ueval", str(folder / "run"), *common, "--out", str(folder / "submission"))
        measured("judge", "ueval", str(folder / "run"), *common, "--official", str(results))


if __name__ == "__main__":
    main()
