"""Wan as the packed DiT in ComfyUI: answers of a trained one, published files, LoRAs, patches, and what is refused.

A trained Wan is a checkpoint of random weights (random_checkpoint.py) in models/duogen. A published one is the small
file of small_models.py under the published names, which ComfyUI's own Load Diffusion Model reads as well: from one
prompt and without earlier images, its MODEL and ours must draw the same, whatever stands between loader and sampler.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import graphs
import pytest
from answers import assert_same_answer, command_line, saved_document
from server import Result, Server
from test_stock_nodes import node
from test_workflow import bring_pictures

pytestmark = pytest.mark.slow
FILE = "small_wan.safetensors"
CLOSE = 1e-4  # of a latent's size
SKIPPED = {"double_layers": "1", "single_layers": "", "start_percent": 0.0, "end_percent": 1.0}
STEPS = 2


def linked(server: Server, model: Path) -> str:
    place = server.base / "models" / "duogen" / model.name
    if not place.exists():
        place.symlink_to(model, target_is_directory=True)
    return model.name


# ------------------------------------------------------------ a trained one


@pytest.mark.every_comfyui
@pytest.mark.parametrize("attention", ["frame_causal", "full"])
def test_its_answer_equals_the_command_line(
    server: Server, random_wans: dict[str, Path], tmp_path: Path, attention: str
):
    """With an image of the user's own size in view, and one of odd sides that is fitted to the grid."""
    model = random_wans[attention]
    graph = graphs.answer(linked(server, model), "Remove the star.", prefix=f"wan/{attention}", max_images=2)
    options = bring_pictures(server, graph)
    result = server.run(graph)
    ours = saved_document(server, result)
    assert len(ours.last_turn.pictures) == 2 and result.previews >= 2 * 2
    theirs = command_line(tmp_path / "answer", model, "--max-images", "2", *options, prompt="Remove the star.")
    assert_same_answer(ours, theirs)


# ------------------------------------------------------------ a published one, through both loaders


@pytest.fixture(scope="module")
def sampled(server: Server, small_models: None) -> Callable[..., Any]:
    """sampled(loader, nodes, model) -> the latent. loader: "stock" or "ours"; nodes: what stands behind node `unet`."""

    def run(loader: str, nodes: dict[str, Any] | None = None, model: str = "unet", **how: Any) -> Any:
        from safetensors.torch import load_file

        result = server.run(prompted(loader, nodes, model, **how))
        assert result.error is None, result.error
        (saved,) = result.outputs["kept"]["latents"]
        return load_file(server.base / "output" / saved["subfolder"] / saved["filename"])["latent_tensor"]

    return run


def prompted(
    loader: str, nodes: dict[str, Any] | None = None, model: str = "unet", *, file: str = FILE, cfg: float = 3.0
) -> dict[str, Any]:
    """Wan as its makers run it: umT5's text, one frame; the shift is set, as the two loaders begin with another one."""
    load = {
        "stock": node("UNETLoader", unet_name=file, weight_dtype="default"),
        "ours": node("DuoGenLoadDiT", checkpoint=file, convention="auto"),
    }
    return {
        "unet": load[loader],
        **(nodes or {}),
        "shift": node("ModelSamplingSD3", model=[model, 0], shift=5.0),
        "clip": node("CLIPLoader", clip_name=FILE, type="wan"),
        "positive": node("CLIPTextEncode", clip=["clip", 0], text="a red brick wall"),
        "negative": node("CLIPTextEncode", clip=["clip", 0], text="the small blue house"),
        "size": node("EmptyHunyuanLatentVideo", width=96, height=64, length=1, batch_size=1),
        "sample": node(
            "KSampler", model=["shift", 0], positive=["positive", 0], negative=["negative", 0],
            latent_image=["size", 0],
            seed=5, steps=STEPS, cfg=cfg, sampler_name="euler", scheduler="simple", denoise=1.0,
        ),
        "kept": node("SaveLatent", samples=["sample", 0], filename_prefix="wan/latent"),
    }  # fmt: skip


def away(a: Any, b: Any) -> float:
    """The largest difference, where numbers of b are of the size 1."""
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.std())


@pytest.mark.every_comfyui
def test_both_loaders_draw_the_same(sampled: Callable):
    stock = sampled("stock")
    assert stock.std() > 0.1 and away(sampled("ours"), stock) < CLOSE


