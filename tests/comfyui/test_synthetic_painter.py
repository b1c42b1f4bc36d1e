"""The synthetic engine's painter on a real ComfyUI: a workflow of this pack's nodes, and one that gets a picture."""

from __future__ import annotations

from pathlib import Path

import graphs
import numpy as np
import pytest
from server import Server

from duogen_core.data.runs.presets import load_preset
from duogen_core.data.synthetic import comfyui
from duogen_core.data.synthetic.comfyui_painter import ComfyPainter, Workflow
from duogen_core.data.synthetic.painter import PainterError, Wanted
from duogen_core.document import Picture


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def test_a_workflow_with_places_draws_on_a_real_server(server: Server, random_model: Path):
    """The first picture comes from a prompt and a seed; the next workflow is given it, and turns it over."""
    text = graphs.first_picture(random_model.name, "${prompt}", steps=2)
    text["p.sample"]["inputs"]["seed"] = "${seed}"
    text["shown"] = node("PreviewImage", images=["p.decode", 0])
    given = {
        "1": node("LoadImage", image="${earlier_1}"),
        "2": node("ImageInvert", image=["1", 0]),
        "3": node("PreviewImage", images=["2", 0]),
        "4": node("DuoGenPrompt", text="${prompt} ${seed}"),
    }
    service = comfyui.Server(f"http://127.0.0.1:{server.port}", seconds=300)
    workflows = [Workflow("text.json", text), Workflow("given.json", given)]
    with ComfyPainter(service, workflows, load_preset("synthetic", settings=["picture.min_side=16"])) as painter:
        one, again, other = (painter.paint(Wanted("Draw.", "a red house", seed)) for seed in (5, 5, 6))
        assert one.dtype == np.uint8 and np.array_equal(one, again) and not np.array_equal(one, other)
        earlier = Picture(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
        turned = painter.paint(Wanted("Draw.", "the same", 6, (earlier,)))
        assert np.abs(turned - (255 - earlier.pixels.astype(int))).max() <= 1  # the server's rounding
        text["p.sample"]["inputs"]["sampler_name"] = "no such sampler"
        with pytest.raises(PainterError, match="KSampler .*Value not in list.*no such sampler") as bad_value:
            painter.paint(Wanted("Draw.", "a red house", 5))
        given["2"]["class_type"] = "NodeThatIsNotInstalled"
        with pytest.raises(PainterError, match="NodeThatIsNotInstalled") as missing:
            painter.paint(Wanted("Draw.", "the same", 6, (earlier,)))
        assert bad_value.value.stop and missing.value.stop
        text["p.sample"]["inputs"]["sampler_name"] = "euler"
        text["narrow"] = node("EmptyLatentImage", width=64, height=64, batch_size=1)  # 4 channels, the VAE has 16
        text["p.decode"]["inputs"]["samples"] = ["narrow", 0]
        with pytest.raises(PainterError, match=r"VAEDecode \(node p\.decode\) failed: ") as failed:
            painter.paint(Wanted("Draw.", "a red house", 5))
        assert not failed.value.stop
