"""The picture VAE: single-frame path equals the stock video path, files, sizes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from duogen_core.errors import DuoGenError
from duogen_core.vae import (
    WAN22_MEAN,
    WAN22_STD,
    PictureVae,
    VaeError,
    decode_frame,
    encode_frame,
    fit_pixels,
    fit_size,
    new_vae,
    original_key,
    pixels_to_tensor,
    tensor_to_pixels,
    wan22_vae,
)


@pytest.fixture(scope="module", params=["Wan 2.1", "Wan 2.2"])
def any_vae(request):
    return random_vae(request.param)


@pytest.fixture(scope="module")
def vae():
    return random_vae("Wan 2.1")


def random_vae(version: str):
    torch.manual_seed(0)
    model = wan22_vae(8, 8) if version == "Wan 2.2" else new_vae(8)
    with torch.no_grad():  # every weight random, the slices that a picture must not meet included
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model.eval()


def pictures(batch: int, height: int, width: int) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("height,width", [(64, 64), (32, 96)])
def test_single_frame_equals_the_video_path(any_vae, height, width):
    vae = any_vae
    image = pictures(2, height, width)
    with torch.no_grad():
        stock = vae.encode(image[:, :, None]).latent_dist
        mean, logvar = encode_frame(vae, image)
        torch.testing.assert_close(mean, stock.mean[:, :, 0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(logvar, stock.logvar[:, :, 0], atol=1e-5, rtol=1e-5)
        latent = torch.randn_like(mean)
        stock = vae.decode(latent[:, :, None]).sample[:, :, 0]
        torch.testing.assert_close(decode_frame(vae, latent), stock, atol=1e-5, rtol=1e-5)
        assert stock.std() > 0.01  # not equal because both are flat


def test_one_picture_is_one_latent_frame_that_of_a_video_which_begins_with_it(any_vae):
    video = torch.rand(1, 3, 5, 64, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1
    with torch.no_grad():
        first, alone = (any_vae.encode(x).latent_dist.mean for x in (video, video[:, :, :1]))
    assert alone.shape[2] == 1 and first.shape[2] == 2
    assert torch.equal(first[:, :, :1], alone)


def test_the_vae_of_wan_2_2_has_cells_of_16_pixels_and_48_channels():
    vae = PictureVae(random_vae("Wan 2.2"))
    assert (vae.channels, vae.spatial, vae.size_step) == (48, 16, 32)
    pixels = (np.random.default_rng(0).random((32, 96, 3)) * 255).astype(np.uint8)
    latent = vae.encode(pixels)
    assert latent.shape == vae.latent_shape(96, 32) == (1, 48, 2, 6)
    mean, std = (torch.tensor(each).view(1, 48, 1, 1) for each in (WAN22_MEAN, WAN22_STD))
    raw, _ = encode_frame(vae.model, pixels_to_tensor(pixels))
    torch.testing.assert_close(latent * std + mean, raw, atol=1e-6, rtol=1e-6)
    assert vae.decode_pixels(latent).shape == (32, 96, 3)
    with pytest.raises(VaeError, match="multiples of 32; it was given .* to \\(64, 32\\)"):
        vae.encode(np.zeros((32, 48, 3), np.uint8))


def test_single_frame_gradients_equal_the_video_path(vae):
    image = pictures(1, 32, 32)

    def gradients(frame: bool) -> dict[str, torch.Tensor]:
        vae.zero_grad(set_to_none=True)
        if frame:
            out = decode_frame(vae, encode_frame(vae, image)[0], clamp=True)
        else:
            out = vae.decode(vae.encode(image[:, :, None]).latent_dist.mean).sample[:, :, 0]
        (out - image).square().mean().backward()
        return {name: p.grad for name, p in vae.named_parameters() if p.grad is not None}

    fast, stock = gradients(True), gradients(False)
    assert fast.keys() == stock.keys()
    for name, gradient in fast.items():
        torch.testing.assert_close(gradient, stock[name], atol=1e-5, rtol=1e-3, msg=name)


def test_new_vae_keeps_the_signal_and_never_uses_dead_slices():
    torch.manual_seed(0)
    model = new_vae(16)
    assert model.config.latents_mean[5] == 0.9653 and model.config.latents_std[0] == 2.8184
    assert all(bool((m.weight[:, :, :-1] == 0).all()) for m in model.modules() if isinstance(m, torch.nn.Conv3d))


def test_encode_normalises_and_decode_undoes_it(vae):
    picture_vae = PictureVae(vae)
    pixels = (np.random.default_rng(0).random((32, 48, 3)) * 255).astype(np.uint8)
    latent = picture_vae.encode(pixels)
    assert latent.shape == (1, 16, 4, 6)
    mean, _ = encode_frame(vae, pixels_to_tensor(pixels))
    expected = (mean - torch.tensor(vae.config.latents_mean).view(1, 16, 1, 1)) / torch.tensor(
        vae.config.latents_std
    ).view(1, 16, 1, 1)
    torch.testing.assert_close(latent, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(picture_vae.decode(latent), decode_frame(vae, mean), atol=1e-5, rtol=1e-5)
    assert picture_vae.decode_pixels(latent).shape == (32, 48, 3)


def test_folder_and_single_file_load_the_same_weights(any_vae, tmp_path):
    vae = any_vae
    picture_vae = PictureVae(vae)
    picture_vae.save_pretrained(tmp_path / "vae")
    save_file(picture_vae.to_single_file(), tmp_path / "vae.safetensors")
    for path in (tmp_path / "vae", tmp_path / "vae.safetensors"):
        loaded = PictureVae.from_pretrained(path).model.state_dict()
        assert all(torch.equal(loaded[key], tensor) for key, tensor in vae.state_dict().items())


def test_a_folder_that_holds_just_the_file_is_read_as_the_file(vae, tmp_path):
    """As the vae/ of a checkpoint; with two files in it nobody can know which is meant."""
    save_file(PictureVae(vae).to_single_file(), tmp_path / "wan_vae.safetensors")
    (tmp_path / "README.md").write_text("A VAE.")
    image = pictures(1, 32, 32)
    assert torch.equal(PictureVae.from_pretrained(tmp_path).encode(image), PictureVae(vae).encode(image))
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(VaeError, match="No VAE in"):
        PictureVae.from_pretrained(tmp_path)


def test_original_names_are_those_diffusers_converts_back(vae):
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    names = {original_key(key): torch.zeros(1) for key in vae.state_dict()}
    assert set(convert_wan_vae_to_diffusers(dict(names))) == set(vae.state_dict())


def test_bad_files_are_named(vae, tmp_path):
    with pytest.raises(VaeError, match=r"config\.json"):
        PictureVae.from_pretrained(tmp_path / "nowhere")
    tensors = PictureVae(vae).to_single_file()
    tensors["encoder.conv1.weight"] = torch.zeros(3, 3)
    save_file(tensors, tmp_path / "wrong.safetensors")
    with pytest.raises(DuoGenError, match=r"1 have another shape \(encoder\.conv1\.weight is \[3, 3\] instead of"):
        PictureVae.from_pretrained(tmp_path / "wrong.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(VaeError, match=r"not a Wan VAE"):
        PictureVae.from_pretrained(tmp_path / "foreign.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "wrong.safetensors").read_bytes()[:5000])
    with pytest.raises(DuoGenError, match="cut.safetensors is cut off"):
        PictureVae.from_pretrained(tmp_path / "cut.safetensors")


def test_sizes(vae):
    assert fit_size(128, 96) == (128, 96)
    assert fit_size(131, 7) == (128, 16)
    with pytest.raises(VaeError, match="multiples of 16"):
        PictureVae(vae).encode(np.zeros((20, 32, 3), np.uint8))
    assert fit_pixels(np.zeros((20, 33, 3), np.uint8)).shape == (16, 32, 3)
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    assert np.array_equal(tensor_to_pixels(pixels_to_tensor(pixels)), pixels)


@pytest.mark.parametrize("side", [0, -2, 3, None, "2", [2]])
def test_a_side_of_a_patch_that_does_not_go_with_the_channels_is_named(side, tmp_path):
    PictureVae(wan22_vae(4, 4)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"patch_size": side}))
    with pytest.raises(VaeError, match=r"has patch_size .* and in_channels 12; expected none and 3 .* or 2 and 12"):
        PictureVae.from_pretrained(tmp_path)
