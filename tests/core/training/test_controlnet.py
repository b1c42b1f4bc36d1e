"""train controlnet: stopped and continued with the losses of an unbroken run; what it makes draws, image by image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from duogen_core.checkpoint import save_checkpoint
from duogen_core.cli import main
from duogen_core.dit.controlnet import PackedControlNet
from duogen_core.document import Picture
from duogen_core.document.reading import load_document
from duogen_core.outlines import outlines
from duogen_core.picture_sampling import Control, control_pixels
from duogen_core.pipeline import generate
from duogen_core.settings import Settings
from duogen_core.sketchbook.drawing import draw_scene
from duogen_core.sketchbook.scene import COLOURS, Scene, Shape
from duogen_core.training import stage2_data
from tests.core.runs import losses, stopped_in
from tests.core.tiny import random_components, request, scripted

SMALL = ["shards=1", "steps=4", "tokens=600", "blocks=1", "threads=1", "log_every=1", "bf16=false", "tensorboard=false"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_checkpoint(random_components(), tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def trained(model, tmp_path_factory) -> tuple[Path, Path]:
    """(an unbroken run, one that was stopped after two steps and goes on)"""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage2_data, "SHARD", 6)
        train = [f"checkpoint={model}", *SMALL, f"documents={folder / 'documents'}"]
        assert main(["train", "controlnet", f"out={folder / 'whole'}", *train]) == 0
        with stopped_in(1):
            assert main(["train", "controlnet", f"out={folder / 'parts'}", *train]) == 130
        assert main(["train", "controlnet", f"out={folder / 'parts'}", *train]) == 0
    return folder / "whole", folder / "parts"


def test_a_stopped_run_has_the_losses_and_the_weights_of_an_unbroken_one(trained):
    whole, parts = trained
    assert losses(whole) == losses(parts) and len(losses(whole)) == 4
    nets = [PackedControlNet.from_pretrained(run / "export").state_dict() for run in trained]
    assert all(torch.equal(nets[0][name], nets[1][name]) for name in nets[0])
    assert nets[0]["control_blocks.0.after_proj.weight"].abs().max() > 0
    dit = random_components().dit.state_dict()
    assert torch.equal(nets[0]["patch_embed_base.proj.weight"], dit["patch_embed.proj.weight"]), "the DiT's own, frozen"


def test_each_image_has_outlines_of_its_own(trained, tmp_path):
    """The first is drawn freely, as it would be without; the second in outlines, at the strength that is asked for."""
    components = random_components()
    net = PackedControlNet.from_pretrained(trained[0] / "export")
    with torch.no_grad():
        net.control_blocks[0].after_proj.weight.normal_(0, 0.5, generator=torch.Generator().manual_seed(0))
    lines = Picture(outlines(draw_scene(Scene((Shape("centre", "star", "red"),)))))
    drawn = {}
    for name, controls in {
        "free": (),
        "second": (None, Control(net, lines)),
        "weak": (None, Control(net, lines, 0.5)),
        "off": (Control(net, lines, 0.0), None),
    }.items():
        scripted(components, ("One.", "picture"), ("Two.", "picture"), ("Done.", "end"))
        answer = generate(components, request(), Settings(seed=3), controls=controls)
        drawn[name] = [picture.pixels for picture in answer.pictures]
    assert all(np.array_equal(drawn[name][0], drawn["free"][0]) for name in drawn)
    assert np.array_equal(drawn["off"][1], drawn["free"][1])
    others = [drawn["second"][1], drawn["weak"][1], drawn["free"][1]]
    assert len({pixels.tobytes() for pixels in others}) == 3


def test_the_command_line_draws_in_outlines(trained, model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(draw_scene(Scene((Shape("top", "circle", "blue"),)))).save("drawing.png")
    command = ["generate", "Draw a star.", "--model", str(model), "--quiet", "--max-tokens", "4"]
    net = ["--controlnet", str(trained[0] / "export")]
    assert main([*command, "--out", "a", "--control", "drawing.png", "--control-trace", *net]) == 0
    assert load_document("a").turns
    for options, sentence in (
        (["--control", "drawing.png"], "has no ControlNet; name one with --controlnet"),
        (["--control-trace"], "--control-trace is for images drawn in outlines; give their file with --control"),
        (["--control", "drawing.png", "--control-strength", "11", *net], "--control-strength must be between 0 and 10"),
        (["--control", "missing.png", *net], "missing.png"),
        (["--control", "drawing.png", "--controlnet", "."], "No ControlNet in ."),
        (["--control", "drawing.png", *net, "--painter", "comfyui:x.json"], "leave out --painter"),
    ):
        assert main([*command, "--out", "b", *options]) == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 1 and sentence in said[0]


def test_outlines_are_found_between_any_two_colours_and_are_a_pixel_wide():
    """Also where both are equally bright, and the palest pair; nothing on plain ground."""
    for ground in COLOURS:
        for colour in COLOURS:
            if colour == ground:
                continue
            lines = outlines(draw_scene(Scene((Shape("centre", "square", colour),), ground)))[..., 0] > 0
            rows = lines[44:84].sum(1)  # across the square's two upright sides
            assert (rows[6:-6] == 2).all(), f"{colour} on {ground}"
            assert not lines[:20].any() and not lines[-20:].any()


def test_a_control_image_of_another_shape_gives_its_middle():
    pixels = np.zeros((64, 192, 3), np.uint8)
    pixels[:, 64:128] = 255
    assert (control_pixels(Picture(pixels), 32, 32) == 255).all()
    assert control_pixels(Picture(pixels), 192, 64) is not pixels
    assert control_pixels(Picture(pixels), 96, 160).shape == (160, 96, 3)
