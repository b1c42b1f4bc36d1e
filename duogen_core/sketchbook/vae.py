"""Train the bundled VAE: Wan 2.1's architecture, narrow, one frame at a time.

    python -m duogen_core train vae out=runs/vae minutes=60

In:  random 64-pixel crops (vae_data.py). Out: runs/vae/export, a diffusers folder (averaged weights) whose latents
have the scale of Wan 2.1's, because everything downstream, ComfyUI's VAELoader included, normalises with its constants;
in <out>/samples pictures before and after the VAE, to look at.

Loss: mean absolute and squared error, the absolute error of 8x8 means (near colours drift without it), and a little
KL, so that latents stay near each other and the decoder forgives a painter's small errors.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch import Tensor

from duogen_core.sketchbook.scene import CANVASES
from duogen_core.sketchbook.vae_pictures import crop_batch, whole_picture
from duogen_core.training.checkpoints import evaluation_mode, replaced
from duogen_core.training.command import RunConfig, add_arguments_for, run_command
from duogen_core.training.configuration import check_numbers
from duogen_core.training.optimisation import muon_and_adamw, quick_bf16
from duogen_core.training.run import Run
from duogen_core.training.samples import write_round_trips
from duogen_core.vae import (
    WAN21_MEAN,
    WAN21_STD,
    PictureVae,
    decode_frame,
    encode_frame,
    new_vae,
)

TEST_SEED = 999


@dataclass(kw_only=True)
class VaeConfig(RunConfig):
    out: Path = Path("runs/vae")
    bf16: bool = False  # the bundled one trained in float32
    base_dim: int = 16
    batch: int = 16
    lr: float = 5e-3
    kl: float = 3e-4
    squared: float = 2.0
    flat: float = 1.0
    ema: float = 0.998
    clip: float = 1.0
    calibration_crops: int = 512
    sample_minutes: float = 10.0  # between pictures to look at, in <out>/samples; 0: none

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, least={"base_dim": 1, "batch": 1, "calibration_crops": 32})


def is_end(name: str) -> bool:
    return any(part in name for part in ("conv_in", "conv_out", "quant_conv"))


def losses(vae: AutoencoderKLWan, pixels: Tensor, config: VaeConfig) -> dict[str, Tensor]:
    """Pixels [B, 3, 64, 64] in -1..1 -> {"loss", "mse", "kl"}."""
    with quick_bf16(pixels.device, config.bf16):
        mean, logvar = (part.float() for part in encode_frame(vae, pixels))
        latents = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
        error = decode_frame(vae, latents, clamp=False).float() - pixels
    absolute, squared, flat = error.abs().mean(), error.square().mean(), F.avg_pool2d(error, 8).abs().mean()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    loss = absolute + config.squared * squared + config.flat * flat + config.kl * kl
    return {"loss": loss, "mse": squared.detach(), "kl": kl.detach()}


@torch.no_grad()
def psnr(vae: AutoencoderKLWan, pixels: Tensor) -> float:
    error = decode_frame(vae, encode_frame(vae, pixels)[0]) - pixels
    return -10 * math.log10(error.square().mean().item() / 4)


@torch.no_grad()
def match_wan_scale(vae: AutoencoderKLWan, pixels: Tensor) -> None:
    """Give every latent channel Wan 2.1's mean and deviation, in place and without changing a picture.

    Both quant convolutions are 1x1, so an affine map of the latents folds into the one and its inverse into the other.
    """
    means = torch.cat([encode_frame(vae, chunk)[0] for chunk in pixels.split(64)]).transpose(0, 1).flatten(1)
    gain = means.new_tensor(WAN21_STD) / means.std(1)
    shift = means.new_tensor(WAN21_MEAN) - gain * means.mean(1)
    out, back = vae.quant_conv, vae.post_quant_conv
    back.bias += -back.weight[:, :, 0, 0, 0] @ (shift / gain)
    back.weight /= gain.view(1, -1, 1, 1, 1)
    out.weight[:16] *= gain.view(-1, 1, 1, 1, 1)
    out.bias[:16] = out.bias[:16] * gain + shift
    out.bias[16:] += 2 * gain.log()  # the second half of the output is the log variance


def show(run: Run, vae: AutoencoderKLWan) -> None:
    """Pictures before and after the averaged weights."""
    with evaluation_mode(vae), run.emas["vae"].applied():
        pictures = [whole_picture(TEST_SEED, canvas) for canvas in CANVASES]
        write_round_trips(PictureVae(vae), pictures, run.folder, run.step)


def train(config: VaeConfig) -> Run:
    run = config.run()
    torch.manual_seed(run.seed)
    device = run.processes.device
    vae = new_vae(config.base_dim).to(device)
    run.attach({"vae": vae}, muon_and_adamw(vae, is_end, lr=config.lr), ema_decay=config.ema)
    test = torch.cat([crop_batch(TEST_SEED, k, 16) for k in range(4)]).to(device)
    due = run.elapsed + 60 * config.sample_minutes
    for step in run:
        figures = losses(vae, crop_batch(run.seed, step, config.batch).to(device), config)
        run.update(figures["loss"], config.clip)
        run.report(**figures)
        if step % 400 == 399:
            with evaluation_mode(vae), run.emas["vae"].applied():
                value = psnr(vae, test)
            run.record(psnr=value)
            run.say(f"step {step + 1}: {value:.2f} dB on pictures it never trained on")
        if config.sample_minutes and run.elapsed >= due:
            show(run, vae)
            due = run.elapsed + 60 * config.sample_minutes
    target = run.folder / "export"
    if run.complete(target):
        return run
    if config.sample_minutes and run.finished:
        show(run, vae)
    with evaluation_mode(vae), run.emas["vae"].applied():
        crops = [crop_batch(TEST_SEED + 1, k, 16) for k in range(config.calibration_crops // 16)]
        match_wan_scale(vae, torch.cat(crops).to(device))
        run.record(final_psnr=psnr(vae, test))
        with replaced(target) as new:
            vae.save_pretrained(new)
    if run.finished:
        run.mark_complete()
    return run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_arguments_for(parser, VaeConfig)


def run(args: argparse.Namespace) -> int:
    return run_command(args, VaeConfig, train)
