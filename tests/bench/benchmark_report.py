"""How long a report of many cached answers takes, and how much memory: two models, two judges, pictures in tars.

    python tests/bench/benchmark_report.py --answers 1000

Answers are made first, in a scratch folder; measured is `evaluate report` alone, in a process of its own.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--answers", type=int, default=1000, metavar="N", help="answers of each model; default: 1000")
    args = parser.parse_args()
    import numpy as np

    from duogen_core.evaluation.benchmarks import Score, benchmark
    from duogen_core.evaluation.results import Results
    from tests.core.evaluation.pairs import write_answers

    bench = benchmark("ueval")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        files = []
        for model, judges in (("one", ("x", "y")), ("other", ("x",))):
            ids = [str(number) for number in range(args.answers)]
            write_answers(folder / model, model, ids, lambda k: {}, metrics={}, judge="none")
            (folder / model / "results-none.json").unlink()
            for judge in judges:
                random = np.random.default_rng(len(files))
                scores = [
                    Score(id, f"kind {number % 8}", {"text": random.random(), "image": random.random()},
                          {"text": "Because it is so. " * 20})
                    for number, id in enumerate(ids)
                ]  # fmt: skip
                places = {id: f"shards/00000.tar#{number:08d}" for number, id in enumerate(ids)}
                files.append(folder / model / f"results-{judge}.json")
                Results.of(bench, scores, model=model, judge=judge, documents=places).write(files[-1])
        command = [sys.executable, "-m", "duogen_core", "evaluate", "report", *map(str, files)]
        begun = time.perf_counter()
        subprocess.run([*command, "--out", str(folder / "report.html")], check=True, cwd=ROOT)
        seconds = time.perf_counter() - begun
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        size = (folder / "report.html").stat().st_size / 2**20
        print(
            f"{len(files)} files of {args.answers:,} answers: {seconds:.1f} s, {peak:.0f} MB, a page of {size:.1f} MB"
        )


if __name__ == "__main__":
    main()
