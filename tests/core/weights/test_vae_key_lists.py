"""The published Wan 2.1 VAE, by the names and shapes of its tensors: both layouts load whole, anything else is refused.

key_lists/wan_2.1_vae.*.txt: one list from ComfyUI's class, one from diffusers'.
"""

from __future__ import annotations

import json

import pytest
import torch

from duogen_core import cli
from duogen_core.errors import DuoGenError
from duogen_core.identify import identify
from duogen_core.vae import PictureVae, new_vae, original_key
from tests.core.headers import hollow, key_list

OFFICIAL, DIFFUSERS = key_list("wan_2.1_vae.official"), key_list("wan_2.1_vae.diffusers")
PARAMETERS = 126_892_531


def folder(path, shapes):
    """As diffusers publishes it."""
    path.mkdir()
    hollow(path / "diffusion_pytorch_model.safetensors", shapes)
    with torch.device("meta"):
        config = dict(new_vae(96).config)
    (path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKLWan", **config}))
    return path


def test_our_names_join_the_lists_of_both_classes():
    assert {original_key(name): shape for name, shape in DIFFUSERS.items()} == OFFICIAL


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_the_published_vae_loads_with_nothing_missing_and_nothing_over(tmp_path, kind):
    if kind == "file":
        path = hollow(tmp_path / "wan_2.1_vae.safetensors", OFFICIAL)
    else:
        path = folder(tmp_path / "vae", DIFFUSERS)
    vae = PictureVae.from_pretrained(path).model
    assert sum(p.numel() for p in vae.parameters()) == PARAMETERS and not any(p.is_meta for p in vae.parameters())
    assert {name: tuple(tensor.shape) for name, tensor in vae.state_dict().items()} == DIFFUSERS
    (found,) = identify(path)
    assert (found.kind, found.family, found.parameters) == ("VAE", "Wan 2.1", PARAMETERS)


def without(shapes, name):
    return {each: shape for each, shape in shapes.items() if each != name}


LAST = {"official": "decoder.head.2.weight", "diffusers": "decoder.conv_out.weight"}
MUTATIONS = {
    "renamed": (lambda s, n: {**without(s, n), f"{n}x": s[n]}, "1 of 194 tensors are missing .*1 do not belong there"),
    "missing": (without, "1 of 194 tensors are missing"),
    "one more": (lambda s, n: {**s, "decoder.extra.weight": (2, 2)}, "1 do not belong there .decoder.extra.weight"),
    "wrong shape": (
        lambda s, n: {**s, n: (3, 48, 3, 3, 3)},
        r"1 have another shape .*is \[3, 48, 3, 3, 3\] instead of",
    ),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_changed_list_is_refused_by_name(tmp_path, mutation, capsys):
    change, match = MUTATIONS[mutation]
    path = hollow(tmp_path / "vae.safetensors", change(OFFICIAL, LAST["official"]))
    with pytest.raises(DuoGenError, match=match) as caught:
        PictureVae.from_pretrained(path)
    assert mutation == "one more" or LAST["official"] in str(caught.value)
    path = folder(tmp_path / "vae", change(DIFFUSERS, LAST["diffusers"]))
    with pytest.raises(DuoGenError, match=match) as caught:
        PictureVae.from_pretrained(path)
    assert mutation == "one more" or LAST["diffusers"] in str(caught.value)
    assert cli.main(["convert", str(path), str(tmp_path / "out.safetensors"), "--quiet"]) == 2
    said = capsys.readouterr().err
    assert mutation == "one more" or LAST["diffusers"] in said
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("other", ["cosmos_predict2.5_2b.official", "mllm-qwen2.5-vl-3b"])
def test_another_model_is_refused(tmp_path, other):
    path = hollow(tmp_path / "model.safetensors", key_list(other))
    with pytest.raises(DuoGenError, match="is not a Wan VAE: it has no tensor decoder.head.0.gamma"):
        PictureVae.from_pretrained(path)


def test_another_number_of_channels_is_refused(tmp_path):
    for channels, match in (
        (48, "have another shape .*conv1.weight"),
        (32, "a video VAE with 32 latent chan"),
    ):
        sizes = {"conv1.weight": (2 * channels,) * 2 + (1, 1, 1), "conv2.weight": (channels, channels, 1, 1, 1)}
        with pytest.raises(DuoGenError, match=match):
            PictureVae.from_pretrained(hollow(tmp_path / "vae.safetensors", {**OFFICIAL, **sizes}))


def test_the_lists_of_wan_2_2s_vae_name_one_model(tmp_path):
    """One from ComfyUI's class, one from diffusers'."""
    official, diffusers = key_list("wan_2.2_vae.official"), key_list("wan_2.2_vae.diffusers")
    assert {original_key(name, True): shape for name, shape in diffusers.items()} == official
    (found,) = identify(hollow(tmp_path / "wan2.2_vae.safetensors", official))
    assert (found.kind, found.family, found.parameters) == ("VAE", "Wan 2.2, 48 channels", 704_688_668)
    name = "decoder.upsamples.3.upsamples.1.residual.2.weight"
    with pytest.raises(DuoGenError, match="1 of 196 tensors are missing .*1 do not belong there"):
        PictureVae.from_pretrained(hollow(tmp_path / "x.safetensors", without({**official, "x": (2, 2)}, name)))


@pytest.mark.slow
def test_wan_2_2s_vae_loads_whole(tmp_path):
    vae = PictureVae.from_pretrained(hollow(tmp_path / "vae.safetensors", key_list("wan_2.2_vae.official"))).model
    assert {name: tuple(t.shape) for name, t in vae.state_dict().items()} == key_list("wan_2.2_vae.diffusers")
    assert not any(p.is_meta for p in vae.parameters())
