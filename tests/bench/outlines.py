"""How often shapes are drawn exactly in given outlines, in a running ComfyUI with its Apply ControlNet and KSampler.

    python tests/bench/outlines.py [--cases 50] [--seed 0] [--lines code|canny] [--strength 1.0] [--keep FOLDER]

Out: one JSON line: of `cases` requests that name kinds and colours, but no sizes and no places, how many images show
exactly the scene that gave the outlines (shapes, colours, sizes, cells, nothing else), with the ControlNet and without
it, from the same noise. Cases are those of `evaluate outlines`. lines: the outlines are taken by the pack's code, or by
ComfyUI's Canny node from the drawing (thresholds 0.05 and 0.15).
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "comfyui")]

import graphs  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402
from server import Server, find_comfyui  # noqa: E402

from duogen_core.sketchbook.checker import read  # noqa: E402
from duogen_core.sketchbook.controlled import outlined_case  # noqa: E402
from duogen_core.sketchbook.drawing import draw_scene  # noqa: E402

MODEL = "duogen-tiny"


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def drawn(server: Server, request: str, seed: int, given: np.ndarray, lines: str, strength: float | None) -> np.ndarray:
    """The first image of the answer; strength None: no ControlNet is in the graph."""
    buffer = io.BytesIO()
    Image.fromarray(given).save(buffer, "png")
    (server.base / "input" / "given.png").write_bytes(buffer.getvalue())
    graph = graphs.first_picture(MODEL, request, steps=16)
    graph["p.sample"]["inputs"]["seed"] = seed
    if strength is not None:
        graph["given"] = node("LoadImage", image="given.png")
        graph["canny"] = node("Canny", image=["given", 0], low_threshold=0.05, high_threshold=0.15)
        graph["net"] = node("DuoGenLoadControlNet", controlnet=MODEL)
        graph["apply"] = node(
            "ControlNetApplyAdvanced", positive=["p.refer", 0], negative=["p.refer", 1], control_net=["net", 0],
            image=["canny" if lines == "canny" else "given", 0], strength=strength, start_percent=0.0, end_percent=1.0,
            vae=["1", 3],
        )  # fmt: skip
        graph["p.sample"]["inputs"] |= {"positive": ["apply", 0], "negative": ["apply", 1]}
    graph["kept"] = node("SaveImage", images=["p.decode", 0], filename_prefix="outlines/case")
    result = server.run(graph)
    if result.error is not None:
        raise SystemExit(f"{request}: {result.error}")
    (file,) = result.outputs["kept"]["images"]
    return np.asarray(Image.open(server.base / "output" / file["subfolder"] / file["filename"]).convert("RGB"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lines", choices=("code", "canny"), default="code")
    parser.add_argument("--strength", type=float, default=1.0)
    parser.add_argument("--keep", type=Path, help="a folder for the images: given, drawn, drawn without")
    options = parser.parse_args()
    right = {"with": 0, "without": 0}
    with tempfile.TemporaryDirectory() as scratch:
        server = Server(find_comfyui(), Path(scratch))
        try:
            server.wait()
            for number in range(options.cases):
                case, scene, lines = outlined_case(options.seed, number)
                given = draw_scene(scene) if options.lines == "canny" else lines
                strip = [lines]
                for how, strength in (("with", options.strength), ("without", None)):
                    request, seed = case.prompt.last_turn.text, options.seed * 100_000 + number * 10
                    strip.append(drawn(server, request, seed, given, options.lines, strength))
                    right[how] += read(strip[-1]).shows(scene)
                print(f"{number + 1}/{options.cases} {right}", file=sys.stderr, flush=True)
                if options.keep:
                    options.keep.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(np.concatenate(strip, axis=1)).save(options.keep / f"{number:02d}.png")
        finally:
            server.stop()
    settings = {"cases": options.cases, "seed": options.seed, "lines": options.lines, "strength": options.strength}
    print(json.dumps({**settings, **{f"right {how}": count / options.cases for how, count in right.items()}}))


if __name__ == "__main__":
    main()
