"""VAE training: data that depends on nothing but its seed, exact resume, latents brought to Wan 2.1's scale."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from duogen_core.sketchbook import vae as training
from duogen_core.sketchbook.vae import crop_batch
from duogen_core.training.configuration import ConfigError
from duogen_core.training.optimizers import muon_and_adamw
from duogen_core.vae import (
    WAN21_MEAN,
    WAN21_STD,
    PictureVae,
    decode_frame,
    encode_frame,
    new_vae,
)
from tests.core.runs import losses, stopped_in

TINY = training.VaeConfig(out=Path("."), base_dim=4, batch=2, calibration_crops=32, steps=6, log_every=1)


def test_crops_are_a_function_of_seed_and_step():
    first = crop_batch(0, 3, 4)
    assert first.shape == (4, 3, 64, 64) and first.min() >= -1 and first.max() <= 1
    assert torch.equal(first, crop_batch(0, 3, 4))
    assert not torch.equal(first, crop_batch(0, 4, 4))
    assert not torch.equal(first, crop_batch(1, 3, 4))


def test_wan_scale_is_reached_and_no_picture_changes():
    torch.manual_seed(0)
    vae = new_vae(4)
    pixels = torch.cat([crop_batch(0, step, 16) for step in range(4)])
    with torch.no_grad():
        before = decode_frame(vae, encode_frame(vae, pixels)[0], clamp=False)
    training.match_wan_scale(vae, pixels)
    with torch.no_grad():
        means, _ = encode_frame(vae, pixels)
        after = decode_frame(vae, means, clamp=False)
    assert (before - after).abs().max() < 1e-4
    flat = means.transpose(0, 1).flatten(1)
    assert torch.allclose(flat.mean(1), torch.tensor(WAN21_MEAN), atol=1e-3)
    assert torch.allclose(flat.std(1), torch.tensor(WAN21_STD), atol=1e-3)


def test_orthogonalised_has_singular_values_near_one():
    torch.manual_seed(0)
    for shape in ((16, 16), (8, 72), (72, 8)):
        values = torch.linalg.svdvals(training.orthogonalised(torch.randn(shape)))
        assert values.min() > 0.5 and values.max() < 1.4


def test_muon_leaves_the_temporal_taps_alone_and_ends_go_to_adamw():
    vae = new_vae(4)
    optimizers = muon_and_adamw(vae, training.is_outer, lr=1e-2, muon=training.KernelMuon)
    muon = {id(p) for group in optimizers["muon"].param_groups for p in group["params"]}
    assert isinstance(optimizers["muon"], training.KernelMuon)
    names = {name: id(p) in muon for name, p in vae.named_parameters()}
    assert names["encoder.down_blocks.0.conv1.weight"]
    assert not names["encoder.conv_in.weight"] and not names["encoder.down_blocks.0.norm1.gamma"]
    kernel = vae.encoder.down_blocks[0].conv1.weight
    before = kernel.detach().clone()
    training.losses(vae, crop_batch(0, 0, 2), TINY)["loss"].backward()
    optimizers["muon"].step()
    assert not torch.equal(kernel[:, :, -1], before[:, :, -1])
    assert torch.equal(kernel[:, :, :-1], before[:, :, :-1])


def test_the_decoder_alone_learns_and_the_latents_stay(tmp_path):
    training.train(replace(TINY, out=tmp_path / "first"))
    start = tmp_path / "first" / "export"
    config = replace(
        TINY, out=tmp_path / "second", init=start, decoder_only=True, latent_noise=0.2, tasks=0.5, lr=1e-2, ema=0.5
    )
    training.train(config)
    before, after = (PictureVae.from_pretrained(folder) for folder in (start, config.out / "export"))
    pixels = crop_batch(5, 0, 2)
    latents = before.encode(pixels)
    assert torch.equal(after.encode(pixels), latents)
    assert not torch.allclose(after.decode(latents), before.decode(latents), atol=1e-3)


def test_crops_of_the_tasks_are_as_often_as_asked():
    piles, mixed, tasks = (crop_batch(0, 3, 8, share) for share in (0.0, 0.5, 1.0))
    assert torch.equal(piles, crop_batch(0, 3, 8)) and tasks.shape == piles.shape
    assert not torch.equal(mixed, piles) and not torch.equal(mixed, tasks)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"decoder_only": True}, "add init=FOLDER"),
        ({"latent_noise": 0.1}, "goes with decoder_only=true"),
        ({"tasks": 1.5}, "expected a share, 0 to 1"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(values, said):
    with pytest.raises(ConfigError, match=said):
        replace(TINY, **values)


@pytest.mark.slow
def test_a_resumed_run_has_the_losses_of_an_unbroken_one_and_exports(tmp_path):
    training.train(replace(TINY, out=tmp_path / "whole"))
    broken = replace(TINY, out=tmp_path / "broken")
    with stopped_in(2):
        training.train(broken)
    assert len(losses(broken.out)) == 3
    training.train(broken)
    assert losses(broken.out) == losses(tmp_path / "whole") and len(losses(broken.out)) == 6
    shown = (tmp_path / "whole" / "samples" / "000006" / "pictures.html").read_text("utf-8")
    assert shown.count("data:image/png") == 6  # of three sizes, before and after
    exported = PictureVae.from_pretrained(tmp_path / "whole" / "export")
    assert exported.encode(torch.zeros(1, 3, 64, 64)).shape == (1, 16, 8, 8)
