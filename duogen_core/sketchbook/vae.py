"""Trains the bundled VAE: Wan 2.1's architecture, narrow, one frame at a time; or the decoder of one that is there.

    python -m duogen_core train vae out=runs/vae minutes=60
    python -m duogen_core train vae --config tiny-vae-decoder init=runs/vae/export      encoder and latents stay

In:  random 64-pixel crops, made here. A VAE must not know what a house is, so it sees Sketchbook's colours and edges in
every arrangement and none of its tasks: scenes crowded with shapes, piles of rectangles, ellipses and triangles, some
images with their colours changed. Being convolutional, it then serves any size.
Out: runs/vae/export, a diffusers folder (averaged weights) whose latents have the scale of Wan 2.1's, because
everything downstream, ComfyUI's VAELoader included, normalises with its constants; in <out>/samples images before and
after the VAE, to look at.

Loss: mean absolute and squared error, the absolute error of 8x8 means (near colours drift without it), and a little
KL, so that latents stay near each other and the decoder forgives small errors of the DiT.
With `decoder_only` the latents stay as they are, so nothing that has learnt them must learn anew. They get a little
noise (`latent_noise`), as the DiT's own are never exact: the decoder learns to make straight edges of them even so.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from duogen_core.sketchbook.drawing import Mark, Point, draw_scene, ellipse, paint, rectangle, star
from duogen_core.sketchbook.scene import (
    CANVASES,
    CELLS,
    COLOURS,
    KINDS,
    SIZES,
    Scene,
    Shape,
)
from duogen_core.sketchbook.tasks import training_case
from duogen_core.training.checkpoints import evaluation_mode, replaced
from duogen_core.training.command import add_arguments_for, run_command
from duogen_core.training.configuration import ConfigError, RunConfig, check_numbers
from duogen_core.training.optimizers import muon_and_adamw
from duogen_core.training.precision import mixed_precision
from duogen_core.training.run import Run
from duogen_core.training.samples import write_round_trips
from duogen_core.vae import (
    WAN21_MEAN,
    WAN21_STD,
    PictureVae,
    decode_frame,
    encode_frame,
    latents_std,
    new_vae,
)

CROP = 64


def crowded_scene(rng: random.Random, canvas: tuple[int, int]) -> np.ndarray:
    background = "cream" if rng.random() < 0.5 else rng.choice(COLOURS)
    colours = [colour for colour in COLOURS if colour != background]
    cells = rng.sample(CELLS, rng.randint(2, 9))
    shapes = tuple(Shape(cell, rng.choice(KINDS), rng.choice(colours), rng.choice(SIZES)) for cell in cells)
    return draw_scene(Scene(shapes, background, canvas))


def random_outline(rng: random.Random, canvas: tuple[int, int]) -> tuple[Point, ...]:
    x, y = rng.uniform(0, canvas[0]), rng.uniform(0, canvas[1])
    rx, ry = rng.uniform(4, 40), rng.uniform(4, 40)
    kind = rng.choice(("rectangle", "rectangle", "ellipse", "star", "polygon"))
    if kind == "rectangle":
        return rectangle(x - rx, y - ry, x + rx, y + ry)
    if kind == "ellipse":
        return ellipse(x, y, rx, rng.choice((rx, ry)))
    if kind == "star":
        return star(x, y, rx)
    return tuple((x + rng.uniform(-rx, rx), y + rng.uniform(-ry, ry)) for _ in range(rng.choice((3, 4))))


def pile_of_marks(rng: random.Random, canvas: tuple[int, int]) -> np.ndarray:
    marks = [Mark(rng.choice(COLOURS), random_outline(rng, canvas)) for _ in range(rng.randint(3, 14))]
    return paint(marks, canvas, "cream" if rng.random() < 0.5 else rng.choice(COLOURS))


def recoloured(rng: random.Random, pixels: np.ndarray) -> np.ndarray:
    """Other colours than the palette's: channels swapped, one random palette shifted towards another."""
    order = rng.sample(range(3), 3)
    low, high = rng.uniform(0, 60), rng.uniform(190, 255)
    return (low + pixels[:, :, order].astype(np.float32) / 255 * (high - low)).astype(np.uint8)


def random_crop(rng: random.Random) -> np.ndarray:
    """uint8 [64, 64, 3], with something in it."""
    canvas = CANVASES[0] if rng.random() < 0.7 else rng.choice(CANVASES[1:])
    pixels = (crowded_scene if rng.random() < 0.6 else pile_of_marks)(rng, canvas)
    if rng.random() < 0.15:
        pixels = recoloured(rng, pixels)
    height, width = pixels.shape[:2]
    for _ in range(4):  # a few tries for a crop that is not all background
        left, top = rng.randint(0, width - CROP), rng.randint(0, height - CROP)
        crop = pixels[top : top + CROP, left : left + CROP]
        if np.ptp(crop) > 20:
            break
    return crop


def task_crop(rng: random.Random) -> np.ndarray:
    """uint8 [64, 64, 3] of an image of the tasks: boards and half-finished things, which no pile looks like."""
    while True:
        pictures = training_case(rng).document.pictures
        if pictures:
            pixels = rng.choice(pictures).pixels
            left, top = (rng.randint(0, side - CROP) for side in pixels.shape[1::-1])
            return pixels[top : top + CROP, left : left + CROP]


