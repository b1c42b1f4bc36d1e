"""A full-size Cosmos-Predict2.5-2B with random bf16 weights in a real ComfyUI on the CPU: memory and time.

    python tests/bench/full_size.py FOLDER [--size 256] [--keep] [--gguf Q4_K]

FOLDER takes some 4.3 GB and is emptied afterwards. An MLLM of the fitting 28 layers, 3584 wide and small inside, writes
the states. Out: JSON lines: the file, what loading it adds to ComfyUI's resident memory at its peak as a share of the
file (the bar is 1.25), then the same for one step at SIZE x SIZE with two earlier pictures. Seconds are the clock's and
the processors'.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "comfyui")]

import random_checkpoint  # noqa: E402
from server import Server, find_comfyui  # noqa: E402

PATHS = "bench:\n  base_path: {0}\n  text_encoders: text_encoders\n  diffusion_models: diffusion_models\n  vae: vae\n"
DIT_GGUF = "cosmos_2b_random.gguf"
DIT, MLLM, VAE = "cosmos_2b_random.safetensors", "wide-and-small", "small_wan.safetensors"


def write_models(folder: Path, gguf: str = "") -> Path:
    """Returns the file of the DiT. gguf: the type of its blocks; "" writes safetensors in bf16."""
    from safetensors.torch import save_file

    from duogen_core.mllm.qwen3_vl import create_tiny
    from duogen_core.mllm.tokenizer import train_tokenizer
    from duogen_core.vae import PictureVae, new_vae
    from duogen_core.weights.writing import Piece, write_file
    from tests.core.headers import key_list

    for name in ("text_encoders", "diffusion_models", "vae"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    file = folder / "diffusion_models" / (DIT_GGUF if gguf else DIT)
    if gguf:
        write_blocks(file, gguf)
    pieces = (
        []
        if gguf
        else [
            Piece(name, "BF16", shape, 2 * count(shape), lambda shape=shape: random_bf16(shape))
            for name, shape in key_list("cosmos_predict2.5_2b.official").items()
            if "accum_" not in name
        ]
    )
    if pieces:
        write_file(file, pieces, {})
    mllm = create_tiny(
        train_tokenizer(["Draw a large red star."], 300), hidden_size=3584, layers=28, heads=2, kv_heads=1,
        intermediate_size=64, vision_hidden_size=64, vision_layers=2, vision_heads=2, vision_intermediate_size=64,
    )  # fmt: skip
    mllm.save_pretrained(folder / "text_encoders" / MLLM)
    save_file(PictureVae(new_vae(8)).to_single_file(), folder / "vae" / VAE)
    return file


def write_blocks(file: Path, kind: str) -> None:
    """As ComfyUI-GGUF's converter writes it: matrices in blocks, all else in float32."""
    import numpy as np

    from tests.core.gguf_files import blocks, write_gguf
    from tests.core.headers import key_list

    tensors: dict[str, Any] = {}
    for number, (name, shape) in enumerate(key_list("cosmos_predict2.5_2b.official").items()):
        name = name.removeprefix("net.")
        if name.startswith("accum_"):
            continue
        if len(shape) == 2 and shape[1] % 256 == 0:
            tensors[name] = blocks(kind, *shape, seed=number, scale=0.0001), kind
        else:
            tensors[name] = np.ones(shape, dtype=np.float32) * (1 if len(shape) < 2 else 0.02)
    write_gguf(file, "cosmos", tensors)


