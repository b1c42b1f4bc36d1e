"""Measures `data dedup`: planted near-duplicates found, unlike documents lost, time and memory.

    python tests/bench/dedup.py --work DIR [--count 100000] [--seeds 1 2 3] [--workers 2] [--decode] [-- OPTIONS]

Makes a run of documents (tests/core/dedup_pages.py says of what kinds), which is kept in DIR and used again, then runs
the command on it as its own process and prints a JSON line: what was found and lost by kind, seconds, seconds of
processor time, and the peak of the memory of all its processes together (PSS: shared pages count once), twice a second.
--decode leaves out the hashes that `data web` writes, so that every image is decoded. OPTIONS go to the command.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from duogen_core.data.runs.log import json_lines  # noqa: E402
from duogen_core.data.runs.run import begin, work  # noqa: E402
from tests.core.dedup_pages import Planted, score  # noqa: E402


def children(process: int) -> list[int]:
    found = [process]
    for each in found:
        for task in Path(f"/proc/{each}/task").glob("*/children"):
            found += map(int, task.read_text().split())
    return found


def memory(process: int) -> int:
    total = 0
    for each in children(process):
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
    return total


def measure(run: Path, out: Path, workers: int, options: list[str]) -> dict[str, float]:
    before, started, peak = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter(), 0
    command = [sys.executable, "-m", "duogen_core", "data", "dedup", run, "--out", out, "--workers", workers, "--quiet"]
    process = subprocess.Popen(
        [*map(str, command), *options], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL
    )
    while process.poll() is None:
        with contextlib.suppress(OSError):  # one of its processes has just ended
            peak = max(peak, memory(process.pid))
        time.sleep(0.5)
    if process.returncode:
        sys.exit(process.returncode)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "processor_seconds": round(used, 1),
        "peak_mib": round(peak / 2**20),
        "load": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--decode", action="store_true")
    parser.add_argument("options", nargs="*")
    args = parser.parse_args()
    for seed in args.seeds:
        name = f"{seed}-{args.count}{'-decode' if args.decode else ''}"
        run, out = args.work / f"run-{name}", args.work / f"out-{name}"
        engine = Planted(seed, args.count, with_hash=not args.decode)
        for _ in work(begin(run, engine, 500), engine, workers=args.workers):
            pass
        shutil.rmtree(out, ignore_errors=True)
        figures = measure(run, out, args.workers, args.options)
        entries = (entry for file in sorted((out / "logs").glob("*.jsonl")) for entry in json_lines(file))
        gone = {entry["document"]: entry["rule"] for entry in entries if not entry["kept"]}
        print(json.dumps({"seed": seed, **figures, **score(seed, args.count, gone)}), flush=True)


if __name__ == "__main__":
    main()
