"""The time of a reroll in a running ComfyUI. Many runs in one server: tests/hardening/comfyui_runs.py.

    python tests/bench/server_runs.py [--steps 20] [--checkpoint FOLDER] [--cache ram|classic|none]

Out: a JSON line. Time: a full answer of 6 pictures, then a reroll of picture k as a share of it (the bar is (7 - k) / 6
plus 20 %).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "comfyui")]

import graphs  # noqa: E402
import random_checkpoint  # noqa: E402
from server import Server, find_comfyui  # noqa: E402

PICTURES = 6
CACHES = {"ram": ("--cache-ram", "1", "100000"), "classic": ("--cache-classic",), "none": ("--cache-none",)}


def reroll_times(server: Server, checkpoint: str, steps: int) -> dict[str, object]:
    graph = graphs.answer(checkpoint, prefix="runs/reroll", max_images=PICTURES, steps=steps)
    server.run(graph)  # whatever the first run of a process loads and warms up

    def seconds(seed: int, seeds: str) -> float:
        graph["3"]["inputs"].update(seed=seed, seeds=seeds)
        start = time.perf_counter()
        result = server.run(graph)
        assert result.error is None, result.error
        return time.perf_counter() - start

    shares = {}
    for k in (2, 4, 6):
        full = min(seconds(100 * k + i, "") for i in range(2))
        again = min(seconds(100 * k + 1, f"{k}: {i}") for i in (7000, 8000))
        shares[k] = {"seconds": round(again, 2), "share": round(again / full, 3), "bar": round((7 - k) / 6 + 0.2, 3)}
    return {"full answer, seconds": round(full, 2), "reroll of picture": shares}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--checkpoint", type=Path, help="folder of a checkpoint; else one with random weights")
    parser.add_argument("--cache", choices=CACHES, default="ram")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        models = Path(scratch) / "models" / "duogen"
        models.mkdir(parents=True)
        if options.checkpoint:
            (models / options.checkpoint.name).symlink_to(options.checkpoint.resolve(), target_is_directory=True)
        name = options.checkpoint.name if options.checkpoint else random_checkpoint.write(models / "random").name
        server = Server(find_comfyui(), Path(scratch), *CACHES[options.cache])
        try:
            server.wait()
            print(json.dumps({"cache": options.cache, **reroll_times(server, name, options.steps)}), flush=True)
        finally:
            server.stop()


if __name__ == "__main__":
    main()