def in_fp8(weights: dict[str, Any], scaled: bool) -> dict[str, Any]:
    """As Comfy-Org publishes it: matrices in fp8, with a scale each or cast as they are, and the rest in fp32."""
    import torch

    out = {"scaled_fp8": torch.empty(0, dtype=torch.float8_e4m3fn)} if scaled else {}
    for name, weight in weights.items():
        if weight.ndim != 2 or not name.startswith("blocks."):
            out[name] = weight
            continue
        scale = weight.abs().max() / 448 if scaled else torch.tensor(1.0)
        out[name] = (weight / scale).to(torch.float8_e4m3fn)
        if scaled:
            out[f"{name.removesuffix('weight')}scale_weight"] = scale
    return out


@pytest.mark.parametrize("kind", ["fp16", "bf16", "fp8_e4m3fn", "fp8_scaled", "diffusers", "with a prefix"])
def test_every_kind_of_file_draws_what_the_stock_loader_draws(server: Server, sampled: Callable, kind: str):
    """A diffusers file is compared with the original: the stock loader does not read it."""
    import torch
    from safetensors.torch import load_file, save_file

    from duogen_core.weights.wan_keys import to_diffusers

    folder = server.base / "models" / "diffusion_models"
    weights = load_file(folder / FILE)
    changed = {
        "fp16": lambda: {name: weight.half() for name, weight in weights.items()},
        "bf16": lambda: {name: weight.bfloat16() for name, weight in weights.items()},
        "fp8_e4m3fn": lambda: in_fp8(weights, False),
        "fp8_scaled": lambda: in_fp8(weights, True),
        "diffusers": lambda: {to_diffusers(name): weight for name, weight in weights.items()},
        "with a prefix": lambda: {f"model.diffusion_model.{name}": weight for name, weight in weights.items()},
    }[kind]()
    file = folder / f"wan_{kind}.safetensors"
    save_file({name: weight.contiguous() for name, weight in changed.items()}, file)
    stock = sampled("stock", file=FILE if kind == "diffusers" else file.name)
    assert away(sampled("ours", file=file.name), stock) < CLOSE
    file.unlink()
    assert torch.isfinite(stock).all()


LORAS = {
    "comfyui": ("diffusion_model.blocks.{}.{}", {"q": "self_attn.q", "v": "cross_attn.v", "ffn": "ffn.0"}, "AB", "."),
    "official": ("blocks.{}.{}", {"q": "self_attn.q", "v": "cross_attn.v", "ffn": "ffn.0"}, "AB", "."),
    "kohya": ("lora_unet_blocks.{}.{}", {"q": "self_attn.q", "v": "cross_attn.v", "ffn": "ffn.0"}, "down", "_"),
    "diffusers": (
        "transformer.blocks.{}.{}",
        {"q": "attn1.to_q", "v": "attn2.to_v", "ffn": "ffn.net.0.proj"},
        "AB",
        ".",
    ),
}


def write_lora(server: Server, naming: str) -> dict[str, Any]:
    import torch
    from safetensors.torch import save_file

    pattern, layers, halves, dot = LORAS[naming]
    down, up = ("lora_A", "lora_B") if halves == "AB" else ("lora_down", "lora_up")
    noise, tensors = torch.Generator().manual_seed(3), {}
    for block in range(2):
        for key, layer in layers.items():
            name = pattern.format(block, layer).replace(".", dot)
            rows, columns = (96, 128) if key == "ffn" else (128, 128)
            tensors[f"{name}.{down}.weight"] = torch.randn(3, columns, generator=noise) * 0.2
            tensors[f"{name}.{up}.weight"] = torch.randn(rows, 3, generator=noise) * 0.2
            tensors[f"{name}.alpha"] = torch.tensor(6.0)
            if naming == "comfyui":  # a change of the bias, as the distilled LoRAs of Wan have it
                tensors[f"{name}.diff_b"] = torch.randn(rows, generator=noise) * 0.1
    folder = server.base / "models" / "loras"
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / f"wan {naming}.safetensors")
    return {
        "lora": node(
            "LoraLoaderModelOnly", model=["unet", 0], lora_name=f"wan {naming}.safetensors", strength_model=0.7
        )
    }


@pytest.mark.parametrize("naming", ["comfyui", "kohya"])
def test_a_lora_does_the_same_on_both(server: Server, sampled: Callable, naming: str):
    lora, told = write_lora(server, naming), len(server.log)
    stock = sampled("stock", lora, "lora")
    assert away(stock, sampled("stock")) > 0.05
    assert away(sampled("ours", lora, "lora"), stock) < CLOSE
    assert "not loaded" not in server.log[told:].lower()


