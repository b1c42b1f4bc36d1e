"""ComfyUI's own nodes that train, merge, save, schedule, compile or move a MODEL: with ours each works, or refuses."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import graphs
import numpy as np
import pytest
from PIL import Image
from server import Result, Server
from test_stock_nodes import node, write_lora

Graph = dict[str, Any]
STEPS = 2


def run(server: Server, checkpoint: str, nodes: Graph | None = None, language: str = "", **sampler: Any) -> Result:
    """The first picture's latent, kept as a file. nodes: further ones; sampler: other inputs of the KSampler."""
    graph = graphs.first_picture(checkpoint, steps=STEPS) | (nodes or {})
    graph["p.sample"]["inputs"].update(sampler)
    graph["kept"] = node("SaveLatent", samples=["p.sample", 0], filename_prefix="stock_models/latent")
    return server.run(graph, extra={"duogen_language": language})


def sampled(server: Server, checkpoint: str, nodes: Graph | None = None, **sampler: Any) -> Any:
    from safetensors.torch import load_file

    result = run(server, checkpoint, nodes, **sampler)
    assert result.error is None, result.error
    (file,) = result.outputs["kept"]["latents"]
    return load_file(server.base / "output" / file["subfolder"] / file["filename"])["latent_tensor"]


def away(a: Any, b: Any) -> float:
    return float((a - b).abs().max())


@pytest.fixture(scope="module")
def plain(server: Server, random_model: Path) -> Any:
    return sampled(server, random_model.name)


# ------------------------------------------------------------ ComfyUI loads the model once more itself


def training(**inputs: Any) -> Graph:
    given = {
        "batch_size": 1, "grad_accumulation_steps": 1, "steps": 3, "learning_rate": 0.02, "rank": 2,
        "optimizer": "AdamW", "loss_function": "MSE", "seed": 1, "training_dtype": "fp32", "lora_dtype": "fp32",
        "quantized_backward": False, "algorithm": "LoRA", "gradient_checkpointing": True, "checkpoint_depth": 1,
        "offloading": False, "existing_lora": "[None]", "bucket_mode": False, "bypass_mode": False,
    }  # fmt: skip
    return {
        "colour": node("EmptyImage", width=64, height=96, batch_size=1, color=0xC03020),
        "to learn": node("VAEEncode", pixels=["colour", 0], vae=["1", 3]),
        "train": node(
            "TrainLoraNode", model=["1", 2], latents=["to learn", 0], positive=["p.refer", 0], **{**given, **inputs}
        ),
    }


@pytest.fixture(scope="module")
def loras(server: Server) -> Path:
    folder = server.base / "models" / "loras"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", [{}, {"training_dtype": "bf16", "lora_dtype": "bf16", "checkpoint_depth": 2}, {"bypass_mode": True}]
)
def test_train_lora(server: Server, random_model: Path, plain: Any, loras: Path, how: dict[str, Any]):
    """The core's own node learns a LoRA on our MODEL, and the stock loader takes it."""
    graph = graphs.first_picture(random_model.name) | training(**how)
    graph["save"] = node("SaveLoRA", lora=["train", 0], prefix="trained/lora", steps=3)
    result = server.run(graph)
    assert result.error is None, result.error
    (file,) = (server.base / "output" / "trained").iterdir()
    shutil.move(file, loras / "trained.safetensors")
    told = len(server.log)
    stock = {"lora": node("LoraLoaderModelOnly", model=["1", 2], lora_name="trained.safetensors", strength_model=1.0)}
    assert away(sampled(server, random_model.name, stock, model=["lora", 0]), plain) > 1e-2
    assert "lora key not loaded" not in server.log[told:] and "NOT LOADED" not in server.log[told:]
    assert away(sampled(server, random_model.name), plain) == 0, "the MODEL that was trained on is as it was"


@pytest.mark.slow
def test_train_lora_on_reference_images_is_refused(server: Server, random_model: Path):
    graph = graphs.first_picture(random_model.name) | training()
    graph["seen"] = node("ReferenceLatent", conditioning=["p.refer", 0], latent=["to learn", 0])
    graph["train"]["inputs"]["positive"] = ["seen", 0]
    graph["loss"] = node("LossGraphNode", loss=["train", 1], filename_prefix="loss")
    error = server.run(graph).error
    assert error and "Train LoRA cannot take a conditioning with reference images" in error["exception_message"]


@pytest.mark.slow
def test_select_device(server: Server, random_model: Path, plain: Any):
    """With one device, the nodes that choose one hand on what they get; a device that is not there is told."""
    for device in ("default", "cpu", "gpu:1"):
        chosen = {
            "device": node("SelectModelDevice", model=["1", 2], device=device),
            "units": node("MultiGPU_WorkUnits", model=["device", 0], max_gpus=2),
            "vae": node("SelectVAEDevice", vae=["1", 3], device="default"),
        }
        assert away(sampled(server, random_model.name, chosen, model=["units", 0]), plain) == 0
    assert "requested device 'gpu:1' not available, passing through unchanged" in server.log


