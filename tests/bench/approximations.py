"""What approximations cost and gain: DuoGen Refresh Earlier Images, and ComfyUI's own EasyCache and LazyCache.

    python tests/bench/approximations.py COMFYUI_FOLDER [--rounds 3] [--references 4] [--threads 1]

Runs inside ComfyUI's Python, without its server. Two models: the bundled one, drawing the fourth image of an ideal
Sketchbook guide, and a random one of middle size (DiT of 65M, 256x256, large random weights, so that images matter to
each other). The bundled weights were trained with frame_causal attention, which needs no refreshing; for the rows
"full" they run with full attention, which draws other images, but from trained weights.
Out: JSON, one row per model and approximation: seconds, gain (exact over approximate, by turns, median), and the
error: PSNR of the decoded image in dB for the bundled model, signal over error of the latent in dB for the random one.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def decibels(signal: float, error: float) -> float | None:
    return round(10 * math.log10(signal / error), 1) if error > 0 else None  # None: no difference at all


def bundled(attention: str) -> tuple[Any, dict[str, Any]]:
    """(MODEL, what to draw): the fourth step of a guide, its three earlier images from the Sketchbook's own answer."""
    import torch
    from pack.nodes.host import diffusion_model, model_config

    from duogen_core.checkpoint import load_checkpoint, models_folder
    from duogen_core.dit.cosmos import PackedCosmos
    from duogen_core.document import Document, Text
    from duogen_core.pipeline import generate
    from duogen_core.settings import Settings

    components = load_checkpoint()
    request = Document().begin_turn("user", [Text("How do I draw a house with a red roof?")])
    answer = generate(components, request, Settings(seed=7, max_images=4))
    parts = answer.last_turn.parts
    last = max(i for i, part in enumerate(parts) if part is answer.pictures[-1])
    before = request.begin_turn("assistant", list(parts[:last]))
    with torch.inference_mode():
        states = components.mllm.encode(before, components.connector)
        references = [components.vae.encode(picture.pixels.copy()) for picture in before.pictures]
    dit = PackedCosmos.from_pretrained(models_folder() / "duogen-tiny" / "dit", attention=attention).eval()
    sampling = components.config.sampling
    job = {
        "text": states.states[None], "hidden": states.last_segment, "ends": states.frame_ends, "references": references,
        "steps": sampling.steps, "cfg": sampling.guidance, "decode": components.vae.decode_pixels,
    }  # fmt: skip
    form = model_config.PictureLatent()
    return diffusion_model.make_model(dit, shift=sampling.shift, latent_format=form), job


def random(attention: str, count: int) -> tuple[Any, dict[str, Any]]:
    import torch
    from pack.nodes.host import diffusion_model, model_config

    from duogen_core.dit.cosmos import PackedCosmos

    torch.manual_seed(0)
    dit = PackedCosmos(
        num_attention_heads=8, attention_head_dim=64, num_layers=12, text_embed_dim=512, adaln_lora_dim=128,
        attention=attention,
    ).eval()  # fmt: skip
    with torch.no_grad():
        for weight in dit.parameters():
            weight.copy_(torch.randn_like(weight) * 1.2 / max(1, weight.shape[-1]) ** 0.5 if weight.ndim > 1 else 1)
    job = {
        "text": torch.randn(1, 200, 512), "hidden": (180, 200), "ends": tuple(30 * (i + 1) for i in range(count)),
        "references": [torch.randn(1, 16, 32, 32) for _ in range(count)], "steps": 16, "cfg": 2.0, "decode": None,
    }  # fmt: skip
    form = model_config.PictureLatent()
    return diffusion_model.make_model(dit, shift=3.0, latent_format=form), job


def drawn(model: Any, job: dict[str, Any]) -> tuple[Any, float]:
    """(normalised latent, seconds) with the stock sampler."""
    import comfy.sample
    import torch
    from pack.nodes.host import diffusion_model

    form = model.model.latent_format
    values = {
        "reference_latents": [form.process_out(each.unsqueeze(2)) for each in job["references"]],
        diffusion_model.FRAME_ENDS: job["ends"],
    }
    positive = [[job["text"], values]]
    negative = [[job["text"], values | {diffusion_model.HIDDEN_TEXT: tuple(job["hidden"])}]]
    shape = (1, 16, 1, *job["references"][-1].shape[-2:])
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    begun = time.perf_counter()
    with torch.inference_mode():
        latent = comfy.sample.sample(
            model, noise, job["steps"], job["cfg"], "euler", "simple", positive, negative, torch.zeros_like(noise),
            disable_pbar=True, seed=3,
        )  # fmt: skip
    return form.process_in(latent)[:, :, 0], time.perf_counter() - begun


def measure(name: str, attention: str, loaded: tuple[Any, dict[str, Any]], rounds: int) -> list[dict[str, Any]]:
    from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
    from pack.nodes.definitions.sampling import DuoGenRefreshEarlierImages

    model, job = loaded
    DuoGenRefreshEarlierImages.GET_SCHEMA()
    ways: dict[str, Any] = {}
    if attention == "full":
        ways = {f"refresh {n}": DuoGenRefreshEarlierImages.execute(model, n).result[0] for n in (2, 4, 8)}
    for node in (EasyCacheNode, LazyCacheNode):
        for threshold in (0.05, 0.2):
            label = f"{node.__name__.removesuffix('Node')} {threshold}"
            ways[label] = node.execute(model, threshold, 0.15, 0.95, False).result[0]
    rows = []
    for label, other in ways.items():
        pairs = []
        for _ in range(rounds):
            exact, before = drawn(model, job)
            approximate, after = drawn(other, job)
            pairs.append((before, after))
        if job["decode"]:
            a, b = (job["decode"](each).astype(float) for each in (exact, approximate))
            error = decibels(255.0**2, float(((a - b) ** 2).mean()))
        else:
            error = decibels(float(exact.var()), float((exact - approximate).square().mean()))
        gain = statistics.median(before / after for before, after in pairs)
        rows.append(
            {
                "model": name,
                "attention": attention,
                "approximation": label,
                "dB": error,
                "gain": round(gain, 2),
                "seconds": round(statistics.median(after for _, after in pairs), 2),
            }
        )
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comfyui")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--references", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests" / "comfyui"))
    import probe_memory

    probe_memory.start(args.comfyui)
    import torch

    torch.set_num_threads(args.threads)
    rows = []
    for attention in ("full", "frame_causal"):
        rows += measure("bundled", attention, bundled(attention), args.rounds)
        rows += measure("random", attention, random(attention, args.references), args.rounds)
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
