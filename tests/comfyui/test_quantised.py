"""Quantised copies of a checkpoint (`convert --quantise`) run in ComfyUI: layers stay as they are, pictures stay close.

The figures are in docs/convert.md; run with -s to see them.
"""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import graphs
import numpy as np
import pytest
from PIL import Image
from server import PACK, Server
from test_lora import adapter, loras, matrices, ours, sampled, write_dit_lora  # noqa: F401  (some are fixtures)
from test_stock_nodes import node

BARS = {"fp8": (0.08, 26.0), "int8": (0.04, 32.0)}  # relative error of the latent, PSNR of the picture in dB


@pytest.fixture(scope="module")
def copy_of(server: Server):
    """copy_of(checkpoint, kind) -> the name of its quantised copy, which the command line made."""

    def make(checkpoint: Path, kind: str) -> str:
        name = f"{checkpoint.name}-{kind}"
        folder = server.base / "models" / "duogen" / name
        if not folder.exists():
            command = [sys.executable, "-m", "duogen_core", "convert", str(checkpoint), str(folder), "--quantise", kind]
            subprocess.run([*command, "--quiet"], cwd=PACK, check=True)
        return name

    return make


def picture(server: Server, checkpoint: str, nodes: dict | None = None, **links: list) -> np.ndarray:
    graph = graphs.first_picture(checkpoint, steps=8)
    for one in graph.values():
        one["inputs"].update({name: link for name, link in links.items() if name in one["inputs"]})
    graph |= nodes or {}
    graph["shown"] = node("PreviewImage", images=["p.decode", 0])
    result = server.run(graph)
    assert result.error is None, result.error
    (file,) = result.outputs["shown"]["images"]
    return np.asarray(Image.open(io.BytesIO(server.get_bytes("/view", **file))).convert("RGB"), dtype=float)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(np.square(a - b).mean(), 1e-12)))


def painter(name: str) -> dict:
    return {"dit": node("DuoGenLoadDiT", checkpoint=name)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", BARS)
def test_pictures_of_a_quantised_dit(server: Server, checkpoint: Path, copy_of, kind: str):
    name = copy_of(checkpoint, kind)
    latents = [sampled(server, checkpoint.name), sampled(server, checkpoint.name, painter(name), model=["dit", 0])]
    error = float((latents[1] - latents[0]).norm() / latents[0].norm())
    pictures = [picture(server, checkpoint.name), picture(server, checkpoint.name, painter(name), model=["dit", 0])]
    print(f"\n{checkpoint.name} {kind}: latent error {error:.4f}, PSNR {psnr(*pictures):.1f} dB")
    assert 1e-5 < error < BARS[kind][0] and psnr(*pictures) > BARS[kind][1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", BARS)
def test_an_answer_of_a_quantised_checkpoint(server: Server, random_model: Path, copy_of, kind: str):
    """MLLM and DiT both."""
    name = copy_of(random_model, kind)
    result = server.run(graphs.answer(name, graphs.REQUEST, prefix="quantised/a", max_images=1, steps=2))
    assert result.error is None, result.error
    assert len(result.outputs["6"]["images"]) == 1
    writer = {"writer": node("DuoGenLoadMLLM", checkpoint=name)}
    latents = [sampled(server, random_model.name), sampled(server, random_model.name, writer, mllm=["writer", 0])]
    assert 1e-6 < float((latents[1] - latents[0]).norm() / latents[0].norm()) < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("kind", BARS)
def test_a_lora_on_quantised_layers(server: Server, random_model: Path, copy_of, matrices: dict, kind: str):  # noqa: F811
    name = copy_of(random_model, kind)
    (server.base / "models" / "loras").mkdir(exist_ok=True)
    write_dit_lora(server.base / "models" / "loras" / "for quantised.safetensors", matrices, "comfyui")
    lora = node("LoraLoaderModelOnly", model=["1", 2], lora_name="for quantised.safetensors", strength_model=1.0)
    small = {**painter(name), "lora": lora | {"inputs": {**lora["inputs"], "model": ["dit", 0]}}}
    wanted = sampled(server, random_model.name, {"lora": lora}, model=["lora", 0])
    found = sampled(server, random_model.name, small, model=["lora", 0])
    plain = sampled(server, random_model.name)
    assert float((found - wanted).norm()) < 0.2 * float((wanted - plain).norm())


@pytest.mark.slow
@pytest.mark.parametrize("kind", BARS)
def test_an_adapter_on_a_quantised_mllm(server: Server, random_model: Path, copy_of, adapter, kind: str):  # noqa: F811
    merged, file = adapter(random_model), f"{random_model.name}/adapter_model.safetensors"
    small = {"writer": node("DuoGenLoadMLLM", checkpoint=copy_of(random_model, kind)), **ours(file)}
    small["adapter"]["inputs"]["mllm"] = ["writer", 0]
    wanted, plain = sampled(server, merged), sampled(server, random_model.name)
    found = sampled(server, random_model.name, small, mllm=["adapter", 0])
    assert float((found - wanted).norm()) < 0.5 * float((wanted - plain).norm())
