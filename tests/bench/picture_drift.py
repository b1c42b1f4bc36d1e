"""What an image of the bundled model takes over from the images before it: guides by number, chains of edits by kind.

    python tests/bench/picture_drift.py [--model duogen-tiny] [--cases 20] [--seed 4242] [--steps N] [--guidance G]

The words are the case's own everywhere, so connector, DiT and VAE are judged alone. Two tables, as Markdown:
    guides           PSNR against the ideal, in dB, of the 1st, 2nd, ... image: with the model's own images before it,
                     with the ideal ones, and of the VAE alone: that ideal image encoded and decoded so many times
                     in turn, which is what an image goes through that is carried along
    chains of edits  share of images right in the ideal context, by what the last edit changes and by its number
What came of it for the bundled model: docs/ablation.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

import checkout  # noqa: F401
import numpy as np
import torch

from duogen_core.checkpoint import Components, load_checkpoint
from duogen_core.document import Document, Picture
from duogen_core.picture_sampling import PictureSampler
from duogen_core.settings import Settings
from duogen_core.sketchbook.ablation.measuring import spots
from duogen_core.sketchbook.evaluation import cases
from duogen_core.sketchbook.scores import psnr, score_pictures

Rows = dict[str, list[list[float]]]  # name -> of every number of image, a value a case
NAMES = ("own images before", "ideal images before", "VAE, so many times")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="duogen-tiny")
    parser.add_argument("--cases", type=int, default=20, help="guides; chains of edits are three times as many")
    parser.add_argument("--seed", type=int, default=4242)
    parser.add_argument("--steps", type=int, help="default: the model's own")
    parser.add_argument("--guidance", type=float, help="default: the model's own")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    parts = load_checkpoint(args.model)
    own = parts.config.sampling
    settings = Settings(
        steps=args.steps or own.steps,
        guidance=own.guidance if args.guidance is None else args.guidance,
        shift=own.shift,
    )

    rows = guides(parts, settings, args.cases, args.seed)
    most = max(map(len, rows.values()))
    print("| guides, dB | " + " | ".join(f"image {k + 1}" for k in range(most)) + " | mean |")
    print("|---|" + "---|" * (most + 1))
    for name, numbers in rows.items():
        cells = [f"{np.mean(values):.1f} ({len(values)})" for values in numbers]
        print(f"| {name} | " + " | ".join(cells) + f" | {np.mean(np.concatenate(numbers)):.1f} |")
    print(flush=True)

    print("| chains of edits | right | PSNR, dB | images |")
    print("|---|---|---|---|")
    for name, found in chains(parts, settings, 3 * args.cases, args.seed).items():
        right, sharp = np.mean(found, axis=0)
        print(f"| {name} | {right:.2f} | {sharp:.1f} | {len(found)} |")


@torch.inference_mode()
def guides(parts: Components, settings: Settings, count: int, seed: int) -> Rows:
    rows: Rows = {name: [] for name in NAMES}
    for number, (_, case) in enumerate(cases(count, seed, ("guide",))):
        *earlier, turn = case.document.turns
        places = [k for k, part in enumerate(turn.parts) if isinstance(part, Picture)]
        ideal, own = list(turn.parts), list(turn.parts)
        sampler = PictureSampler(parts, settings)

        def drawn(before: Sequence, earlier=earlier, turn=turn, sampler=sampler, number=number) -> Picture:
            context = Document((*earlier, replace(turn, parts=tuple(before))))
            return Picture(sampler.draw(context, seed=number))

        for k, place in enumerate(places):
            own[place] = drawn(own[:place])
            carried = ideal[place]
            for _ in range(k + 1):
                carried = Picture(parts.vae.decode_pixels(sampler.latent(carried)))
            for name, picture in zip(NAMES, (own[place], drawn(ideal[:place]), carried), strict=True):
                if k == len(rows[name]):
                    rows[name].append([])
                rows[name][k].append(psnr(picture.pixels, ideal[place].pixels))
    return rows


@torch.inference_mode()
def chains(parts: Components, settings: Settings, count: int, seed: int) -> dict[str, list[tuple[float, float]]]:
    """(right, PSNR) of every image under "all", under what its edit changes and under its number."""
    found: dict[str, list[tuple[float, float]]] = {"all": []}
    for number, spot in enumerate(spots(("edit_chain",), count, seed)):
        picture = PictureSampler(parts, settings).draw(spot.context, seed=number)
        scored = score_pictures([spot.case], [picture], [spot.index])
        truth = spot.case.truth
        for name in ("all", f"last edit: {truth['operation']}", f"edits: {truth['edits']}"):
            found.setdefault(name, []).append((scored["right"], scored["psnr"]))
    return dict(sorted(found.items()))


if __name__ == "__main__":
    main()
