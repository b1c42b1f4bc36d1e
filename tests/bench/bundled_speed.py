"""The bundled model's answer in this tree against another commit's code, same model folder: how many times faster.

    python tests/bench/bundled_speed.py [--against b8dcede] [--rounds 9] [--threads 1]

The other commit is checked out into a temporary folder with git worktree and removed afterwards. Each tree has a
process of its own, which loads and answers once to warm up; then they answer by turns, so that what slows the machine
down slows both. Only `generate` is timed. Out: JSON: seconds by the clock and by the processor, the ratio within each
round, its median (the bar is 1.3), whether the texts are the same, and how far the images are apart. (Images after the
first have other seeds since 8413736.) One thread unless told otherwise: on a busy machine two threads wait for each
other, and the processor's seconds then count the waiting.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "duogen-tiny"
BAR = 1.3
# Runs in either tree, so it uses only what both have.
ANSWER = """
import json, sys, time
tree, model, threads, images = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
sys.path.insert(0, tree)
import numpy as np
import torch
torch.set_num_threads(threads)
from duogen_core.checkpoint import load_checkpoint
from duogen_core.document import Document, Text
from duogen_core.pipeline import generate
from duogen_core.settings import Settings
components = load_checkpoint(model)
request = Document().begin_turn("user", [Text("How do I draw a house with a red roof?")])
for line in sys.stdin:
    clock, processor = time.perf_counter(), time.process_time()
    document = generate(components, request, Settings(max_images=images))
    clock, processor = time.perf_counter() - clock, time.process_time() - processor
    np.savez(line.strip(), *[picture.pixels for picture in document.pictures])
    print(json.dumps({"clock": clock, "processor": processor, "text": document.text}), flush=True)
"""


class Tree:
    """A process that answers whenever it is asked to, with the code of one tree."""

    def __init__(self, name: str, folder: Path, scratch: Path, threads: int, images: int) -> None:
        self.name, self.pictures, self.answers = name, scratch / f"{name}.npz", []
        command = [sys.executable, "-c", ANSWER, folder, MODEL, threads, images]
        self.process = subprocess.Popen(
            [*map(str, command)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=scratch
        )

    def answer(self) -> None:
        print(self.pictures, file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"The code of {self.name} could not answer; its error is above.")
        self.answers.append(json.loads(line))

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", default="b8dcede", help="the commit to compare with")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--images", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        other = Path(scratch) / "other"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", other, options.against], check=True, capture_output=True)
        trees: list[Tree] = []
        try:
            for name, folder in (("ours", ROOT), ("other", other)):
                trees.append(Tree(name, folder, Path(scratch), options.threads, options.images))
            for number in range(options.rounds + 1):  # the first answer warms up
                for tree in trees if number % 2 == 0 else trees[::-1]:
                    tree.answer()
            print(json.dumps(summary(*trees) | {"against": options.against}, indent=2))
        finally:
            for tree in trees:
                tree.close()
            subprocess.run([*git, "remove", "--force", other], check=True)


def summary(ours: Tree, other: Tree) -> dict:
    pairs = list(zip(ours.answers[1:], other.answers[1:]))
    found = {}
    for kind in ("clock", "processor"):
        ratios = [b[kind] / a[kind] for a, b in pairs]
        found[f"{kind}, times faster"] = round(statistics.median(ratios), 3)
        found[f"{kind}, rounds"] = [round(ratio, 2) for ratio in ratios]
        found[f"{kind}, median seconds"] = [round(statistics.median(a[kind] for a in side), 3) for side in zip(*pairs)]
    same = ours.answers[0]["text"] == other.answers[0]["text"]
    apart = [difference(a, b) for a, b in zip(pictures(ours), pictures(other))]
    return {**found, "bar": BAR, "same text": same, "largest difference of each image's pixels, of 255": apart}


def pictures(tree: Tree) -> list:
    import numpy as np

    with np.load(tree.pictures) as file:
        return [file[name] for name in file.files]


def difference(a, b) -> int:
    return int(abs(a.astype(int) - b.astype(int)).max()) if a.shape == b.shape else 255


if __name__ == "__main__":
    main()