@pytest.fixture(scope="module")
def reloaded(comfyui: Path, random_model: Path) -> dict[str, Any]:
    """What probe_reload.py saw, in a process of its own."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("probe_reload.py")), str(comfyui), str(random_model)],
        capture_output=True, text=True, timeout=300, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("part", ["checkpoint", "dit", "vae"])
def test_comfyui_can_load_the_weights_once_more(reloaded: dict[str, Any], part: str):
    """As it does for hooks under dynamic memory management, and for a second card."""
    assert reloaded[part] == {"other module": True, "same weights": True, "classic": True, "patches kept": True}


# ------------------------------------------------------------ merging and saving


@pytest.fixture(scope="module")
def other_model(server: Server, random_model: Path) -> str:
    """The same checkpoint with other weights of the DiT."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = server.base / "models" / "duogen" / "other"
    shutil.copytree(random_model, folder)
    torch.manual_seed(11)
    file = folder / "dit" / "diffusion_pytorch_model.safetensors"
    weights = {name: value + torch.randn_like(value) * 0.1 for name, value in load_file(file).items()}
    save_file(weights, file)
    return folder.name


def by_hand(server: Server, random_model: Path, other: str, name: str, weigh: Any) -> str:
    """A checkpoint whose DiT has the weights weigh(name of the tensor, this one's, the other's)."""
    from safetensors.torch import load_file, save_file

    folder, file = server.base / "models" / "duogen" / name, "dit/diffusion_pytorch_model.safetensors"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(random_model, folder)
    one, two = load_file(random_model / file), load_file(server.base / "models" / "duogen" / other / file)
    save_file({key: weigh(key, one[key], two[key]) for key in one}, folder / file)
    return folder.name


def merging(kind: str, other: str, **inputs: Any) -> Graph:
    return {
        "other": node("DuoGenLoadDiT", checkpoint=other, convention="auto"),
        "merged": node(kind, model1=["1", 2], model2=["other", 0], **inputs),
    }


