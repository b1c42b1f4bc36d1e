"""A whole model whose DiT is a Wan: it answers, is saved and loaded, with either VAE of Wan; others are refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from duogen_core import cli
from duogen_core.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from duogen_core.document import Document, Picture, Text
from duogen_core.identify import identify
from duogen_core.pipeline import generate
from duogen_core.settings import Settings
from duogen_core.vae import PictureVae, new_vae, wan22_vae
from tests.core.dit.families import tiny
from tests.core.tiny import random_components, scripted

VAES = {16: lambda: new_vae(4), 48: lambda: wan22_vae(4, 4)}
SCRIPT = (("A wall.", "picture"), ("A roof.", "picture"), ("Done.", "end"))


@pytest.fixture(params=[16, 48], ids=["Wan 2.1's VAE", "Wan 2.2's VAE"])
def components(request):
    base, channels = random_components(), request.param
    torch.manual_seed(1)
    vae = PictureVae(VAES[channels]())
    dit = tiny("PackedWan", in_channels=channels, out_channels=channels, text_embed_dim=32, attention="frame_causal")
    config = replace(base.config, picture=replace(base.config.picture, width=64, step=vae.size_step))
    return replace(base, dit=dit, vae=vae, config=config)


def answered(components):
    scripted(components, *SCRIPT)
    photo = Picture(np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8))
    asked = Document().begin_turn("user", [Text("Draw a house like this."), photo])
    return generate(components, asked, Settings(seed=3))


def test_it_answers_and_is_the_same_when_loaded_again(components, tmp_path):
    first = answered(components)
    step = components.vae.size_step
    assert [picture.size for picture in first.pictures[1:]] == [(64, step * round(40 * 64 / 70 / step) or step)] * 2
    save_checkpoint(components, tmp_path / "model")
    loaded = load_checkpoint(tmp_path / "model")
    assert loaded.config.picture.step == step and loaded.vae.channels == components.dit.config.out_channels
    again = answered(loaded)
    assert [p.digest for p in again.pictures] == [p.digest for p in first.pictures]
    kinds = {found.kind: found.family for found in identify(tmp_path / "model")}
    assert kinds["DiT"] == "DuoGen's Wan, frame_causal attention" and kinds["VAE"].startswith("Wan 2.")


def test_another_vae_is_refused_by_its_channels(components, tmp_path):
    other = replace(components, vae=PictureVae(VAES[64 - components.vae.channels]()))
    with pytest.raises(CheckpointError, match="draws latents of .* channels, but its VAE has"):
        save_checkpoint(other, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_wan_2_2s_vae_is_written_under_its_original_names(tmp_path):
    vae = PictureVae(wan22_vae(4, 4))
    vae.save_pretrained(tmp_path / "vae")
    assert cli.main(["convert", str(tmp_path / "vae"), str(tmp_path / "vae.safetensors"), "--quiet"]) == 0
    loaded = PictureVae.from_pretrained(tmp_path / "vae.safetensors").model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in vae.model.state_dict().items())


@pytest.mark.parametrize("name", ["dit", "loop"])
def test_a_benchmark_against_diffusers_cosmos_is_refused(components, tmp_path, capsys, name):
    save_checkpoint(components, tmp_path / "model")
    assert cli.main(["bench", name, "--model", str(tmp_path / "model"), "--size", "64x64", "--quiet"]) == 2
    assert "is a PackedWan, and the other side of this benchmark is diffusers' Cosmos" in capsys.readouterr().err


def test_its_blocks_are_written_in_eight_bits(components, tmp_path):
    save_checkpoint(components, tmp_path / "model")
    assert cli.main(["convert", str(tmp_path / "model"), str(tmp_path / "fp8"), "--quantise", "fp8", "--quiet"]) == 0
    loaded = load_checkpoint(tmp_path / "fp8").dit.state_dict()
    assert sum(weight.dtype == torch.float8_e4m3fn for weight in loaded.values()) == 2 * 10