@pytest.mark.parametrize("naming", ["official", "diffusers"])
def test_a_lora_of_any_naming_is_the_same_lora(server: Server, sampled: Callable, naming: str):
    told = len(server.log)
    found, same = (sampled("ours", write_lora(server, name), "lora") for name in (naming, "kohya"))
    assert away(found, same) < CLOSE < away(found, sampled("ours"))
    assert "not loaded" not in server.log[told:].lower()


def test_a_lora_of_the_other_family_is_told(server: Server, sampled: Callable):
    import torch
    from safetensors.torch import save_file

    name = "diffusion_model.blocks.0.self_attn.q_proj"  # Cosmos'
    folder = server.base / "models" / "loras"
    folder.mkdir(exist_ok=True)
    save_file({f"{name}.lora_{half}.weight": torch.ones(4, 4) for half in "AB"}, folder / "of cosmos.safetensors")
    lora = {
        "lora": node("LoraLoaderModelOnly", model=["unet", 0], lora_name="of cosmos.safetensors", strength_model=1.0)
    }
    result = server.run(prompted("ours", lora, "lora"))
    assert result.error is None
    assert any("This LoRA changes nothing here: none of its layers" in text for text in result.texts)


PATCHES = {
    "SkipLayerGuidanceDiT": {**SKIPPED, "scale": 3.0, "rescaling_scale": 0.0},
    "SkipLayerGuidanceDiTSimple": SKIPPED,
    "ScaleROPE": {"scale_x": 3.0, "shift_x": 0.0, "scale_y": 1.5, "shift_y": 2.0, "scale_t": 1.0, "shift_t": 0.0},
    "RescaleCFG": {"multiplier": 1.0},
    "CFGZeroStar": {},
    "ModelNoiseScale": {"noise_scale": 2.0},
}


@pytest.mark.parametrize("kind", PATCHES)
def test_what_the_stock_wan_honours_ours_honours(sampled: Callable, kind: str):
    patch = {"patch": node(kind, model=["unet", 0], **PATCHES[kind])}
    cfg = 40.0 if "CFG" in kind else 3.0  # the two texts are much alike to random weights
    stock = sampled("stock", patch, "patch", cfg=cfg)
    assert away(stock, sampled("stock", cfg=cfg)) > 1e-3, "the stock MODEL ignores it"
    assert away(sampled("ours", patch, "patch", cfg=cfg), stock) < 10 * CLOSE


def test_save_diffusion_model_keeps_it_whole(server: Server, sampled: Callable):
    graph = prompted("ours", write_lora(server, "comfyui"), "lora")
    graph = {key: graph[key] for key in ("unet", "lora")}
    graph["save"] = node("ModelSave", model=["lora", 0], filename_prefix="diffusion_models/wan_saved")
    assert server.run(graph).error is None
    (file,) = (server.base / "output" / "diffusion_models").glob("wan_saved*")
    file.rename(server.base / "models" / "diffusion_models" / "wan_saved.safetensors")
    assert away(sampled("ours", file="wan_saved.safetensors"), sampled("ours", graph | {}, "lora")) < CLOSE


def test_48_channels_of_wan_22(comfyui: Path):
    """The MODEL of TI2V-5B's form: its own latent format, and the numbers of ComfyUI's own."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("probe_wan22.py")), str(comfyui)],
        capture_output=True, text=True, timeout=300, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["class"] == "WAN22" and found["away"] < CLOSE and found["with a reference"] > 0.1
    assert found["empty"] == [1, 48, 1, 4, 6] and found["statistics"] and found["kept in a file"]
    assert found["shapes"] == {"c_crossattn": [1, 9, 64], "ref_latents": [1, 48, 24]}
    assert "A reference latent has 16 channels, but this MODEL draws in 48" in found["of Wan 2.1"]


# ------------------------------------------------------------ what is told, and what is refused


def sentence(result: Result) -> str:
    assert result.error is not None, "it was not refused"
    assert result.error["exception_type"].endswith(("DuoGenError", "DitError", "WeightError")), result.error
    return result.error["exception_message"]


def test_a_published_one_is_told_to_draw_nothing_from_our_states(server: Server, small_models: None):
    graph = prompted("ours")
    graph["unet"]["inputs"]["convention"] = "post-trained"  # another entry of the cache: it is loaded anew
    texts = server.run(graph).texts
    assert any("draws nothing from a language model's states" in text for text in texts), texts


def first_picture(model: str, other: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's chain, in which these nodes take the place of the loaders or come in beside them."""
    graph = graphs.first_picture(model, steps=STEPS) | other
    graph["kept"] = node("SaveLatent", samples=["p.sample", 0], filename_prefix="wan/refused")
    return graph


