"""ComfyUI's own nodes on our MODEL, LATENT and IMAGE: each runs, and changes what it should and nothing else."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import graphs
import numpy as np
import pytest
from PIL import Image
from server import Server

STEPS = 2
Graph = dict[str, Any]
ROUNDING = 1  # of 255: what two orders of the same sums may differ by


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


@pytest.fixture(scope="module")
def draw(server: Server, random_model: Path) -> Callable[..., np.ndarray]:
    """draw(nodes, image link, inputs of p.sample…) -> the picture's pixels, of a graph that stops at the first one."""

    def run(
        nodes: Graph | None = None, image: list | None = None, *, model: str = "", checkpoint: str = "", **sampler: Any
    ) -> np.ndarray:  # fmt: skip
        """nodes: further ones, or other ones under the ids of graphs.draw. model: the node whose MODEL is sampled."""
        graph = graphs.first_picture(checkpoint or random_model.name, steps=STEPS)
        graph["p.sample"]["inputs"].update(sampler)
        graph |= nodes or {}
        if model:
            graph["p.sample"]["inputs"]["model"] = [model, 0]
        graph["shown"] = node("PreviewImage", images=image or ["p.decode", 0])
        result = server.run(graph)
        assert result.error is None, result.error
        shown = [server.get_bytes("/view", **file) for file in result.outputs["shown"]["images"]]
        pictures = [np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=int) for png in shown]
        return pictures[0] if len(pictures) == 1 else np.stack(pictures)

    return run


@pytest.fixture(scope="module")
def plain(draw: Callable[..., np.ndarray]) -> np.ndarray:
    """What the stock KSampler draws with nothing between."""
    return draw()


def same(a: np.ndarray, b: np.ndarray, tolerance: int = 0) -> bool:
    return a.shape == b.shape and int(np.abs(a - b).max()) <= tolerance


def differs(a: np.ndarray, b: np.ndarray) -> bool:
    """By more than any rounding, as whole pictures."""
    assert a.shape == b.shape
    return float(np.abs(a - b).mean()) > 1


# ------------------------------------------------------------ samplers


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [{"seed": 8}, {"cfg": 6.0}, {"steps": 5}, {"sampler_name": "heun"}, {"scheduler": "karras"}]
)
def test_ksampler_settings_count(draw: Callable[..., np.ndarray], plain: np.ndarray, change: dict[str, Any]):
    assert not same(draw(**change), plain, ROUNDING)


@pytest.mark.slow
def test_same_seed_same_picture(draw: Callable[..., np.ndarray], plain: np.ndarray):
    assert same(draw({"other": node("KSamplerSelect", sampler_name="euler")}), plain)


@pytest.mark.slow
@pytest.mark.parametrize("cfg", [2.0, 5.0])
def test_custom_sampler_with_guider_is_ksampler(
    draw: Callable[..., np.ndarray], random_model: Path, plain: np.ndarray, cfg: float
):
    inputs = graphs.first_picture(random_model.name, steps=STEPS)["p.sample"]["inputs"]
    custom = {
        "noise": node("RandomNoise", noise_seed=inputs["seed"]),
        "guider": node("CFGGuider", **{key: inputs[key] for key in ("model", "positive", "negative")}, cfg=cfg),
        "euler": node("KSamplerSelect", sampler_name="euler"),
        "sigmas": node("BasicScheduler", model=inputs["model"], scheduler="simple", steps=STEPS, denoise=1.0),
        "p.sample": node(
            "SamplerCustomAdvanced", noise=["noise", 0], guider=["guider", 0], sampler=["euler", 0],
            sigmas=["sigmas", 0], latent_image=inputs["latent_image"],
        ),
    }  # fmt: skip
    assert same(draw(custom), plain) == (cfg == 2.0), "2.0 is the cfg of the plain picture"


