"""Runs inside ComfyUI's Python, started by test_wan.py: a small Wan 2.2 (48 channels) through both loaders.

In: `python probe_wan22.py COMFYUI_FOLDER`. Out: one JSON object on the last line. Its latents are random: ComfyUI has
the VAE of Wan 2.2 at its published width alone, which is too large for a test.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

CHANNELS, WIDTH = 48, 64


def main(folder: Path) -> dict[str, Any]:
    import comfy.latent_formats
    import comfy.ldm.wan.model
    import comfy.model_detection
    import comfy.ops
    import comfy.sample
    import comfy.sd
    import folder_paths
    import torch
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3
    from pack.nodes.host import loading, model_config
    from safetensors.torch import save_file

    sizes = {"dim": 128, "ffn_dim": 96, "num_heads": 1, "num_layers": 2, "text_dim": WIDTH}
    build = {"device": "cpu", "dtype": torch.float32, "operations": comfy.ops.disable_weight_init}
    model = comfy.ldm.wan.model.WanModel(in_dim=CHANNELS, out_dim=CHANNELS, **sizes, **build)
    noise, weights = torch.Generator().manual_seed(0), {}
    for name, old in model.state_dict().items():
        small = torch.zeros(old.shape) if name.endswith("bias") else torch.ones(old.shape)
        large = torch.randn(old.shape, generator=noise) / max(1, old[0].numel()) ** 0.5
        weights[name] = small if old.ndim < 2 else large
    file = folder / "wan22.safetensors"
    save_file(weights, file)
    detect = comfy.model_detection.detect_unet_config

    def of_this_width(*args: Any, **kwargs: Any) -> Any:  # ComfyUI takes 4096 for granted
        return detect(*args, **kwargs) | {"text_dim": WIDTH}

    comfy.model_detection.detect_unet_config = of_this_width
    loading.register_model_folder()
    folder_paths.add_model_folder_path("diffusion_models", str(folder))

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=noise)

    positive, negative = random(1, 9, WIDTH), random(1, 9, WIDTH)
    start, seen = random(1, CHANNELS, 1, 6, 8), random(1, CHANNELS, 1, 4, 6)

    def drawn(model: Any, **more: Any) -> torch.Tensor:
        model = ModelSamplingSD3().patch(model, 5.0)[0]
        return comfy.sample.sample(
            model, start, 3, 3.0, "euler", "simple", [[positive, more]], [[negative, more]], torch.zeros_like(start),
            disable_pbar=True, seed=1,
        )  # fmt: skip

    def sentence(**more: Any) -> str:
        try:
            drawn(ours, **more)
        except Exception as error:
            return str(error)
        return "nothing was refused"

    stock, ours = comfy.sd.load_diffusion_model(str(file)), loading.load_dit(file.name)
    expected, found, form = drawn(stock), drawn(ours), ours.model.latent_format
    again = model_config.PictureLatent.from_note(form.note(), "a file")
    return {
        "class": type(stock.model).__name__,
        "away": float((found - expected).abs().max() / expected.std()),
        "with a reference": float((drawn(ours, reference_latents=[seen]) - found).abs().max()),
        "of Wan 2.1": sentence(reference_latents=[seen[:, :16]]),
        "empty": list(comfy.sample.fix_empty_latent_channels(ours, torch.zeros(1, 4, 8, 12), 8).shape),
        "statistics": torch.equal(form.latents_mean, comfy.latent_formats.Wan22().latents_mean),
        "kept in a file": again.same_as(form) and again.latent_channels == CHANNELS,
        "shapes": ours.model.extra_conds_shapes(reference_latents=[seen], cross_attn=positive),
    }


if __name__ == "__main__":
    import probe_memory

    probe_memory.start(sys.argv[1])
    with tempfile.TemporaryDirectory() as place:
        print(json.dumps(main(Path(place))))