def whole_picture(seed: int, canvas: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W, 3]: a crowded scene, uncropped, to look at."""
    return crowded_scene(random.Random(f"vae-whole-{seed}-{canvas}"), canvas)


def crop_batch(seed: int, step: int, size: int, tasks: float = 0.0) -> Tensor:
    """Float [size, 3, 64, 64] in -1..1; a pure function of seed and step, so that a resumed run sees the same.
    tasks: the share that is of images of the tasks."""
    rng = random.Random(f"vae-{seed}-{step}")
    crops = np.stack([(task_crop if tasks and rng.random() < tasks else random_crop)(rng) for _ in range(size)])
    return torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 127.5 - 1


# ---------------------------------------------------------------- training

TEST_SEED = 999


@dataclass(kw_only=True)
class VaeConfig(RunConfig):
    command: ClassVar[str] = "vae"
    out: Path = Path("runs/vae")
    bf16: bool = False  # the bundled one trained in float32
    init: Path | None = None  # go on from this VAE, which keeps its width and the scale of its latents
    decoder_only: bool = False  # the encoder stays, and with it what latents mean; with `init` alone
    latent_noise: float = 0.0  # with decoder_only: the most of it, as a share of a latent's deviation
    tasks: float = 0.0  # share of crops that are of the tasks' images
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
        check_numbers(self, least={"base_dim": 1, "batch": 1, "calibration_crops": 32, "latent_noise": 0})
        if not 0 <= self.tasks <= 1:
            raise ConfigError(f"'tasks' is {self.tasks}; expected a share, 0 to 1.")
        if self.decoder_only and self.init is None:
            raise ConfigError("decoder_only needs a VAE whose encoder stays as it is; add init=FOLDER.")
        if self.latent_noise and not self.decoder_only:
            raise ConfigError("latent_noise goes with decoder_only=true: an encoder that learns too would outgrow it.")


COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # quintic Newton-Schulz, Jordan's values


def orthogonalised(matrix: Tensor, steps: int = 5) -> Tensor:
    """[m, n] -> about the orthogonal factor of its polar decomposition (singular values near 1)."""
    a, b, c = COEFFICIENTS
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class KernelMuon(torch.optim.Optimizer):
    """Muon for convolution kernels, each as the matrix [out, in * taps].

    torch.optim.Muon takes two-dimensional weights only, and would decay the taps that never have a gradient: the
    temporal slices of a video VAE that trains on pictures, which must stay as they are.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float = 2e-3, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @staticmethod
    def moment_shape(weight: Tensor) -> tuple[int, ...]:
        """Of its momentum, which has one temporal slice; checkpoints ask before there is any."""
        return tuple(weight[:, :, -1].shape if weight.ndim == 5 else weight.shape)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                # [out, in, 1 or 3, k, k]: pictures only ever meet the last temporal slice
                picture = (lambda t: t[:, :, -1]) if weight.ndim == 5 else (lambda t: t)
                grad = picture(weight.grad)
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(grad, memory_format=torch.contiguous_format)
                state["momentum"].lerp_(grad, 1 - group["momentum"])
                update = grad.lerp(state["momentum"], group["momentum"])
                flat = orthogonalised(update.flatten(1))
                # RMS of an orthogonal [m, n] is 1/sqrt(max(m, n)); 0.2 is AdamW's usual update RMS (Liu et al., 2025)
                scale = 0.2 * max(flat.shape) ** 0.5
                picture(weight).mul_(1 - group["lr"] * group["weight_decay"])
                picture(weight).add_(flat.view_as(update), alpha=-group["lr"] * scale)
        return loss


def is_outer(name: str) -> bool:
    return any(part in name for part in ("conv_in", "conv_out", "quant_conv"))


def losses(vae: AutoencoderKLWan, pixels: Tensor, config: VaeConfig) -> dict[str, Tensor]:
    """Pixels [B, 3, 64, 64] in -1..1 -> {"loss", "mse", "kl"}."""
    with mixed_precision(pixels.device, config.bf16):
        with torch.set_grad_enabled(not config.decoder_only):
            mean, logvar = (part.float() for part in encode_frame(vae, pixels))
        if config.decoder_only:  # of each crop another amount, none included
            deviation = config.latent_noise * torch.rand(len(mean), 1, 1, 1, device=mean.device) * latents_std(vae)
        else:
            deviation = torch.exp(0.5 * logvar)
        latents = mean + deviation * torch.randn_like(mean)
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
    """Gives every latent channel Wan 2.1's mean and deviation, in place and without changing a picture.

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
    with evaluation_mode(vae), run.emas["vae"].applied(), run.looking("The samples"):
        pictures = [whole_picture(TEST_SEED, canvas) for canvas in CANVASES]
        write_round_trips(PictureVae(vae), pictures, run.folder, run.step)


def train(config: VaeConfig) -> Run:
    run = Run.of(config)
    torch.manual_seed(run.seed)
    device = run.processes.device
    vae = (PictureVae.from_pretrained(config.init).model.train() if config.init else new_vae(config.base_dim)).to(
        device
    )
    if config.decoder_only:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    run.attach({"vae": vae}, muon_and_adamw(vae, is_outer, lr=config.lr, muon=KernelMuon), ema_decay=config.ema)
    test = torch.cat([crop_batch(TEST_SEED, k, 16) for k in range(4)]).to(device)
    due = run.elapsed + 60 * config.sample_minutes
    for step in run:
        figures = losses(vae, crop_batch(run.seed, step, config.batch, config.tasks).to(device), config)
        run.update(figures["loss"], config.clip)
        run.report(**figures)
        if step % 400 == 399:
            with evaluation_mode(vae), run.emas["vae"].applied():
                value = psnr(vae, test)
            run.record(psnr=value)
            run.say(f"step {step + 1}: {value:.2f} dB on images it never trained on")
        if config.sample_minutes and run.elapsed >= due:
            show(run, vae)
            due = run.elapsed + 60 * config.sample_minutes
    target = run.folder / "export"
    if run.complete(target):
        return run
    if config.sample_minutes and run.finished:
        show(run, vae)
    with evaluation_mode(vae), run.emas["vae"].applied():
        if not config.init:
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