@pytest.mark.slow
def test_two_pictures_in_one_batch(draw: Callable[..., np.ndarray], plain: np.ndarray):
    both = draw({"two": node("RepeatLatentBatch", samples=["p.size", 0], amount=2)}, latent_image=["two", 0])
    assert both.shape == (2, *plain.shape)
    assert same(both[0], plain, ROUNDING) and not same(both[0], both[1], ROUNDING)


# ------------------------------------------------------------ LoRA and model patches

DOWN_UP = {
    "peft": ("transformer.{}.lora_A.weight", "transformer.{}.lora_B.weight"),
    "comfyui": ("diffusion_model.{}.lora_down.weight", "diffusion_model.{}.lora_up.weight"),
    "kohya": ("lora_unet_{}.lora_down.weight", "lora_unet_{}.lora_up.weight"),
    "bare": ("{}.lora_A.weight", "{}.lora_B.weight"),
}


def write_lora(server: Server, checkpoint: Path, naming: str) -> None:
    """models/loras/{naming}.safetensors: the same LoRA on every attention projection, its keys in this naming."""
    import torch
    from safetensors.torch import save_file

    config = json.loads((checkpoint / "dit" / "config.json").read_text("utf-8"))
    width = config["num_attention_heads"] * config["attention_head_dim"]
    noise, tensors = torch.Generator().manual_seed(3), {}
    down, up = DOWN_UP[naming]
    for block in range(config["num_layers"]):
        for projection in ("to_q", "to_k", "to_v", "to_out.0"):
            layer = f"transformer_blocks.{block}.attn1.{projection}"
            name = layer.replace(".", "_") if naming == "kohya" else layer
            tensors[down.format(name)] = torch.randn(4, width, generator=noise)
            tensors[up.format(name)] = torch.randn(width, 4, generator=noise)
    folder = server.base / "models" / "loras"
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / f"{naming}.safetensors")


@pytest.fixture(scope="module")
def lora(server: Server, random_model: Path) -> Callable[..., Graph]:
    """lora(naming, strength) -> the loader of a LoRA on our MODEL."""

    def load(naming: str, strength: float = 1.0) -> Graph:
        write_lora(server, random_model, naming)
        file = f"{naming}.safetensors"
        return {"lora": node("LoraLoaderModelOnly", model=["1", 2], lora_name=file, strength_model=strength)}

    return load


@pytest.fixture(scope="module")
def with_lora(draw: Callable[..., np.ndarray], lora: Callable[[str], Graph]) -> np.ndarray:
    return draw(lora("comfyui"), model="lora")


@pytest.mark.slow
def test_lora_counts_by_its_strength(
    draw: Callable[..., np.ndarray], lora: Callable[..., Graph], plain: np.ndarray, with_lora: np.ndarray
):
    assert differs(with_lora, plain)
    assert same(draw(lora("comfyui", 0.0), model="lora"), plain), "strength 0 is no LoRA"
    half = draw(lora("comfyui", 0.5), model="lora")
    assert not same(half, plain, ROUNDING) and not same(half, with_lora, ROUNDING)
    assert same(draw(), plain), "without the LoRA the weights are as they were"


@pytest.mark.slow
@pytest.mark.parametrize("naming", ["peft", "kohya", "bare"])
def test_lora_files_of_every_naming(
    server: Server, draw: Callable[..., np.ndarray], lora: Callable[[str], Graph], with_lora: np.ndarray, naming: str
):
    before = len(server.log)
    assert same(draw(lora(naming), model="lora"), with_lora)
    assert "lora key not loaded" not in server.log[before:]


# ------------------------------------------------------------ conditioning and latents


