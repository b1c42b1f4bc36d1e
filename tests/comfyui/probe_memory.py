"""Runs inside ComfyUI's Python, started by test_memory.py: what ComfyUI's memory management does to our models.

In: `python probe_memory.py COMFYUI_FOLDER CHECKPOINT`. Out: one JSON object on the last line. Every figure is compared
with the same weights as plain modules. A CPU has no small memory, so partial loading is asked for by hand, as
`load_models_gpu` would ask for it on a full card.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def start(comfyui: str, *flags: str) -> None:
    here = Path(__file__).resolve().parent
    sys.path[:] = [comfyui] + [p for p in sys.path if p and Path(p).resolve() != here]
    sys.path.append(str(here))
    import standins

    standins.install()
    sys.argv = ["main.py", "--cpu", *flags]
    import comfy.options

    comfy.options.enable_args_parsing()
    import importlib.util

    pack = here.parents[1]
    spec = importlib.util.spec_from_file_location("pack", pack / "__init__.py", submodule_search_locations=[str(pack)])
    sys.modules["pack"] = importlib.util.module_from_spec(spec)
    import pack.nodes  # makes duogen_core importable


def unmanaged(module: Any) -> list[str]:
    """Parameters that ComfyUI cannot cast on use."""
    return [
        f"{name}.{parameter}"
        for name, layer in module.named_modules()
        for parameter, _ in layer.named_parameters(recurse=False)
        if not hasattr(layer, "comfy_cast_weights")
    ]


def main(checkpoint: str) -> dict[str, Any]:
    import comfy.model_management as mm
    import torch
    from pack.nodes.host import diffusion_model, model_config, model_management

    from duogen_core.checkpoint import load_checkpoint
    from duogen_core.document import Document, Text

    torch.manual_seed(0)
    plain, ours = load_checkpoint(checkpoint), load_checkpoint(checkpoint)
    width = plain.dit.config.text_embed_dim
    reference, target, text = torch.randn(1, 16, 8, 8), torch.randn(1, 16, 8, 12), torch.randn(1, 9, width)
    request = Document().begin_turn("user", [Text("Draw a red star.")])
    out: dict[str, Any] = {}

    def dit(model: Any) -> torch.Tensor:
        with torch.inference_mode():
            return model.forward_packed([reference, target], torch.tensor([0.5]), text, frame_ends=(4,))

    def states(mllm: Any) -> torch.Tensor:
        mllm.clear_cache()
        return mllm.encode(request, plain.connector).states

    model = diffusion_model.make_model(ours.dit, shift=2.0, latent_format=model_config.PictureLatent())
    mllm = model_management.mllm_handle(ours.mllm)
    out["unmanaged"] = unmanaged(ours.dit) + unmanaged(ours.mllm.model)
    import comfy.ops

    from duogen_core.linear import FastLinear

    out["linear layers"] = []
    for device in ("cpu", "cuda"):
        one = torch.nn.Module()
        one.layer = torch.nn.Linear(4, 4)
        one.layer.__class__ = FastLinear
        model_management.assign_operations(one, comfy.ops.manual_cast, torch.device(device))
        out["linear layers"].append(
            [type(one.layer) is comfy.ops.manual_cast.Linear, isinstance(one.layer, FastLinear)]
        )
    out["lora key"] = next(key for key in model.model.state_dict() if "blocks.0.attn1.to_q" in key)

    def difference() -> float:
        pairs = ((dit(ours.dit), dit(plain.dit)), (states(ours.mllm), states(plain.mllm)))
        return max(float((a - b).abs().max()) for a, b in pairs)

    mm.load_models_gpu([model, mllm.patcher])
    out["loaded"] = difference()
    mm.load_models_gpu([mllm.patcher])
    out["cache at the next use"] = ours.mllm.cache_tokens()
    mm.unload_all_models()
    mllm.patcher.detach()
    out["cache after unloading"] = ours.mllm.cache_tokens()

    # A full card: nothing fits, every layer is cast when it is used.
    for patcher in (model, mllm.patcher):
        patcher.load(patcher.load_device, lowvram_model_memory=1)
    out["partly loaded"] = bool(model.model.model_lowvram) and difference()
    for patcher in (model, mllm.patcher):
        patcher.detach()

    # Weights kept in half precision and computed with in single: an older card.
    model_management.working_dtypes = diffusion_model.working_dtypes = lambda *_: (torch.bfloat16, torch.float32)
    ours = load_checkpoint(checkpoint)
    diffusion_model.make_model(ours.dit, shift=2.0, latent_format=model_config.PictureLatent())
    model_management.mllm_handle(ours.mllm)
    for module in (plain.dit, plain.mllm.model):
        module.bfloat16().float()
    out["half precision"] = difference()
    out["computed in"] = [str(dit(ours.dit).dtype), str(ours.mllm._cache.last.dtype)]
    return out


def kept_results() -> dict[str, Any]:
    """What caches.ResultCache holds on to when its bounds are reached: names of results of 400 bytes, bound 1000."""
    import torch
    from comfy_api.latest import Caching
    from pack.nodes.host.caches import ResultCache, plain_bytes

    def result(value: Any = None) -> Any:
        return Caching.CacheValue([[torch.zeros(100) if value is None else value]])

    cache, out = ResultCache(limit=1000), {}
    for name in ("a1", "b1", "c1"):
        cache.add(name, result())
    out["of one run"] = sorted(cache.results)
    cache.end_run()
    cache.get("b1")
    cache.add("a2", result())
    out["of the next run"] = sorted(cache.results)
    cache.add("model", result(object()))
    out["never"] = sorted(cache.results)
    cache.end_run()
    cache.get("a2")
    cache.end_run()
    cache.end_run()
    out["two runs later"] = sorted(cache.results)
    shared = torch.zeros(100)
    out["counted once"] = plain_bytes([[shared], {"samples": shared[:50]}], set())
    return out


if __name__ == "__main__":
    comfyui_folder, checkpoint_folder = sys.argv[1:3]
    start(comfyui_folder)
    print(json.dumps({**main(checkpoint_folder), "kept": kept_results()}))
