"""Runs inside ComfyUI's Python, started by test_published_parts.py: published files as ComfyUI holds and runs them.

In: `python probe_published.py COMFYUI_FOLDER FOLDER`, a folder as published_files.py writes it. Out: one JSON object on
the last line: differences from diffusers' own pipeline and from plain modules, and what is kept in which type.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

from probe_memory import start

PROMPT, NEGATIVE = "A red house under a large blue star.", "blurry, dark"
STEPS, SEED, WIDTH, HEIGHT = 5, 3, 48, 32
TEMPLATE = (  # Qwen2.5-VL's own, for texts
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}{{ c.text }}{% endfor %}<|im_end|>\n"
    "{% endfor %}"
)


class NoGuardrail:
    """diffusers' pipeline insists on one."""

    def to(self, device: Any) -> NoGuardrail:
        return self

    def check_text_safety(self, text: str) -> bool:
        return True


def pipelines_latent(folder: Path, guidance: float) -> Any:
    """What diffusers draws from the same files."""
    import torch
    from diffusers import Cosmos2_5_PredictBasePipeline, CosmosTransformer3DModel, UniPCMultistepScheduler
    from diffusers.models.transformers import transformer_cosmos

    from duogen_core.mllm.loading import load_mllm
    from duogen_core.sampling import initial_noise, sigmas
    from duogen_core.vae import new_vae

    resize = lambda mask, size, interpolation=None: mask.new_zeros(1, 1, *size)  # noqa: E731 (the mask is all zeros)
    transformer_cosmos.transforms = types.SimpleNamespace(
        functional=types.SimpleNamespace(resize=resize), InterpolationMode=types.SimpleNamespace(NEAREST=None)
    )
    mllm = load_mllm(folder / "text_encoders" / "Tiny-VL-Instruct")
    mllm.tokenizer.chat_template = TEMPLATE
    dit = CosmosTransformer3DModel.from_pretrained(folder / "diffusion_models" / "tiny-cosmos" / "transformer").eval()
    scheduler = UniPCMultistepScheduler(
        use_karras_sigmas=True, use_flow_sigmas=True, prediction_type="flow_prediction", sigma_max=200.0, sigma_min=0.01
    )
    pipe = Cosmos2_5_PredictBasePipeline(
        mllm.model, mllm.tokenizer, dit, new_vae(base_dim=4).eval(), scheduler, NoGuardrail()
    )
    pipe.set_progress_bar_config(disable=True)
    noise = initial_noise(SEED, (1, 16, 1, HEIGHT // 8, WIDTH // 8)) * sigmas(STEPS, schedule="karras")[0]
    with torch.no_grad():
        return pipe(
            prompt=PROMPT, negative_prompt=NEGATIVE, width=WIDTH, height=HEIGHT, num_frames=1,
            num_inference_steps=STEPS, guidance_scale=guidance - 1, latents=noise, output_type="latent",
        ).frames  # fmt: skip


def parts(folder: Path, mllm: str = "tiny_vl.safetensors", dit: str = "tiny_cosmos.safetensors") -> tuple:
    import folder_paths
    from pack.nodes.host import loading

    loading.register_model_folder()
    for category in ("text_encoders", "diffusion_models"):
        folder_paths.add_model_folder_path(category, str(folder / category))
    text = loading.load_mllm(mllm)
    return text, loading.load_connector(dit, text), loading.load_dit(dit)


def drawn(loaded: tuple, guidance: float, scheduler: str | None = None, sampler: str | None = None) -> Any:
    """The normalised latent, by the functions that the nodes are made of."""
    import torch
    from pack.nodes.host import sampling
    from pack.nodes.steps import stages

    mllm, connector, model = loaded
    positive, negative = stages.encode_prompt(mllm, connector, PROMPT, NEGATIVE, 512)
    latent = {"samples": torch.zeros(1, 16, 1, HEIGHT // 8, WIDTH // 8)}
    out = sampling.draw(
        model, positive, negative, latent, seed=SEED, steps=STEPS, cfg=guidance, sampler_name=sampler,
        scheduler=scheduler,
    )["samples"]  # fmt: skip
    return model.model.latent_format.process_in(out)


def away(ours: Any, theirs: Any) -> float:
    return float((ours.reshape(theirs.shape) - theirs).abs().max() / theirs.abs().max())


def in_fp8(state: dict[str, Any], ends: tuple[str, ...]) -> dict[str, Any]:
    """The same weights with the layers of these names in ComfyUI's fp8."""
    import torch

    out = {}
    for name, tensor in state.items():
        if not name.endswith(ends):
            out[name] = tensor.to(torch.bfloat16)
            continue
        scale, layer = tensor.abs().max().float() / 448, name.removesuffix(".weight")
        out[name], out[f"{layer}.weight_scale"] = (tensor / scale).to(torch.float8_e4m3fn), scale
        note = json.dumps({"format": "float8_e4m3fn"}).encode()
        out[f"{layer}.comfy_quant"] = torch.tensor(list(note), dtype=torch.uint8)
    return out


def whole_again(state: dict[str, Any]) -> dict[str, Any]:
    import torch

    scales = {name.removesuffix("_scale"): value for name, value in state.items() if name.endswith("weight_scale")}
    plain = {name: tensor for name, tensor in state.items() if not name.endswith(("weight_scale", "comfy_quant"))}
    return {name: tensor.float() * scales.get(name, torch.tensor(1.0)) for name, tensor in plain.items()}


def fp8(folder: Path) -> dict[str, Any]:
    """fp8 files against the same numbers in float32: whole, and with every layer offloaded."""
    import comfy.model_management as mm
    from comfy.quant_ops import QuantizedTensor
    from safetensors.torch import load_file, save_file

    kinds = {
        "text_encoders/tiny_vl": ("_proj.weight",),
        "diffusion_models/tiny_cosmos": ("q_proj.weight", "layer1.weight", "layer2.weight"),
    }
    for name, ends in kinds.items():
        state = in_fp8(load_file(folder / f"{name}.safetensors"), ends)
        save_file(state, folder / f"{name}_fp8.safetensors")
        save_file(whole_again(state), folder / f"{name}_whole.safetensors")
    expected = drawn(parts(folder, "tiny_vl_whole.safetensors", "tiny_cosmos_whole.safetensors"), 4.0)
    loaded = parts(folder, "tiny_vl_fp8.safetensors", "tiny_cosmos_fp8.safetensors")
    mllm, _, model = loaded
    quantised = [
        sum(isinstance(weight.data, QuantizedTensor) for weight in module.parameters())
        for module in (mllm.core.model, model.model.diffusion_model)
    ]
    out = {"quantised": quantised, "whole": away(drawn(loaded, 4.0), expected)}
    mm.unload_all_models()
    for patcher in (model, mllm.patcher):
        patcher.load(patcher.load_device, lowvram_model_memory=1)
    out["partly loaded"] = away(drawn(loaded, 4.0), expected)
    kept = {str(weight.dtype) for weight in model.model.diffusion_model.parameters() if weight.ndim == 1}
    out["kept in"] = sorted(kept)
    return out


def short_of_memory(loaded: tuple, expected: Any) -> dict[str, Any]:
    """The first try runs out of memory: the second asks for more room, and gives the same."""
    import torch

    from duogen_core.errors import DuoGenError
    from duogen_core.out_of_memory import without_repeats

    model = loaded[2].model
    run, factor, asked = model.diffusion_model.prepare, model.memory_usage_factor, []

    def failing(times: int) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            asked.append(model.memory_usage_factor / factor)
            if len(asked) <= times:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return run(*args, **kwargs)

        return forward

    model.diffusion_model.prepare = failing(1)
    out: dict[str, Any] = {"same": away(drawn(loaded, 4.0), expected), "room": [asked[0], asked[-1]]}
    asked.clear()
    model.diffusion_model.prepare = failing(1000)
    try:
        drawn(loaded, 4.0)
    except DuoGenError as error:
        out["sentence"] = str(error)
    del model.diffusion_model.prepare
    out["room afterwards"] = model.memory_usage_factor / factor
    told: list[str] = []
    stream = without_repeats(told.append)
    first = stream()
    first("Once ")
    first("upon")
    second = stream()
    second("Once up")
    second("on a time")
    out["streamed"] = "".join(told)
    return out


def writing_short_of_memory(loaded: tuple) -> dict[str, Any]:
    """Memory ends after some tokens: the text is written again, and goes out once."""
    import torch
    from pack.nodes.steps import stages

    from duogen_core.document import Document, Text

    mllm, connector, _ = loaded
    request = Document().begin_turn("user", [Text("Draw a house.")])
    run, calls, pieces = mllm.core.run_layers, [], []

    def forward(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return run(*args, **kwargs)

    mllm.core.run_layers = forward
    written = stages.write(mllm, connector, request, max_new_tokens=40, seed=0, on_token=pieces.append)
    del mllm.core.run_layers
    return {"text": written.text, "streamed": "".join(pieces), "calls": len(calls)}


def tiled_vae(folder: Path) -> dict[str, float]:
    """A picture whose encoding and decoding do not fit: ComfyUI goes over to tiles, in the stock node and in ours."""
    import comfy.sd
    import torch
    from pack.nodes.steps import stages
    from safetensors.torch import load_file

    from duogen_core.document import Picture

    side = 272  # ComfyUI goes by tiles of 256
    vae = comfy.sd.VAE(sd=load_file(folder / "vae" / "tiny_wan.safetensors"), dtype=torch.float32)
    ramp = torch.linspace(0, 255, side)
    pixels = torch.stack(
        [ramp.expand(side, side), ramp[:, None].expand(side, side), ramp.flip(0).expand(side, side)], -1
    )
    picture = Picture(pixels.to(torch.uint8).numpy())
    whole = stages.reference_latent(vae, picture)
    image = vae.decode(whole)
    inner, refused = vae.first_stage_model, []
    encode, decode = inner.encode, inner.decode

    def only_tiles(run: Any, largest: int) -> Any:
        def limited(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            if x.shape[-1] > largest:
                refused.append(x.shape[-1])
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return run(x, *args, **kwargs)

        return limited

    inner.encode, inner.decode = only_tiles(encode, side - 8), only_tiles(decode, side // 8 - 1)
    again = Picture(picture.pixels.copy(), {"another": True})
    tiled = stages.reference_latent(vae, again, side)
    return {
        "encoded": float((tiled - whole).abs().mean() / whole.abs().mean()),
        "decoded": float((vae.decode(whole) - image).abs().mean()),
        "refused": len(refused),
    }


def estimates(loaded: tuple) -> dict[str, list[float]]:
    """What ComfyUI is asked to keep free, with no, one and two earlier pictures."""
    from types import SimpleNamespace

    import numpy as np
    from pack.nodes.host import model_management

    from duogen_core.document import Document, Picture, Text

    mllm, _, model = loaded
    empty = Document().begin_turn("user", [Text("Draw a house.")])
    picture = Picture(np.zeros((256, 256, 3), np.uint8))
    seen = [empty, empty.append(picture), empty.append(picture).append(picture)]
    config = {"num_attention_heads": 6, "attention_head_dim": 32, "num_layers": 8, "patch_size": (1, 2, 2)}
    causal = SimpleNamespace(config=SimpleNamespace(attention="frame_causal", **config))
    return {
        "drawing": [
            model.model.memory_required([1, 16, 1, 32, 32], {"ref_latents": [[1, 16, 1024 * n]]}) for n in range(3)
        ],
        "writing": [model_management.memory_of_context(mllm, document, 10) for document in seen],
        "kept of pictures": [model_management.memory_of_frame_cache(causal, 1024 * n, 4) for n in range(3)],
    }


def main(folder: Path) -> dict[str, Any]:
    import torch

    from duogen_core.sampling import sigmas

    out: dict[str, Any] = {}
    loaded = parts(folder)
    for guidance in (1.0, 8.0):
        expected = pipelines_latent(folder, guidance)
        out[f"pipeline {guidance}"] = away(drawn(loaded, guidance), expected)
    out["stock scheduler"] = away(drawn(loaded, 8.0, "simple"), expected)
    times, wanted = loaded[2].get_model_object("model_sampling"), sigmas(36, schedule="karras")
    import comfy.samplers

    simple = comfy.samplers.calculate_sigmas(times, "simple", 36)
    out["simple against published"] = float((simple - wanted).abs().max())
    out["short of memory"] = short_of_memory(loaded, drawn(loaded, 4.0))
    out["estimates"] = estimates(loaded)
    out["writing"] = writing_short_of_memory(loaded)
    del loaded
    with torch.inference_mode():  # as ComfyUI runs its nodes
        out["tiles"] = tiled_vae(folder)
    out["fp8"] = fp8(folder)
    return out


if __name__ == "__main__":
    comfyui_folder, model_folder = sys.argv[1:3]
    start(comfyui_folder)
    print(json.dumps(main(Path(model_folder))))