BLOCKS = {f"transformer_blocks.{i}.": 0.25 for i in range(1, 60)}
QWEN = ("pos_embeds.", "img_in.", "txt_norm.", "txt_in.", "time_text_embed.", "proj_out.")
MERGES = {
    # node -> (its inputs, what it should make of a weight of this model and one of the other)
    "ModelMergeSimple": ({"ratio": 0.5}, lambda name, a, b: (a + b) / 2),
    "ModelMergeAdd": ({}, lambda name, a, b: a + b),
    "ModelMergeSubtract": ({"multiplier": 0.5}, lambda name, a, b: (a - b) / 2),
    "ModelMergeBlocks": ({"input": 0.5, "middle": 1.0, "out": 1.0}, lambda name, a, b: (a + b) / 2),
    "ModelMergeQwenImage": (
        {**dict.fromkeys(QWEN, 1.0), "transformer_blocks.0.": 0.0, **BLOCKS},
        lambda name, a, b: b if "blocks.0." in name else a * 0.25 + b * 0.75 if "blocks.1." in name else a,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", MERGES)
def test_merged_weights_are_those_worked_out_by_hand(
    server: Server, random_model: Path, plain: Any, other_model: str, kind: str
):
    inputs, weigh = MERGES[kind]
    expected = sampled(server, by_hand(server, random_model, other_model, f"by hand {kind}", weigh))
    told = len(server.log)
    found = sampled(server, random_model.name, merging(kind, other_model, **inputs), model=["merged", 0])
    assert away(found, expected) < 1e-4 < away(expected, plain)
    assert "NOT MERGED" not in server.log[told:]


@pytest.mark.slow
def test_models_of_two_kinds_are_not_merged(server: Server, random_model: Path):
    import random_checkpoint

    wide = random_checkpoint.write(server.base / "models" / "duogen" / "wide", heads=3)
    deep = random_checkpoint.write(server.base / "models" / "duogen" / "deep", layers=3)
    for folder, said in ((wide, "is 96x72 in one, 64x72 in this MODEL"), (deep, "has transformer_blocks.2.")):
        result = run(
            server, random_model.name, merging("ModelMergeSimple", folder.name, ratio=0.5), model=["merged", 0]
        )
        assert result.error and said in result.error["exception_message"], result.error


def saved(server: Server, graph: Graph, folder: str) -> str:
    """Runs a graph whose node writes one file to output/saved; puts that into models/{folder}."""
    result = server.run(graph)
    assert result.error is None, result.error
    (file,) = (server.base / "output" / "saved").iterdir()
    place = server.base / "models" / folder / "saved.safetensors"
    place.parent.mkdir(exist_ok=True)
    shutil.move(file, place)
    return place.name


@pytest.mark.slow
@pytest.mark.parametrize("merge", [False, True])
def test_save_diffusion_model_loads_again(
    server: Server, random_model: Path, plain: Any, other_model: str, merge: bool
):
    """The file has the weights as they are used, with LoRAs and merges, and what no weight shows: that earlier images
    see only what stands before them, what the latents look like, how it is sampled."""
    seen = {
        "colour": node("EmptyImage", width=64, height=96, batch_size=1, color=0xC03020),
        "latent": node("VAEEncode", pixels=["colour", 0], vae=["1", 3]),
        "seen": node("ReferenceLatent", conditioning=["p.refer", 0], latent=["latent", 0]),
    }
    graph = graphs.first_picture(random_model.name, steps=STEPS)
    graph |= merging("ModelMergeSimple", other_model, ratio=0.5)
    source = ["merged", 0] if merge else ["1", 2]
    graph["save"] = node("ModelSave", model=source, filename_prefix="saved/model")
    again = {"again": node("DuoGenLoadDiT", checkpoint=saved(server, graph, "diffusion_models"), convention="auto")}
    if merge:
        mean = by_hand(server, random_model, other_model, "by hand, saved", lambda name, a, b: (a + b) / 2)
    else:
        mean = random_model.name
    expected = sampled(server, mean, seen, positive=["seen", 0])
    found = sampled(server, random_model.name, again | seen, model=["again", 0], positive=["seen", 0])
    assert away(found, expected) < 1e-4 < away(found, plain)
    assert (away(found, sampled(server, random_model.name, seen, positive=["seen", 0])) > 1e-2) == merge


@pytest.mark.slow
def test_save_vae_loads_again(server: Server, random_model: Path):
    graph = graphs.first_picture(random_model.name, steps=STEPS)
    graph["save"] = node("VAESave", vae=["1", 3], filename_prefix="saved/vae")
    graph["again"] = node("VAELoader", vae_name=saved(server, graph, "vae"))
    graph["own"] = node("PreviewImage", images=["p.decode", 0])
    del graph["save"]
    graph["by again"] = {**graph["p.decode"], "inputs": {**graph["p.decode"]["inputs"], "vae": ["again", 0]}}
    graph["other"] = node("PreviewImage", images=["by again", 0])
    result = server.run(graph)
    assert result.error is None, result.error
    images = [server.get_bytes("/view", **result.outputs[name]["images"][0]) for name in ("own", "other")]
    own, other = (np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) for png in images)
    assert own.shape == other.shape and (own == other).all() and own.std() > 1


# ------------------------------------------------------------ hooks: a LoRA for some steps, or for one branch

SEEN: Graph = {
    "colour": node("EmptyImage", width=64, height=96, batch_size=1, color=0xC03020),
    "latent": node("VAEEncode", pixels=["colour", 0], vae=["1", 3]),
    "seen": node("ReferenceLatent", conditioning=["p.refer", 0], latent=["latent", 0]),
    "seen too": node("ReferenceLatent", conditioning=["p.refer", 1], latent=["latent", 0]),
}  # an earlier image in both branches, whose keys and values the MODEL keeps as long as its weights stay


@pytest.fixture(scope="module")
def hooked(server: Server, random_model: Path, loras: Path) -> Any:
    """hooked(nodes, inputs of the KSampler…) -> a latent, with an image in view and the LoRA at hand as "lora"."""
    write_lora(server, random_model, "comfyui")

    def run(nodes: Graph | None = None, **sampler: Any) -> Any:
        lora = node("LoraLoaderModelOnly", model=["1", 2], lora_name="comfyui.safetensors", strength_model=0.5)
        given = {"positive": ["seen", 0], "negative": ["seen too", 0], **sampler}
        return sampled(server, random_model.name, SEEN | {"lora": lora} | (nodes or {}), **given)

    return run


def hook(*, positive: bool = True, negative: bool = True, until: float | None = None) -> Graph:
    """The LoRA as a hook of one branch or both, at nodes "p" and "n"; until: the share of the run that it is for."""
    nodes = {"hook": node("CreateHookLoraModelOnly", lora_name="comfyui.safetensors", strength_model=0.5)}
    if until is not None:
        nodes |= {
            "first": node("CreateHookKeyframe", strength_mult=1.0, start_percent=0.0),
            "then": node("CreateHookKeyframe", strength_mult=0.0, start_percent=until, prev_hook_kf=["first", 0]),
            "scheduled": node("SetHookKeyframes", hooks=["hook", 0], hook_kf=["then", 0]),
        }
    hooks = ["hook" if until is None else "scheduled", 0]
    pair = node(
        "PairConditioningSetProperties", positive_NEW=["seen", 0], negative_NEW=["seen too", 0], strength=1.0,
        set_cond_area="default", hooks=hooks,
    )  # fmt: skip
    return nodes | {"pair": pair}


@pytest.mark.slow
def test_a_hook_lora_is_the_lora_and_leaves_nothing_behind(hooked: Any):
    plain, whole = hooked(), hooked(model=["lora", 0])
    assert away(whole, plain) > 0.1
    found = hooked(hook(), positive=["pair", 0], negative=["pair", 1])
    assert away(found, whole) < 1e-4
    assert away(hooked(), plain) == 0, "keys and values of the earlier image are those of the weights"


@pytest.mark.slow
def test_a_scheduled_lora_holds_for_its_steps(hooked: Any):
    """Until 0.4 of the time: the first two of four steps, as two samplers in a row do it."""
    found = hooked(hook(until=0.4), positive=["pair", 0], negative=["pair", 1], steps=4)

    def part(model: list, latent: list, start: int, end: int) -> Graph:
        return node(
            "KSamplerAdvanced", model=model, positive=["seen", 0], negative=["seen too", 0], latent_image=latent,
            add_noise="enable" if start == 0 else "disable", noise_seed=7, steps=4, cfg=2.0, sampler_name="euler",
            scheduler="simple", start_at_step=start, end_at_step=end,
            return_with_leftover_noise="enable" if end < 4 else "disable",
        )  # fmt: skip

    both = {"early": part(["lora", 0], ["p.size", 0], 0, 2), "p.sample": part(["1", 2], ["early", 0], 2, 4)}
    expected = hooked(both)
    assert away(found, expected) < 1e-4
    assert away(found, hooked(steps=4)) > 1e-2 and away(found, hooked(steps=4, model=["lora", 0])) > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("branch", ["positive", "negative"])
def test_a_hook_of_one_branch_is_for_that_branch(hooked: Any, branch: str):
    """In one step the image is what guidance makes of the two branches: negative + 2 (positive - negative)."""
    place = {"positive": 0, "negative": 1}[branch]
    found = hooked(hook(), **{branch: ["pair", place]}, steps=1)
    models = {"positive": ["1", 2], "negative": ["1", 2], branch: ["lora", 0]}
    positive, negative = (
        hooked(steps=1, cfg=1.0, model=models["positive"]),
        hooked(steps=1, cfg=0.0, model=models["negative"]),
    )
    assert away(found, negative + 2 * (positive - negative)) < 1e-3 < 0.1 < away(found, hooked(steps=1))


@pytest.mark.slow
def test_a_model_as_lora_must_be_one_that_comfyui_knows(server: Server, random_model: Path, hooked: Any):
    """Create Hook Model as LoRA reads checkpoints of ComfyUI's own kinds; what it reads does not go onto our MODEL."""
    graph = graphs.first_picture(random_model.name, steps=STEPS)
    graph["save"] = node("ModelSave", model=["1", 2], filename_prefix="saved/model")
    name = saved(server, graph, "checkpoints")
    graph = hook() | {"hook": node("CreateHookModelAsLoraModelOnly", ckpt_name=name, strength_model=1.0)}
    result = run(server, random_model.name, SEEN | graph, positive=["pair", 0], negative=["pair", 1])
    assert result.error and "Could not detect model type" in result.error["exception_message"]


# ------------------------------------------------------------ torch.compile


@pytest.mark.slow
def test_a_compiled_model_draws_the_same(server: Server, random_model: Path, hooked: Any):
    """The pieces of its blocks are compiled, once: another seed compiles nothing more, and without the node nothing is
    compiled. (Torch Compile Model itself, with inductor, takes two minutes for this tiny model: 4.8e-6 away.)"""
    compile_ = {"compiled": node("CompileAndCount", model=["1", 2])}
    plain, counted = hooked(), [server.get("/duogen_test/compiled")]
    for seed in (7, 8):
        found = hooked(compile_, model=["compiled", 0], seed=seed)
        assert away(found, hooked(seed=seed)) < 1e-4
        counted.append(server.get("/duogen_test/compiled"))
    assert counted[0] < counted[1] == counted[2], counted
    assert away(hooked(), plain) == 0 and server.get("/duogen_test/compiled") == counted[2]


@pytest.mark.slow
def test_cudagraphs_are_refused(server: Server, random_model: Path):
    nodes = {"compiled": node("TorchCompileModel", model=["1", 2], backend="cudagraphs")}
    error = run(server, random_model.name, nodes, model=["compiled", 0]).error
    assert error and "cannot be compiled with the backend 'cudagraphs'" in error["exception_message"]
    chinese = run(server, random_model.name, nodes, language="zh", model=["compiled", 0]).error
    assert chinese and "无法用后端 'cudagraphs' 编译" in chinese["exception_message"]
    sampled(server, random_model.name)
