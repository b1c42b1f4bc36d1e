"""How far the pictures of a quantised checkpoint are from those of the checkpoint itself, in a running ComfyUI.

    python tests/bench/quantised_pictures.py [--checkpoint FOLDER] [--kinds bf16 fp8 int8]

Out: JSON lines, one a kind. The DiT alone is another one, so that every picture has the same text, states and noise:
relative error of the latent (norm of the difference by the norm) and PSNR of the picture, mean and worst of REQUESTS.
bf16 is the same checkpoint with its DiT's weights rounded to bfloat16, for comparison. Texts: how many of the answers'
first paragraphs are the same, word for word, when the MLLM is quantised as well.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "comfyui")]

import graphs  # noqa: E402
import numpy as np  # noqa: E402
from server import Server, find_comfyui  # noqa: E402

REQUESTS = (
    "Draw a large red circle.",
    "Draw a small blue star in the top left.",
    "How do I draw a house with a red roof?",
    "Draw a green triangle and a yellow square.",
    "How do I draw a cat?",
    "Draw three purple circles.",
    "Draw a large orange star in the middle.",
    "How do I draw a tree?",
)


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def picture(server: Server, checkpoint: str, painter: str, writer: str, request: str, steps: int) -> tuple:
    """(latent, pixels, the paragraph before the picture)."""
    from PIL import Image
    from safetensors.torch import load_file

    graph = graphs.first_picture(checkpoint, request, steps=steps)
    graph |= {"dit": node("DuoGenLoadDiT", checkpoint=painter), "mllm": node("DuoGenLoadMLLM", checkpoint=writer)}
    graph["p.sample"]["inputs"]["model"] = ["dit", 0]
    for one in graph.values():
        one["inputs"].update({"mllm": ["mllm", 0]} if "mllm" in one["inputs"] else {})
    graph["text"] = node("DuoGenFormat", context=["write0", 0], part="answer")
    graph["said"] = node("PreviewAny", source=["text", 0])
    graph["kept"] = node("SaveLatent", samples=["p.sample", 0], filename_prefix="bench/latent")
    graph["shown"] = node("PreviewImage", images=["p.decode", 0])
    result = server.run(graph)
    assert result.error is None, result.error
    (file,) = result.outputs["kept"]["latents"]
    latent = load_file(server.base / "output" / file["subfolder"] / file["filename"])["latent_tensor"]
    (shown,) = result.outputs["shown"]["images"]
    pixels = np.asarray(Image.open(io.BytesIO(server.get_bytes("/view", **shown))).convert("RGB"), dtype=float)
    return latent, pixels, json.dumps(result.outputs["said"])


def copy_in(checkpoint: Path, folder: Path, kind: str) -> None:
    if kind != "bf16":
        command = [sys.executable, "-m", "duogen_core", "convert", str(checkpoint), str(folder), "--quantise", kind]
        subprocess.run([*command, "--quiet"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return
    from safetensors.torch import load_file, save_file

    shutil.copytree(checkpoint, folder)
    file = folder / "dit" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor.bfloat16().float() for name, tensor in load_file(file).items()}, file)


def measure(server: Server, checkpoint: str, kind: str, steps: int, reference: list[tuple]) -> dict[str, Any]:
    name = f"{checkpoint}-{kind}"
    errors, ratios, same = [], [], 0
    for request, (latent, pixels, text) in zip(REQUESTS, reference, strict=True):
        other, drawn, _ = picture(server, checkpoint, name, checkpoint, request, steps)
        errors.append(float((other - latent).norm() / latent.norm()))
        ratios.append(10 * np.log10(255**2 / max(np.square(drawn - pixels).mean(), 1e-12)))
        if kind != "bf16":
            same += picture(server, checkpoint, name, name, request, steps)[2] == text
    found = {
        "kind": kind, "latent error, mean": round(float(np.mean(errors)), 4), "worst": round(max(errors), 4),
        "PSNR, mean dB": round(float(np.mean(ratios)), 1), "worst dB": round(float(min(ratios)), 1),
    }  # fmt: skip
    return found if kind == "bf16" else {**found, "same texts": f"{same} of {len(REQUESTS)}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "models" / "duogen-tiny")
    parser.add_argument("--kinds", nargs="+", default=["bf16", "fp8", "int8"])
    parser.add_argument("--steps", type=int, default=16)
    args = parser.parse_args()
    comfyui = find_comfyui()
    assert comfyui is not None, "No ComfyUI here; set COMFYUI_PATH."
    with tempfile.TemporaryDirectory() as scratch:
        base, name = Path(scratch), args.checkpoint.name
        models = base / "models" / "duogen"
        models.mkdir(parents=True)
        (models / name).symlink_to(args.checkpoint.resolve(), target_is_directory=True)
        for kind in args.kinds:
            copy_in(args.checkpoint, models / f"{name}-{kind}", kind)
        server = Server(comfyui, base)
        try:
            server.wait()
            reference = [picture(server, name, name, name, request, args.steps) for request in REQUESTS]
            for kind in args.kinds:
                print(json.dumps(measure(server, name, kind, args.steps, reference)), flush=True)
        finally:
            server.stop()


if __name__ == "__main__":
    main()
