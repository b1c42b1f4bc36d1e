"""Where a picture of the bundled model loses its sharpness: in the VAE, at which noise, by steps or by guidance.

    python tests/bench/picture_limits.py [--model duogen-tiny] [--cases 8] [--seed 777] [--only guide,edit_chain]

Every image is drawn in the ideal context of its case: words and earlier images are the case's own, so connector and DiT
are judged alone. Three parts, in dB of PSNR against the ideal and the share of images that are right:
    VAE              the ideal image, encoded and decoded: no DiT can do better
    one step from t  the ideal latent with noise, x_t = t noise + (1 - t) x0, and the DiT's one guess of x0 from there:
                     where the guess gets worse is where the image is decided
    sampled          from pure noise, with so many steps and so much guidance
It prints a table as Markdown. What came of it for the bundled model: docs/ablation.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import checkout  # noqa: F401
import numpy as np
import torch

from duogen_core.checkpoint import load_checkpoint
from duogen_core.picture_sampling import PictureSampler
from duogen_core.sampling import initial_noise, sample_picture, sigmas
from duogen_core.settings import Settings
from duogen_core.sketchbook.ablation.measuring import Spot, spots
from duogen_core.sketchbook.scores import score_pictures

TASKS = ("guide", "edit", "edit_chain", "draw", "draft", "plan")
TIMES = (0.05, 0.2, 0.35, 0.5, 0.7, 0.9, 0.97)
SAMPLED = ((4, 1.0), (8, 1.0), (8, 2.0), (16, 1.0), (16, 2.0), (16, 3.0), (32, 2.0))  # (steps, guidance)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="duogen-tiny")
    parser.add_argument("--cases", type=int, default=8, help="of each task")
    parser.add_argument("--seed", type=int, default=777)
    parser.add_argument("--only", default=",".join(TASKS), help="tasks, with commas")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tasks = tuple(args.only.split(","))
    chosen = spots(tasks, args.cases, args.seed)
    print("| | all: right | all: PSNR, dB | " + " | ".join(f"{task}: right, dB" for task in tasks) + " |")
    print("|---|---|---|" + "---|" * len(tasks))
    for name, pictures in measured(args.model, chosen):
        row = {task: ([], []) for task in ("all", *tasks)}
        for spot, picture in zip(chosen, pictures, strict=True):
            found = score_pictures([spot.case], [picture], [spot.index])
            for task in ("all", spot.case.family):
                row[task][0].append(found["right"])
                row[task][1].append(found["psnr"])
        cells = [f"{np.mean(right):.2f}, {np.mean(psnr):.1f}" for right, psnr in (row[task] for task in tasks)]
        print(f"| {name} | {np.mean(row['all'][0]):.2f} | {np.mean(row['all'][1]):.1f} | " + " | ".join(cells) + " |",
              flush=True)  # fmt: skip


@torch.inference_mode()
def measured(model: str, chosen: Sequence[Spot]) -> Iterator[tuple[str, list[np.ndarray]]]:
    """(what was done, a picture of every spot)"""
    parts = load_checkpoint(model)
    own = parts.config.sampling
    sampler = PictureSampler(parts, Settings(guidance=2.0))  # which prepares both branches
    ideals = [sampler.latent(spot.ideal) for spot in chosen]
    prepared = [sampler.prepare(spot.context, x0.shape) for spot, x0 in zip(chosen, ideals, strict=True)]
    noises = [initial_noise(number, tuple(x0.shape)) for number, x0 in enumerate(ideals)]
    yield "VAE", [parts.vae.decode_pixels(x0) for x0 in ideals]
    for t in TIMES:
        found = []
        for x0, noise, steps in zip(ideals, noises, prepared, strict=True):
            x = t * noise + (1 - t) * x0
            found.append(parts.vae.decode_pixels(x - t * steps.velocities(x, torch.tensor([t]))[0]))
        yield f"one step from t = {t:g}", found
    for count, guidance in SAMPLED:
        found = []
        for noise, steps in zip(noises, prepared, strict=True):

            def velocities(x: torch.Tensor, t: torch.Tensor, steps=steps, wanted=guidance) -> Sequence[torch.Tensor]:
                return steps.velocities(x, t)[: 1 if wanted == 1 else 2]

            times = sigmas(count, own.shift, own.schedule)
            found.append(
                parts.vae.decode_pixels(
                    sample_picture(velocities, noise, times, guidance=guidance, solver=own.solver)
                )
            )  # fmt: skip
        yield f"sampled, {count} steps, guidance {guidance:g}", found


if __name__ == "__main__":
    main()
