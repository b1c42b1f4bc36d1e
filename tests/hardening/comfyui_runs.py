"""Many runs in one ComfyUI: memory stays where it is, and no file is left open.

    python tests/hardening/comfyui_runs.py [--runs 50] [--checkpoint FOLDER] [--cache ram|classic|none]

Every run has another seed, so that no picture comes from a cache, and another size than the one before.
Two in five are cancelled: one while its second picture is sampled, one while it writes. Every third goes through the
loop with the stock KSampler, the others through DuoGen Interleave; all save and show what they made.
Out: one JSON object on the last line. `ok`: resident memory grew by less than BAR after the fifth run, no file of ours
is open, and kept are the answers of the runs that were cancelled in their second picture, and no others. Exit code 0 if
so, else 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [path for path in (str(ROOT), str(ROOT / "tests" / "comfyui")) if path not in sys.path]

import graphs  # noqa: E402
import random_checkpoint  # noqa: E402
from server import Result, Server, find_comfyui  # noqa: E402

WARM = 5  # runs; all sizes and both kinds of graph, so that everything was loaded and allocated once
BAR = 50  # MiB
SIZES = ((160, 96), (64, 64), (128, 128), (96, 160), (112, 80))
THINGS = [  # that the bundled model draws in several steps
    f"{thing} with a {colour} {part}"
    for colour in ("red", "blue", "green", "orange", "purple", "brown", "black")
    for thing, part in (("house", "roof"), ("tree", "trunk"))
]
CACHES = {"ram": ("--cache-ram", "1", "100000"), "classic": ("--cache-classic",), "none": ("--cache-none",)}
BUNDLED = ROOT / "models" / "duogen-tiny"


def graph_of(run: int, checkpoint: str) -> dict[str, Any]:
    width, height = SIZES[run % len(SIZES)]
    request = f"How do I draw a {THINGS[run % len(THINGS)]}?"
    if run % 3 == 2:
        graph = graphs.loop(checkpoint, request, prefix="runs/answer", max_images=2)
        graph["3"]["inputs"]["seed"] = run
        graph["p.size"]["inputs"] |= {"size": "fixed", "width": width, "height": height}
    else:
        size = {"width": width, "height": height}
        graph = graphs.answer(checkpoint, request, prefix="runs/answer", seed=run, max_images=2, steps=4, **size)
    context = graph["5"]["inputs"]["context"]
    graph["7"] = {"class_type": "DuoGenPreview", "inputs": {"context": context, "part": "answer"}}
    return graph


def cancelling(server: Server, run: int):
    """A watcher that presses Cancel in two of five runs."""
    begins = {3: "Image 2", 4: ""}.get(run % 5)
    pressed: list[Any] = []

    def watch(kind: str, data: Any, result: Result) -> None:
        if begins is not None and kind == "text" and data.startswith(begins) and not pressed:
            pressed.append(server.post("/interrupt", {}))

    return watch


def kept_answers(server: Server) -> int:
    return len(list(server.base.glob("output/duogen/unfinished/*/document.json")))


def many_runs(server: Server, checkpoint: str, runs: int) -> dict[str, Any]:
    memory, ended = [], {"finished": 0, "cancelled": 0}
    before, pictures = kept_answers(server), 0
    start = time.monotonic()
    for run in range(runs):
        # Held there until the cancel arrives, however fast the server draws.
        server.post("/duogen_test/hold", {"text": "Image 2" if run % 5 == 3 else ""})
        result = server.run(graph_of(run, checkpoint), watch=cancelling(server, run))
        if result.error is not None:
            raise RuntimeError(f"Run {run} failed: {result.error['exception_message']}")
        ended["cancelled" if result.interrupted else "finished"] += 1
        pictures += sum(node.endswith("append") for node in result.ran)
        memory.append(server.memory())
    last, warm = memory[-1], memory[min(WARM, runs) - 1]
    grown = [(state["rss"] - warm["rss"]) / 2**20 for state in memory[WARM:]] or [0.0]
    copies = kept_answers(server) - before
    return {
        "runs": runs,
        **ended,
        "pictures": pictures,
        "resident after the fifth, MiB": round(warm["rss"] / 2**20, 1),
        "grown at the end, MiB": round(grown[-1], 1),
        "grown at most, MiB": round(max(grown), 1),
        "bytes of tensors after the fifth and at the end": [warm["tensors"], last["tensors"]],
        "open files of ours": last["files"],
        "open descriptors after the fifth and at the end": [warm["descriptors"], last["descriptors"]],
        "objects alive at the end": last["alive"],
        "answers kept of cancelled runs": copies,
        "minutes": round((time.monotonic() - start) / 60, 1),
        "ok": grown[-1] < BAR and not last["files"] and pictures >= runs and copies == runs // 5 + (runs % 5 > 3),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--checkpoint", type=Path, help="a folder, or random; else the bundled one")
    parser.add_argument("--cache", choices=CACHES, default="ram")
    options = parser.parse_args(argv)
    comfyui = find_comfyui()
    if comfyui is None:
        print(json.dumps({"ok": None, "skipped": "No ComfyUI here; set COMFYUI_PATH to one."}))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        models = Path(scratch) / "models" / "duogen"
        models.mkdir(parents=True)
        chosen = options.checkpoint or BUNDLED
        if chosen == Path("random"):
            name = random_checkpoint.write(models / "random").name
        else:
            name = chosen.name
            if chosen != BUNDLED:  # that one is listed from the start
                (models / name).symlink_to(chosen.resolve(), target_is_directory=True)
        server = Server(comfyui, Path(scratch), *CACHES[options.cache])
        try:
            result = many_runs(server.wait(), name, options.runs)
        finally:
            server.stop()
    print(json.dumps({"checkpoint": name, "cache": options.cache, **result}), flush=True)
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
