"""LoRAs of our MODEL, through ComfyUI's own loaders, and of the language model.

MODEL. In: a ModelPatcher around a DiT whose layers have diffusers' names. Out: the same, and its clones, which (1) also
accept the official names (`blocks.0.self_attn.q_proj` of Cosmos, `blocks.0.self_attn.q` of Wan, written by trainers
that use ComfyUI's layout or that of whoever published the model), (2) raise an error where a LoRA has matrices of
another size, which ComfyUI only writes to its log, and (3) say on the node when it has nothing for this model. What it
has beyond that is a line in the log ("lora key not loaded").

ComfyUI makes the names that a LoRA file may use out of the keys of the model's `state_dict`, in one function
(`comfy.lora.model_lora_keys_unet`) that a pack cannot extend. Replacing it would change every other model, so it stays
as it is. Instead our model answers that function, and no other caller, with keys for the other names as well
(`with_other_names`); patches then come under those keys, and the patcher maps them to the layers (`accept_loras`).

Language model. In: a handle and an adapter that the core has read. Out: another handle on the same weights.
"""

from __future__ import annotations

import copy
import logging
import weakref
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import TYPE_CHECKING, Any

import comfy.utils
import torch
from comfy.patcher_extension import CallbacksMP
from comfy.weight_adapter import LoRAAdapter, WeightAdapterBase
from comfy_execution.utils import get_executing_context

from .families import family_of
from .gguf import whole_shape
from .language import in_users_language, translated

if TYPE_CHECKING:
    import comfy.model_patcher

    from duogen_core.mllm.adapter import Adapter, Change

    from .families import Family
    from .model_management import ModelHandle

PREFIX = "diffusion_model."
ASKS_FOR_NAMES = "model_lora_keys_unet"
NOTHING_FOUND = (
    "This LoRA changes nothing here: none of its layers is one of this MODEL's. (PEFT's adapter_model has its scale in "
    "another file: python -m duogen_core convert FOLDER NAME.safetensors makes one file of both.)"
)
logger = logging.getLogger(__name__)


def asks_for_names(caller: FrameType | None) -> bool:
    """Whether it is ComfyUI's function for the names in LoRA files that wants the keys of the model."""
    return caller is not None and caller.f_code.co_name == ASKS_FOR_NAMES


def with_other_names(state: Mapping[str, torch.Tensor], family: Family) -> dict[str, torch.Tensor]:
    """`state`, and each layer's weight again under a key for each other name of the layer."""
    return {**state, **{other: state[key] for other, key in _other_keys(state, family).items()}}


def _other_keys(state: Mapping[str, Any], family: Family) -> dict[str, str]:
    """{key for another name of a layer: its key}, for example {"diffusion_model.blocks.0.mlp.layer1.weight":
    "diffusion_model.transformer_blocks.0.ff.net.0.proj.weight"}."""
    found = {}
    for key in state:
        if key.startswith(PREFIX) and key.endswith(".weight"):
            for name in other_names(key.removeprefix(PREFIX).removesuffix(".weight"), family):
                found[f"{PREFIX}{name}.weight"] = key
    return found


def other_names(layer: str, family: Family) -> Iterator[str]:
    """What LoRA files call a layer of the DiT, beyond its own name. Of each of these ComfyUI makes more: with
    `transformer.` and `diffusion_model.` before it, and with underscores, after `lora_unet_` and `lycoris_`."""
    yield f"lora_transformer_{layer.replace('.', '_')}"
    official = family.official(layer)
    if official != layer:
        yield from dict.fromkeys((official, f"{family.prefix}{official}"))
        yield f"lora_transformer_{official.replace('.', '_')}"


def accept_loras(patcher: comfy.model_patcher.ModelPatcher) -> None:
    """Patches under the other names reach the layers of this patcher and of its clones."""
    _look_at_patches(patcher)
    patcher.add_callback(CallbacksMP.ON_CLONE, lambda original, clone: _look_at_patches(clone))


def _look_at_patches(patcher: comfy.model_patcher.ModelPatcher) -> None:
    owner = weakref.ref(patcher)  # a patcher that held itself would not be freed when its last user goes

    @in_users_language
    def own_patches(patches: Mapping[Any, Any]) -> tuple[Any, dict[Any, Any]]:
        own = owner()
        assert own is not None
        keys = _own_keys(own, patches)
        _check(own, patches, keys)
        return own, keys

    # Both return the keys that the model has, as they were given.
    def add_patches(patches: Mapping[Any, Any], *args: Any, **kwargs: Any) -> list[Any]:
        own, keys = own_patches(patches)
        taken = set(type(own).add_patches(own, {keys[key]: patches[key] for key in patches}, *args, **kwargs))
        return [key for key in patches if keys[key] in taken]

    def add_hook_patches(hook: Any, patches: Mapping[Any, Any], *args: Any, **kwargs: Any) -> list[Any]:
        own, keys = own_patches(patches)
        mine = {keys[key]: patches[key] for key in patches}
        taken = set(type(own).add_hook_patches(own, hook, mine, *args, **kwargs))
        return [key for key in patches if keys[key] in taken]

    patcher.add_patches, patcher.add_hook_patches = add_patches, add_hook_patches


