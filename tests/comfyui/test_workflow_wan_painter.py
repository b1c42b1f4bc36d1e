"""Wan 2.1 as ComfyUI loads it by itself: it draws the images of an answer and of a plan, from words alone.

The model, its umT5 and its VAE are small and random (small_models.py). The loop is the template 11 Any painter, with
Wan's three stock loaders in the place of Load Checkpoint.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from answers import saved_document
from server import Server
from test_workflow_painter import IDS, graph, painted

SIDE = 128
PLAN = "\n---\n".join(f"Step {number}.\n\nImage: a {colour} wall" for number, colour in ((1, "red"), (2, "blue")))


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def wan(server: Server, latent: str = "EmptyHunyuanLatentVideo") -> dict[str, Any]:
    """The template with Wan: text to video, one frame."""
    nodes = graph(server, "")
    del nodes[IDS["The painter"]]
    nodes |= {
        "unet": node("UNETLoader", unet_name="small_wan.safetensors", weight_dtype="default"),
        "shift": node("ModelSamplingSD3", model=["unet", 0], shift=5.0),
        "clip": node("CLIPLoader", clip_name="small_wan.safetensors", type="wan"),
        "vae": node("VAELoader", vae_name="small_wan.safetensors"),
    }
    for each in ("What the image shows", "What it must not show"):
        nodes[IDS[each]]["inputs"]["clip"] = ["clip", 0]
    length = {"length": 1} if latent == "EmptyHunyuanLatentVideo" else {}
    nodes[IDS["EmptyLatentImage"]] = node(latent, width=SIDE, height=SIDE, batch_size=1, **length)
    nodes[IDS["KSampler"]]["inputs"]["model"] = ["shift", 0]
    nodes[IDS["VAEDecode"]]["inputs"]["vae"] = ["vae", 0]
    return nodes


@pytest.mark.slow
@pytest.mark.every_comfyui
@pytest.mark.usefixtures("small_models")
@pytest.mark.parametrize("latent", ["EmptyHunyuanLatentVideo", "EmptyLatentImage"])
def test_stock_wan_draws_in_the_loop(server: Server, latent: str):
    """One frame of a video is one image; each from its own paragraph, by its own seed."""
    nodes = wan(server, latent)
    first = server.run(nodes)
    one, two = painted(server, first)
    assert one.shape == two.shape == (SIDE, SIDE, 3)
    assert one.std() > 1 and np.abs(one - two).mean() > 1, "a painter that paints nothing"
    assert {"WAN21", "WanTEModel", "WanVAE"} <= set(server.memory()["loaded"])
    assert first.ran.count("unet") <= 1, "loaded anew for each image"
    nodes[IDS["The paragraph, and a style"]]["inputs"]["string_b"] = "a small blue house"
    styled = painted(server, server.run(nodes))
    assert np.abs(styled[0] - one).mean() > 0, "the paragraph did not reach the painter"


@pytest.mark.slow
@pytest.mark.usefixtures("small_models")
def test_stock_wan_draws_a_plan(server: Server):
    """A painter of the kind `text` reads a whole prompt for each image, and none that names an earlier image."""
    nodes = wan(server)
    nodes["plan"] = node(
        "DuoGenPlanFromText", context=[IDS["DuoGenPrompt"], 0], text=PLAN, style="flat drawing", painter="text",
        width=0, height=0,
    )  # fmt: skip
    loop = nodes[IDS["DuoGenLoopOpen"]]["inputs"]
    loop |= {"context": ["plan", 0]}
    loop.pop("mllm", None)
    nodes["reads"] = node("PreviewAny", source=[IDS["DuoGenLoopOpen"], 2])
    result = server.run(nodes)
    document = saved_document(server, result, IDS["DuoGenSaveDocument"])
    assert [picture.size for picture in document.pictures] == [(SIDE, SIDE)] * 2
    assert np.abs(document.pictures[0].pixels.astype(int) - document.pictures[1].pixels).mean() > 0
    read = [shown["text"][0] for name, shown in result.outputs.items() if name.split(".")[-1] == "reads"]
    assert len(read) == 2 and all("wall" in text and "image 1" not in text.lower() for text in read)
