"""Sampling inside ComfyUI against the core alone: the same DiT, references, steps and guidance, in one process.

    python tests/bench/comfyui_speed.py [--references 4] [--steps 4] [--rounds 5] [--threads 1] [--small]

A real ComfyUI ($COMFYUI_PATH or ~/comfy/ComfyUI) samples by what the stock KSampler calls, the core by its own sampler;
they take turns, and the ratio is taken within a round, in seconds of the processor (on a GPU, of the clock). Cases: an
image after N earlier ones, for both kinds of attention; and the second image of a loop, whose first one both have just
drawn. Out: JSON: ComfyUI's share of the core's speed (the bar is 0.9), and how far the latents are apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BAR = 0.9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--references", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="a DiT of 5M, for a quick look")
    options = parser.parse_args()
    sys.path[:0] = [str(ROOT / "tests" / "comfyui")]
    import probe_memory
    from server import find_comfyui

    probe_memory.start(str(find_comfyui()))
    import torch

    torch.set_num_threads(options.threads)
    found = {}
    for attention in ("full", "frame_causal"):
        pair = Pair(attention, options.steps, options.small)
        cases = {f"image after {options.references} earlier ones": lambda p=pair: p.image(options.references)}
        cases["second image of a loop"] = lambda p=pair: p.second()
        for name, case in cases.items():
            found[f"{attention}: {name}"] = measured(case, options.rounds)
            print(f"{attention}: {name}", found[f"{attention}: {name}"], file=sys.stderr, flush=True)
    print(json.dumps({"threads": options.threads, "steps": options.steps, "bar": BAR, "cases": found}, indent=2))


def measured(case: Callable[[], tuple[Callable[[], Any], Callable[[], Any]]], rounds: int) -> dict[str, Any]:
    """case() prepares a round, untimed, and returns what ComfyUI and the core have to do in it."""
    seconds: list[tuple[float, float]] = []
    apart = 0.0
    for number in range(rounds + 1):  # the first round warms up
        ways = case()
        results, spent = [None, None], [0.0, 0.0]
        for place in (0, 1) if number % 2 == 0 else (1, 0):
            begun = now()
            results[place] = ways[place]()
            spent[place] = now() - begun
        apart = max(apart, float((results[0] - results[1]).abs().max()))
        seconds.append((spent[0], spent[1]))
    shares = [core / comfy for comfy, core in seconds[1:]]
    return {
        "share of the core's speed": round(statistics.median(shares), 3),
        "rounds": [round(share, 3) for share in shares],
        "seconds in ComfyUI": round(statistics.median(comfy for comfy, _ in seconds[1:]), 3),
        "seconds in the core": round(statistics.median(core for _, core in seconds[1:]), 3),
        "largest difference": apart,
    }


def now() -> float:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


class Pair:
    """One DiT twice: as ComfyUI's MODEL, and as the core's, in the same type on the same device."""

    def __init__(self, attention: str, steps: int, small: bool) -> None:
        import torch
        from pack.nodes.host import diffusion_model, model_config

        from duogen_core.bench.models import MIDDLE, Sizes, random_dit

        sizes = Sizes(dit_heads=4, dit_layers=4) if small else MIDDLE
        self.host, self.steps, self.guidance, self.shift = diffusion_model, steps, 2.0, 2.0
        dit = random_dit(sizes, attention)
        self.core = type(dit).from_config(dit.config).eval()
        self.core.load_state_dict(dit.state_dict())
        self.model = diffusion_model.make_model(dit, shift=self.shift, latent_format=model_config.PictureLatent())
        self.device, self.dtype = self.model.load_device, self.model.model.get_dtype_inference()
        self.core.to(self.device, self.dtype)
        self.causal, self.drawn = attention == "frame_causal", 0
        self.text = torch.randn(1, 512, sizes.text_width, generator=torch.Generator().manual_seed(0))
        self.hidden, self.side = (480, 512), sizes.picture // 8

    def frames(self, count: int) -> list:
        """Earlier images that neither side has seen."""
        import torch

        self.drawn += 1
        generator = torch.Generator().manual_seed(1000 * self.drawn)
        return [torch.randn(1, 16, self.side, self.side, generator=generator) for _ in range(count)]

    def image(self, count: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
        frames = self.frames(count)
        return lambda: self.in_comfyui(frames), lambda: self.in_core(frames, None)

    def second(self) -> tuple[Callable[[], Any], Callable[[], Any]]:
        """The first image is drawn by both after one that the user gave; timed is the next, which looks at it too."""
        from duogen_core.dit.frame_cache import FrameCache

        frames = self.frames(2)
        cache = FrameCache() if self.causal else None
        self.in_comfyui(frames[:1]), self.in_core(frames[:1], cache)
        return lambda: self.in_comfyui(frames), lambda: self.in_core(frames, cache)

    def ends(self, count: int) -> tuple[int, ...]:
        return tuple(100 * (k + 1) // max(1, count) for k in range(count)) if count > 2 else (100, 200)[:count]

    def in_comfyui(self, frames: list) -> Any:
        import comfy.sample
        import torch

        from duogen_core.sampling import initial_noise

        form, host = self.model.model.latent_format, self.host
        values = {
            "reference_latents": [form.process_out(frame.unsqueeze(2)) for frame in frames],
            host.FRAME_ENDS: self.ends(len(frames)),
        }
        noise = initial_noise(5, (1, 16, 1, self.side, self.side))
        latent = comfy.sample.sample(
            self.model, noise, self.steps, self.guidance, "euler", "simple", [[self.text, values]],
            [[self.text, {**values, host.HIDDEN_TEXT: self.hidden}]], torch.zeros_like(noise), disable_pbar=True,
            seed=5,
        )  # fmt: skip
        return form.process_in(latent)[:, :, 0].float().cpu()

    def in_core(self, frames: list, cache: Any) -> Any:
        import torch

        from duogen_core.sampling import initial_noise, sample_picture, sigmas

        with torch.inference_mode():
            text = self.text.to(self.device, self.dtype)
            noise = initial_noise(5, (1, 16, self.side, self.side)).to(self.device)
            prepared = self.core.prepare(
                [frame.to(self.device, self.dtype) for frame in frames], [(text, None), (text, self.hidden)],
                noise.shape, frame_ends=self.ends(len(frames)), cache=cache,
            )  # fmt: skip
            times = sigmas(self.steps, self.shift)
            return sample_picture(prepared.velocities, noise, times, guidance=self.guidance).float().cpu()


if __name__ == "__main__":
    main()
