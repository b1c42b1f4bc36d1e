"""Qwen-Image-Edit, FLUX.2 and OmniGen2 in the loop: the workflows as they are shipped, with the core's own classes.

The models are small and random (small_models.py). Each picture is painted from its own step, and from the earlier
pictures that were chosen for it.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from answers import saved_document
from PIL import Image
from server import PACK, Result, Server
from ui_to_api import convert

SMALL = {
    "13 Qwen-Image-Edit paints": {"unet_name": "small_qwen", "clip_name": "small_qwen", "vae_name": "small_wan"},
    "12 FLUX.2 paints": {"unet_name": "small_flux2", "clip_name": "small_flux2", "vae_name": "small_flux2"},
    "14 OmniGen2 paints": {"unet_name": "small_omnigen2", "clip_name": "small_omnigen2", "vae_name": "small_flux"},
}
CLASSES = {
    "13 Qwen-Image-Edit paints": {"QwenImage", "QwenImageTEModel_", "WanVAE"},
    "12 FLUX.2 paints": {"Flux2", "Flux2TEModel_", "AutoencoderKL"},
    "14 OmniGen2 paints": {"Omnigen2", "Omnigen2TEModel_", "AutoencodingEngine"},
}
SIDE = 128
STEP, WHICH = "What to paint, and a style", "The first image and the last two"


def workflow(name: str) -> dict[str, Any]:
    return json.loads((PACK / "workflows" / f"{name}.json").read_text("utf-8"))


def loaded(server: Server, name: str, small: dict[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The shipped graph with small models, small pictures and few steps; its node ids by title or class."""
    nodes = convert(workflow(name), server.get("/object_info"))
    ids = {node.get("title") or node["type"]: str(node["id"]) for node in workflow(name)["nodes"]}
    few = {"checkpoint": "random", "width": SIDE, "height": SIDE, "steps": 2, "max_images": 2}
    replaced = few | {key: f"{value}.safetensors" for key, value in small.items()}
    for node in nodes.values():
        node["inputs"].update({key: value for key, value in replaced.items() if key in node["inputs"]})
    return nodes, ids


def painted(server: Server, result: Result, ids: dict[str, str]) -> list[np.ndarray]:
    document = saved_document(server, result, ids["DuoGenSaveDocument"])
    assert document.text == "First a wall. Now the roof Now the roof"
    return [picture.pixels.astype(int) for picture in document.pictures]


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_painter_sees_the_step_and_the_chosen_pictures(server: Server, small_models: None, name: str):
    graph, ids = loaded(server, name, SMALL[name])
    first = server.run(graph)
    one, two = painted(server, first, ids)
    assert one.shape == two.shape == (SIDE, SIDE, 3)
    assert one.std() > 1 and two.std() > 1, "a painter that paints nothing"
    assert CLASSES[name] <= set(server.memory()["loaded"])
    assert first.ran.count(ids["The painter"]) == 1, "loaded anew for each picture"
    assert len([node for node in first.outputs if node.split(".")[-1] == ids["Each image, as it is made"]]) == 2

    if "megapixels" in graph[ids[WHICH]]["inputs"]:
        graph[ids[WHICH]]["inputs"]["megapixels"] = 0.004
        assert np.abs(painted(server, server.run(graph), ids)[1] - two).mean() > 0, "looked at in full size"
    graph[ids[WHICH]]["inputs"]["which"] = "none"
    alone = painted(server, server.run(graph), ids)
    assert np.array_equal(alone[0], one), "there was nothing to look at yet"
    assert np.abs(alone[1] - two).mean() > 0, "picture 1 did not reach the painter"

    graph[ids[STEP]]["inputs"]["string_b"] = " A woodcut in black and red."
    styled = painted(server, server.run(graph), ids)
    assert np.abs(styled[0] - one).mean() > 0 and np.abs(styled[1] - alone[1]).mean() > 0, "nor did the step"


@pytest.mark.slow
def test_which_earlier_images(server: Server):
    """Five pictures, 16, 32, … pixels wide; what is chosen comes in order, and what is not there is empty."""
    chosen = {"1, last": [1, 5], "last 2": [4, 5], "last": [5], "2-3, 9": [2, 3], "all": [3, 4, 5], "none": []}
    images = {f"images.image{k}": [f"picture {k}", 0] for k in range(1, 6)}
    graph: dict[str, Any] = {"prompt": {"class_type": "DuoGenPrompt", "inputs": {"text": "Look.", **images}}}
    for k in range(1, 6):
        size = {"width": 16 * k, "height": 16, "batch_size": 1, "color": 0}
        graph[f"picture {k}"] = {"class_type": "EmptyImage", "inputs": size}
    for which, numbers in chosen.items():
        graph[which] = {"class_type": "DuoGenEarlierImages", "inputs": {"context": ["prompt", 0], "which": which}}
        for slot in range(3):
            kind, name = ("PreviewImage", "images") if slot < len(numbers) else ("PreviewAny", "source")
            graph[f"{which}: {slot}"] = {"class_type": kind, "inputs": {name: [which, slot]}}
        graph[f"{which}: count"] = {"class_type": "PreviewAny", "inputs": {"source": [which, 3]}}
    result = server.run(graph)
    assert result.error is None, result.error
    for which, numbers in chosen.items():
        assert result.outputs[f"{which}: count"]["text"] == [str(len(numbers))]
        for slot in range(3):
            shown = result.outputs[f"{which}: {slot}"]
            if slot >= len(numbers):
                assert shown["text"] == ["None"]
                continue
            (view,) = shown["images"]
            with Image.open(server.base / view["type"] / view["subfolder"] / view["filename"]) as picture:
                assert picture.size == (16 * numbers[slot], 16)
    graph[which]["inputs"]["which"] = "first"
    assert "write all, none, planned, last 2, or numbers" in server.run(graph).error["exception_message"]


@pytest.mark.parametrize("name", [*SMALL, "18 Any writer"])
def test_the_front_end_is_told_where_the_files_are_found(name: str):
    folders = {"UNETLoader": "diffusion_models", "CLIPLoader": "text_encoders", "VAELoader": "vae"}
    loaders = [node for node in workflow(name)["nodes"] if node["type"] in folders]
    assert {node["type"] for node in loaders} == set(folders)
    for loader in loaders:
        (model,) = loader["properties"]["models"]
        assert model["name"] == loader["widgets_values"][0] and model["directory"] == folders[loader["type"]]
        assert model["url"].startswith("https://huggingface.co/") and model["url"].endswith("/" + model["name"])