def _own_keys(patcher: comfy.model_patcher.ModelPatcher, patches: Mapping[Any, Any]) -> dict[Any, Any]:
    """{key of a patch: the same with the layer's own name}. A key is a tensor's, or a tuple that begins with it."""
    weights = _other_keys(patcher.model.state_dict(), family_of(patcher.model.diffusion_model))
    layers = {other.removesuffix(".weight"): key.removesuffix(".weight") for other, key in weights.items()}

    def own(key: str) -> str:
        layer, dot, tensor = key.rpartition(".")
        return f"{layers.get(layer, layer)}{dot}{tensor}"

    return {key: own(key) if isinstance(key, str) else (own(key[0]), *key[1:]) for key in patches}


def _check(patcher: comfy.model_patcher.ModelPatcher, patches: Mapping[Any, Any], keys: Mapping[Any, Any]) -> None:
    """Raises on matrices of another size. Where no layer was found at all, the LoRA may still be one for a CLIP, which
    stock loaders let pass: then a message on the node is enough."""
    from duogen_core.errors import DuoGenError

    if not patches:
        report(NOTHING_FOUND)
        return
    state = patcher.model.state_dict()
    for key, patch in patches.items():
        own = keys[key]
        _check_merged(patcher, state, own, patch)
        if own in state and isinstance(patch, LoRAAdapter):
            up, down = patch.weights[:2]
            found = whole_shape(comfy.utils.get_attr(patcher.model, own.removesuffix(".weight")))
            if found != (up.shape[0], *down.shape[1:]):
                layer = own.removeprefix(PREFIX).removesuffix(".weight")
                raise DuoGenError(
                    f"This LoRA is for another size of model: {layer} is for {up.shape[0]}x{down.shape[1]}, the "
                    f"MODEL's is {'x'.join(map(str, found))}."
                )


def _check_merged(patcher: comfy.model_patcher.ModelPatcher, state: Mapping[str, Any], key: Any, patch: Any) -> None:
    """Raises where another model's weight is to be merged into this one that has none of its name and size: ComfyUI
    goes on without it, with a line in its log. patch: that model's own weight, and patches of it, of Model Merge nodes;
    or ("model_as_lora", …), of Create Hook Model as LoRA."""
    from duogen_core.errors import DuoGenError

    if isinstance(patch, list):
        other = patch[0][0]
    elif isinstance(patch, tuple) and patch[0] == "model_as_lora":
        other = patch[1][0]
    else:
        return
    name = key if isinstance(key, str) else key[0]
    if name not in state:
        raise DuoGenError(
            f"The two models cannot be merged: one has {name.removeprefix(PREFIX)}, which this MODEL has not. Merge "
            "models of one kind and size."
        )
    layer, _, tensor = name.rpartition(".")
    own = state[name].shape
    if tensor == "weight":
        own = whole_shape(comfy.utils.get_attr(patcher.model, layer))
    if other.dtype != torch.uint8 and tuple(other.shape) != tuple(own):  # bytes: a GGUF's blocks, of any shape
        size, ours = ("x".join(map(str, shape)) for shape in (other.shape, own))
        raise DuoGenError(
            f"The two models cannot be merged: {name.removeprefix(PREFIX)} is {size} in one, {ours} in this MODEL. "
            "Merge models of one size."
        )


def report(message: str) -> None:
    """Writes to the log and on the running node, which is a stock loader."""
    from server import PromptServer

    logger.warning("DuoGen: %s", message)
    context = get_executing_context()
    if context is not None and PromptServer.instance is not None:
        PromptServer.instance.send_progress_text(translated(message), context.node_id)


class CoreAdapter(WeightAdapterBase):
    """A change made by the core's own arithmetic, which is PEFT's: ComfyUI's DoRA divides by other lengths.

    weights: the fields of a Change; ComfyUI makes copies of the adapter with its tensors on other devices.
    """

    name = "duogen"

    def __init__(self, loaded_keys: set[str], weights: tuple[Any, ...]) -> None:
        self.loaded_keys, self.weights = loaded_keys, weights

    def calculate_weight(
        self, weight: Any, key: str, strength: float, strength_model: float, offset: Any, function: Any, *_: Any
    ) -> Any:
        from duogen_core.mllm.adapter import Change

        merged = Change(*self.weights).to(weight.device).merged(weight, strength)
        weight += function((merged - weight.float()).to(weight.dtype))
        return weight


def patch_of(change: Change) -> WeightAdapterBase:
    if change.kind == "LoRA" and change.lengths is None:
        up, down = change.parts
        return LoRAAdapter(set(), (up, down, change.scale * len(down), None, None, None))
    return CoreAdapter(set(), (change.kind, change.parts, change.scale, change.lengths))


def mllm_with_lora(mllm: ModelHandle, adapter: Adapter, strength: float) -> ModelHandle:
    """Returns the language model with this LoRA, on the same weights: ComfyUI changes them when this one runs, and back
    for the others. Rows of tokens replace the model's own at any strength: half a <BOV> means nothing."""
    from comfy.patcher_extension import CallbacksMP

    from duogen_core.mllm.adapter import with_marker

    core = with_marker(mllm.core, adapter)
    patcher = mllm.patcher.clone()
    patches: dict[Any, Any] = {f"model.{name}.weight": patch_of(change) for name, change in adapter.layers.items()}
    for name, rows in adapter.rows.items():
        for token, row in rows.items():
            patches[f"model.{name}.weight", (0, token, 1)] = ("set", (row[None],))
    taken = patcher.add_patches(patches, strength)
    assert len(taken) == len(patches), "read_adapter names the modules of this very model"
    patcher.add_callback(CallbacksMP.ON_DETACH, lambda _, unpatch_all=True: unpatch_all and core.clear_cache())
    changed = copy.copy(mllm)
    changed.core, changed.patcher = core, patcher
    return changed