@pytest.mark.slow
def test_stock_reference_latent(draw: Callable[..., np.ndarray], plain: np.ndarray):
    """A picture that the conversation does not hold, shown to the DiT by the core's own node."""
    nodes = {
        "colour": node("EmptyImage", width=64, height=96, batch_size=1, color=0xFF0000),
        "seen": node("VAEEncode", pixels=["colour", 0], vae=["1", 3]),
        "positive": node("ReferenceLatent", conditioning=["p.refer", 0], latent=["seen", 0]),
        "negative": node("ReferenceLatent", conditioning=["p.refer", 1], latent=["seen", 0]),
    }
    assert not same(draw(nodes, positive=["positive", 0], negative=["negative", 0]), plain, ROUNDING)


@pytest.mark.slow
@pytest.mark.parametrize("denoise", [0.0, 0.5, 1.0])
def test_second_pass_on_a_larger_latent(draw: Callable[..., np.ndarray], random_model: Path, denoise: float):
    sampler = graphs.first_picture(random_model.name, steps=STEPS)["p.sample"]["inputs"]
    nodes = {
        "larger": node(
            "LatentUpscale", samples=["p.sample", 0], upscale_method="bilinear", width=192, height=128, crop="disabled"
        ),
        "second": node("KSampler", **{**sampler, "latent_image": ["larger", 0], "denoise": denoise, "seed": 5}),
        "first only": node("VAEDecode", samples=["larger", 0], vae=["1", 3]),
        "final": node("VAEDecode", samples=["second", 0], vae=["1", 3]),
    }
    first, second = draw(nodes, ["first only", 0]), draw(nodes, ["final", 0])
    assert second.shape == (128, 192, 3)
    assert same(first, second) == (denoise == 0.0)
    other = draw(nodes, ["final", 0], seed=99)  # of the first pass
    assert same(second, other) == (denoise == 1.0), "less than 1 keeps something of the first pass, 1 keeps nothing"


@pytest.mark.slow
def test_inpainting_keeps_what_the_mask_leaves_out(draw: Callable[..., np.ndarray]):
    nodes = {
        "colour": node("EmptyImage", width=96, height=64, batch_size=1, color=0x3070C0),
        "old": node("VAEEncode", pixels=["colour", 0], vae=["1", 3]),
        "none": node("SolidMask", value=0.0, width=96, height=64),
        "right": node("SolidMask", value=1.0, width=48, height=64),
        "mask": node("MaskComposite", destination=["none", 0], source=["right", 0], x=48, y=0, operation="add"),
        "masked": node("SetLatentNoiseMask", samples=["old", 0], mask=["mask", 0]),
        # Compared as latents, because a VAE carries some of what it sees everywhere.
        "old left": node("LatentCut", samples=["old", 0], dim="x", index=0, amount=6),
        "left": node("LatentCut", samples=["p.sample", 0], dim="x", index=0, amount=6),
        "right side": node("LatentCut", samples=["p.sample", 0], dim="x", index=6, amount=6),
        "old right": node("LatentCut", samples=["old", 0], dim="x", index=6, amount=6),
    }
    shown = {}
    for name in ("old left", "left", "old right", "right side"):
        decode = {"decode": node("VAEDecode", samples=[name, 0], vae=["1", 3])}
        shown[name] = draw(nodes | decode, ["decode", 0], latent_image=["masked", 0])
    assert same(shown["left"], shown["old left"], ROUNDING)
    assert differs(shown["right side"], shown["old right"])


@pytest.mark.slow
def test_image_nodes_after(draw: Callable[..., np.ndarray], plain: np.ndarray):
    nodes = {
        "scaled": node(
            "ImageScale", image=["p.decode", 0], upscale_method="nearest-exact", width=192, height=128, crop="disabled"
        ),
        "by": node("ImageScaleBy", image=["p.decode", 0], upscale_method="nearest-exact", scale_by=2.0),
        "inverted": node("ImageInvert", image=["scaled", 0]),
    }
    larger = plain.repeat(2, axis=0).repeat(2, axis=1)
    assert same(draw(nodes, ["scaled", 0]), larger) and same(draw(nodes, ["by", 0]), larger)
    assert same(draw(nodes, ["inverted", 0]), 255 - larger, ROUNDING)
