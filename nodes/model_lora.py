"""LoRAs on our MODEL through ComfyUI's own loaders: under which names they find its layers, and what is refused.

In:  a ModelPatcher around a DiT whose layers have diffusers' names. Out: the same, and its clones, which (1) are also
found by the official names (`blocks.0.self_attn.q_proj`, written by trainers that go by ComfyUI's or NVIDIA's layout)
and (2) raise a sentence where a LoRA has nothing for this model, or matrices of another size, of which ComfyUI tells
its log alone. What a LoRA has beyond this model's layers stays a line in that log ("lora key not loaded").
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import comfy.lora
import comfy.utils
import comfy.weight_adapter
from comfy.patcher_extension import CallbacksMP

if TYPE_CHECKING:
    import comfy.model_patcher

PREFIX = "diffusion_model."


def accept_loras(patcher: comfy.model_patcher.ModelPatcher) -> None:
    _teach_names()
    _look_at_patches(patcher)
    patcher.add_callback(CallbacksMP.ON_CLONE, lambda original, clone: _look_at_patches(clone))


def names_in_files(layer: str) -> Iterator[str]:
    """What LoRA files call a layer of the DiT, beyond the namings that ComfyUI derives from its own name."""
    from duogen_core.formats.cosmos_keys import to_official

    yield f"lora_transformer_{layer.replace('.', '_')}"
    official = to_official(f"{layer}.weight").removeprefix("net.").removesuffix(".weight")
    if official != layer:
        flat = official.replace(".", "_")
        yield from (official, f"net.{official}", f"{PREFIX}{official}", f"transformer.{official}")
        yield from (f"lora_unet_{flat}", f"lora_transformer_{flat}", f"lycoris_{flat}")


def _teach_names() -> None:
    """ComfyUI has one function for these names, and no way in but to stand before it."""
    stock = comfy.lora.model_lora_keys_unet
    if getattr(stock, "knows_duogen", False):
        return

    @functools.wraps(stock)
    def model_lora_keys_unet(model: Any, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        from .dit_model import DuoGenModel

        names = stock(model, *args, **kwargs)
        if isinstance(model, DuoGenModel):
            for key in model.state_dict():
                if key.startswith(PREFIX) and key.endswith(".weight"):
                    layer = key.removeprefix(PREFIX).removesuffix(".weight")
                    names.update(dict.fromkeys(names_in_files(layer), key))
        return names

    model_lora_keys_unet.knows_duogen = True  # type: ignore[attr-defined]
    comfy.lora.model_lora_keys_unet = model_lora_keys_unet


def _look_at_patches(patcher: comfy.model_patcher.ModelPatcher) -> None:
    owner = weakref.ref(patcher)  # a patcher that held itself would not be freed when its last user goes

    def add_patches(patches: Mapping[Any, Any], *args: Any, **kwargs: Any) -> Any:
        own = owner()
        assert own is not None
        check_patches(own, patches)
        return type(own).add_patches(own, patches, *args, **kwargs)

    patcher.add_patches = add_patches


def check_patches(patcher: comfy.model_patcher.ModelPatcher, patches: Mapping[Any, Any]) -> None:
    from duogen_core.errors import DuoGenError

    if not patches:
        raise DuoGenError(
            "This LoRA is for another model: none of its layers is one of this MODEL's. (PEFT's adapter_model has its "
            "scale in another file: python -m duogen_core convert FOLDER NAME.safetensors makes one file of both.)"
        )
    for key, patch in patches.items():
        if isinstance(key, str) and isinstance(patch, comfy.weight_adapter.LoRAAdapter):
            up, down = patch.weights[:2]
            found = tuple(comfy.utils.get_attr(patcher.model, key).shape)
            if found != (up.shape[0], *down.shape[1:]):
                layer = key.removeprefix(PREFIX).removesuffix(".weight")
                raise DuoGenError(
                    f"This LoRA is for another size of model: {layer} is for {up.shape[0]}x{down.shape[1]}, the "
                    f"MODEL's is {'x'.join(map(str, found))}."
                )