def count(shape: tuple[int, ...]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total


def random_bf16(shape: tuple[int, ...]) -> Iterator[bytes]:
    """Norms are ones; matrices keep a signal's size."""
    import torch

    left, scale = count(shape), (shape[-1] if len(shape) > 1 else 1) ** -0.5
    while left:
        part = min(left, 1 << 22)
        values = torch.ones(part) if len(shape) < 2 else torch.randn(part) * scale
        yield values.bfloat16().view(torch.uint8).numpy().tobytes()
        left -= part


def graph(size: int, dit: str, *, draw: bool) -> dict[str, Any]:
    nodes: dict[str, Any] = {"d": ("DuoGenLoadDiT", {"checkpoint": dit})}
    if not draw:
        nodes["s"] = ("DuoGenSigmas", {"model": ["d", 0], "steps": 0})
        nodes["out"] = ("PreviewAny", {"source": ["s", 1]})
    else:
        nodes |= {
            "m": ("DuoGenLoadMLLM", {"checkpoint": MLLM}),
            "c": ("DuoGenLoadConnector", {"checkpoint": dit, "mllm": ["m", 0]}),
            "v": ("VAELoader", {"vae_name": VAE}),
            "p": ("EmptyImage", {"width": size, "height": size, "batch_size": 1, "color": 0xAA3322}),
            "q": ("EmptyImage", {"width": size, "height": size, "batch_size": 1, "color": 0x2233AA}),
            "ask": ("DuoGenPrompt", {"text": "Draw it.", "images.image1": ["p", 0], "images.image2": ["q", 0]}),
            "e": (
                "DuoGenEncodePrompt",
                {"mllm": ["m", 0], "connector": ["c", 0], "prompt": "A star.", "negative_prompt": "-", "tokens": 512},
            ),
            "r": (
                "DuoGenReferenceImages",
                {"positive": ["e", 0], "negative": ["e", 1], "vae": ["v", 0], "context": ["ask", 0], "which": "all"},
            ),
            "l": ("EmptyLatentImage", {"width": size, "height": size, "batch_size": 1}),
            "k": (
                "KSampler",
                {
                    "model": ["d", 0], "positive": ["r", 0], "negative": ["r", 1], "latent_image": ["l", 0], "seed": 1,
                    "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0,
                },
            ),
            "i": ("VAEDecode", {"samples": ["k", 0], "vae": ["v", 0]}),
            "out": ("SaveImage", {"images": ["i", 0], "filename_prefix": "full"}),
        }  # fmt: skip
    return {key: {"class_type": type_, "inputs": inputs} for key, (type_, inputs) in nodes.items()}


class Peak:
    """The resident memory of a process at its highest since the last look (Linux)."""

    def __init__(self, pid: int) -> None:
        self.folder = Path(f"/proc/{pid}")

    def reset(self) -> int:
        """Bytes resident now."""
        (self.folder / "clear_refs").write_text("5")
        return self._read("VmRSS")

    def processor_seconds(self) -> float:
        fields = (self.folder / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def highest(self) -> int:
        return self._read("VmHWM")

    def _read(self, name: str) -> int:
        lines = (self.folder / "status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--keep", action="store_true", help="leave the models there, and take those that are")
    parser.add_argument("--gguf", default="", metavar="TYPE", help="write GGUF with blocks of this type, such as Q4_K")
    arguments = parser.parse_args()
    models, base = arguments.folder / "models", arguments.folder / "comfyui"
    file = models / "diffusion_models" / (DIT_GGUF if arguments.gguf else DIT)
    if not file.exists():
        write_models(models, arguments.gguf)
    total = file.stat().st_size
    print(json.dumps({"file, GB": round(total / 1e9, 3)}), flush=True)
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir(parents=True)
    (base / "paths.yaml").write_text(PATHS.format(models))
    random_checkpoint.write(base / "models" / "duogen" / "random")
    server = Server(find_comfyui(), base, "--extra-model-paths-config", str(base / "paths.yaml"))
    try:
        server.wait()
        warm(server)
        peak = Peak(server.process.pid)
        before = peak.reset()
        for draw in (False, True):
            start, busy = time.perf_counter(), peak.processor_seconds()
            result = server.run(graph(arguments.size, file.name, draw=draw), seconds=3600)
            seconds = time.perf_counter() - start
            assert result.error is None, result.error
            name = f"one step at {arguments.size} x {arguments.size} with two references" if draw else "loading"
            share = (peak.highest() - before) / total
            busy = peak.processor_seconds() - busy
            line = {"seconds": seconds, "processor seconds": busy, "peak over file": share}
            print(json.dumps({"what": name} | {key: round(value, 3) for key, value in line.items()}), flush=True)
    finally:
        server.stop()
        if not arguments.keep:
            shutil.rmtree(arguments.folder)


def warm(server: Server) -> None:
    """Everything is imported before memory is counted."""
    import graphs

    result = server.run(graphs.answer("random", max_images=1))
    assert result.error is None, result.error


if __name__ == "__main__":
    main()