def test_a_published_one_has_no_connector(server: Server, small_models: None):
    graph = {"c": node("DuoGenLoadConnector", checkpoint=FILE)}
    graph["shown"] = node("PreviewAny", source=["c", 0])
    message = sentence(server.run(graph))
    assert FILE in message and "Wan" in message and "connector" in message


def test_a_connector_of_another_pair_is_refused_with_both_named(
    server: Server, random_model: Path, random_wans: dict[str, Path], small_models: None
):
    wan = linked(server, random_wans["full"])
    # Other widths: a published Wan reads 64 numbers of a token here, the Cosmos pair's connector gives 48.
    published = {"unet": node("DuoGenLoadDiT", checkpoint=FILE, convention="auto")}
    graph = first_picture(random_model.name, published)
    graph["p.sample"]["inputs"]["model"] = ["unet", 0]
    message = sentence(server.run(graph))
    assert "This MODEL, a Wan of 2 blocks, 128 wide, reads the text states of its own connector, 64 numbers" in message
    assert "text states of width 48, made for a Cosmos" in message
    answer = graphs.answer(random_model.name) | published
    answer["3"]["inputs"]["model"] = ["unet", 0]
    message = sentence(server.run(answer))
    assert "was trained with a Cosmos and gives 48 numbers a token, but this MODEL is a Wan of 2 blocks" in message
    # The same width: the family tells.
    other = {"other": node("DuoGenLoadCheckpoint", checkpoint=wan)}
    graph = first_picture(random_model.name, other)
    graph["p.sample"]["inputs"]["model"] = ["other", 2]
    message = sentence(server.run(graph))
    assert "connector that was trained with a Cosmos, but this MODEL is a Wan of 2 blocks, 64 wide" in message
    graph["other"] = node("DuoGenLoadConnector", checkpoint=wan)
    graph["p.encode"]["inputs"]["connector"] = ["other", 0]
    graph["p.sample"]["inputs"]["model"] = ["1", 2]
    message = sentence(server.run(graph))
    assert "connector that was trained with a Wan, but this MODEL is a Cosmos of 2 blocks, 64 wide" in message


def test_a_controlnet_is_refused(server: Server, random_wans: dict[str, Path]):
    name = linked(server, random_wans["full"])
    graph = first_picture(name, {
        "lines": node("EmptyImage", width=96, height=64, batch_size=1, color=0xFFFFFF),
        "net": node("DuoGenLoadControlNet", controlnet="duogen-tiny"),
        "controlled": node(
            "ControlNetApplyAdvanced", positive=["p.refer", 0], negative=["p.refer", 1], control_net=["net", 0],
            image=["lines", 0], strength=1.0, start_percent=0.0, end_percent=1.0, vae=["1", 3],
        ),
    })  # fmt: skip
    graph["p.sample"]["inputs"] |= {"positive": ["controlled", 0], "negative": ["controlled", 1]}
    message = sentence(server.run(graph))
    assert "ControlNets are made of a Cosmos transformer's blocks, but this MODEL is a Wan of 2 blocks" in message


def test_our_sampler_refuses_reference_latents_in_front_of_a_stock_wan(
    server: Server, random_model: Path, small_models: None
):
    graph = prompted("stock")
    graph |= {
        "1": node("DuoGenLoadCheckpoint", checkpoint=random_model.name),
        "colour": node("EmptyImage", width=96, height=64, batch_size=1, color=0xC03020),
        "latent": node("VAEEncode", pixels=["colour", 0], vae=["1", 3]),
        "seen": node("ReferenceLatent", conditioning=["positive", 0], latent=["latent", 0]),
    }
    settings = graph["sample"]["inputs"] | {"positive": ["seen", 0]}
    graph["sample"] = node("DuoGenSampler", **settings)
    message = sentence(server.run(graph))
    assert "ComfyUI's own Wan (WAN21), draws from words alone" in message
    graph["sample"]["inputs"]["positive"] = ["positive", 0]
    assert server.run(graph).error is None
