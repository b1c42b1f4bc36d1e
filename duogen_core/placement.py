"""Puts the parts of a model where they compute: whole on one device, on several, in turn, or layer by layer.

In:  a Placement (--device, --dtype, --offload) and the Components on the CPU. Out: the same Components, and a sentence
that says what was done, where that is not the obvious.

auto decides by the same estimate that `inspect --memory` shows (memory.py), against the free memory of the devices:
whole where it fits; on several cards of one kind, each part whole on one of them; a language model that is larger than
a card over several of them; else one part at a time (model); else layer by layer (layers).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from duogen_core import checkpoint
from duogen_core.checkpoint import Components, part_dtype
from duogen_core.compiling import Compiled, pieces_of_mllm
from duogen_core.device_options import DEFAULT, Placement
from duogen_core.devices import (
    choose_device,
    choose_dtype,
    devices_of,
    free_memory,
    move,
    offload_layers,
    size_of,
    stored_dtype,
)
from duogen_core.errors import DuoGenError
from duogen_core.identify import Found, dit_shape
from duogen_core.memory import HALF, Need, Term, terms, verdict
from duogen_core.out_of_memory import warn
from duogen_core.weights.gguf_layers import largest_layer, unpack_layers
from duogen_core.weights.writing import readable

if TYPE_CHECKING:
    import os

    import torch

    from duogen_core.mllm.base import Mllm

SPARE = 0.9  # the share of free memory that is planned with: estimates are estimates
MLLM_WORK = 2 * 2**30  # bytes for a language model by itself: its KV cache and one step
TURNING = ("mllm", "dit", "vae")


def silent(_: str) -> None:
    pass


def load(model: str | os.PathLike = checkpoint.DEFAULT_MODEL, placement: Placement = DEFAULT) -> Components:
    """Loads a DuoGen model on the CPU, in the dtype that it will run in."""
    device = choose_device(placement.device)  # one that is not there is told before anything slow
    if placement.dtype == "auto" and device.type == "cpu":
        return checkpoint.load_checkpoint(model)
    from duogen_core.dit.loading import load_dit
    from duogen_core.mllm.loading import load_mllm, stored_in

    def reading(load: Callable, what: str) -> Callable:
        return lambda path: load(path, choose_dtype(placement.dtype, device, *stored_in(path, what)))

    loaders = {"mllm": reading(load_mllm, "weights of the MLLM"), "dit": reading(load_dit, "weights of the DiT")}
    return checkpoint.load_checkpoint(model, loaders=loaders)


def load_placed(
    model: str | os.PathLike = checkpoint.DEFAULT_MODEL,
    placement: Placement = DEFAULT,
    say: Callable[[str], None] = silent,
) -> Components:
    """Loads a DuoGen model and puts it where it will run, for images of its own size."""
    return place(load(model, placement), placement, None, say)


def place_mllm(mllm: Mllm, placement: Placement = DEFAULT, say: Callable[[str], None] = warn) -> Mllm:
    """Puts a language model by itself where it will run, layer by layer where it does not fit."""
    device = choose_device(placement.device)
    dtype = choose_dtype(placement.dtype, device, *stored_dtype(mllm.model))
    if placement.dtype != "auto":  # layers in GGUF's blocks are made whole: faster, in more memory
        unpack_layers(mllm.model, dtype)
    move(mllm.model, dtype=dtype)
    free = free_memory(device)
    stay = None if free is None else int(free * SPARE) - MLLM_WORK
    if (
        device.type == "cpu"
        or placement.offload == "off"
        or (placement.offload != "layers" and (stay is None or size_of(mllm.model) <= stay))
    ):
        mllm.model.to(device)
        if placement.compile:
            Compiled(pieces_of_mllm(mllm.model), say)
    else:
        offload_layers(mllm.model, device, stay=max(0, stay or 0))
    mllm.device = device
    mllm.clear_cache()
    return mllm


# ---------------------------------------------------------------- placing

HOW = {"whole": "off", "in turn": "model", "offloaded": "layers", "no": "layers"}  # what the estimate says -> --offload
KINDS = {"mllm": "MLLM", "connector": "connector", "dit": "DiT", "vae": "VAE"}


def place(
    components: Components,
    placement: Placement = DEFAULT,
    need: Need | None = None,
    say: Callable[[str], None] = silent,
) -> Components:
    """Brings all parts to where they will run. need: what one answer asks for; say: gets what was done, once."""
    _place(components, placement, need, say)
    if placement.compile:
        components.compile(say)
    return components


def _place(components: Components, placement: Placement, need: Need | None, say: Callable[[str], None]) -> None:
    device, how = choose_device(placement.device), placement.offload
    if device.type == "cpu":
        if how in ("model", "layers"):
            raise DuoGenError(f"--offload {how} is for a graphics card, but the device is the CPU; leave it out.")
        if placement.dtype != "auto":
            components.to(device, placement.dtype)
        return
    for name, module in components.modules.items():
        kept = part_dtype(name, module, device, placement.dtype)
        if placement.dtype != "auto" and kept is not None:
            unpack_layers(module, kept)
        move(module, dtype=kept)
    picture = components.config.picture
    counted = _estimate(components, need or Need(picture.width, picture.height))
    sizes = {name: sum(term.bytes for term in counted if term.part == kind) for name, kind in KINDS.items()}
    have = {each: free_memory(each) for each in devices_of(placement.device)}
    free = {each: None if size is None else int(size * SPARE) for each, size in have.items()}
    if how == "auto":
        how = "off" if free[device] is None else HOW[verdict(counted, free[device])[0]]
        if how == "model" and _largest_turn(counted) > free[device]:
            how = "layers"
        if how != "off" and _over_cards(components, sizes, free, say):
            return
    total = readable(sum(sizes.values()))
    if how == "off":
        components.to(device, placement.dtype)
    elif how == "model":
        components.take_turns(device)
        say(f"The model needs {total} in all; its parts take turns on {device}.")
    else:
        weights = {name: size_of(module) for name, module in components.modules.items()}
        work = max(sizes[name] - weights[name] for name in TURNING)
        stay = max(0, (free[device] or 0) - work - weights["connector"] - weights["vae"])
        come = readable(components.come_by_layer(device, stay))
        say(f"The model needs {total} in all; {come} of its weights come to {device} layer by layer, slowly.")


def _estimate(components: Components, need: Need) -> list[Term]:
    """The terms of memory.py, from the parts that are loaded, and in the precision that they have."""
    text = components.mllm.model.config.get_text_config()
    heads, dit, vae = text.num_attention_heads, components.dit.config, components.vae.model
    shapes = {
        "mllm": {
            "layers": text.num_hidden_layers, "width": text.hidden_size,
            "kv_heads": getattr(text, "num_key_value_heads", heads),
            "head_dim": getattr(text, "head_dim", None) or text.hidden_size // heads,
        },
        "connector": {},
        "dit": {**dit_shape(dit), "causal": int(dit.attention == "frame_causal")},
        "vae": {"base": vae.config.decoder_base_dim or vae.config.base_dim, "patch": vae.config.patch_size or 1},
    }  # fmt: skip
    found = []
    for name, module in components.modules.items():
        dtype, count = stored_dtype(module)
        shape = shapes[name] | ({"largest": largest} if (largest := largest_layer(module)) else {})
        part = Found("", KINDS[name], "", "", count, size_of(module), {}, shape=shape)
        for term in terms([part], need):  # which counts work in half precision
            found.append(term if term.weights else replace(term, bytes=term.bytes * dtype.itemsize // HALF))
    return found


def _largest_turn(counted: Sequence[Term]) -> int:
    """Bytes on the card in the turn that takes most: a part, and what the others have cached, which stays there."""
    cached = {
        part: sum(term.bytes for term in counted if term.part == part and "cache" in term.what)
        for part in KINDS.values()
    }
    whole = {part: sum(term.bytes for term in counted if term.part == part) for part in KINDS.values()}
    always = whole["connector"] + sum(cached.values())
    return max(always + whole[KINDS[part]] - cached[KINDS[part]] for part in TURNING)


def _over_cards(
    components: Components,
    sizes: dict[str, int],
    free: dict[torch.device, int | None],
    say: Callable[[str], None],
) -> bool:
    """Puts each part whole on one of several cards, the connector beside the MLLM and the VAE beside the DiT."""
    if len(free) < 2:
        return False
    groups = {"mllm": ("mllm", "connector"), "dit": ("dit", "vae")}
    left, chosen = {each: size or 0 for each, size in free.items()}, {}
    needed = {name: sum(sizes[part] for part in parts) for name, parts in groups.items()}
    for name in sorted(groups, key=needed.__getitem__, reverse=True):
        chosen[name] = max(left, key=left.__getitem__)
        left[chosen[name]] -= needed[name]
    if min(left.values()) < 0:
        return _mllm_over_cards(components, sizes, needed["dit"], free, say)
    for name, parts in groups.items():
        for part in parts:
            components.modules[part].to(chosen[name])
    components._now_on(chosen["mllm"], "off")
    say(f"The language model is on {chosen['mllm']}, the DiT on {chosen['dit']}.")
    return True


def _mllm_over_cards(
    components: Components,
    sizes: dict[str, int],
    dit: int,
    free: dict[torch.device, int | None],
    say: Callable[[str], None],
) -> bool:
    """Puts the language model's layers on several cards, by accelerate's device map, and the DiT whole on one of them.

    The DiT is never split: accelerate's hooks, which bring tensors from card to card, fire at `forward`.
    """
    from accelerate import dispatch_model, infer_auto_device_map

    model, cards = components.mllm.model, list(free)
    work = sizes["mllm"] - size_of(model)  # every card is given room for all of it
    left = {card: (size or 0) - work for card, size in free.items()}
    home = max(left, key=left.__getitem__)
    left[home] -= dit + sizes["connector"]
    room = {number: max(0, left[card]) for number, card in enumerate(cards)}
    if left[home] < 0 or sum(room.values()) < size_of(model):
        return False
    map_ = infer_auto_device_map(
        model, max_memory={**room, "cpu": 0}, no_split_module_classes=list(model._no_split_modules)
    )
    if not all(isinstance(number, int) for number in map_.values()):  # some of it found no card
        return False
    dispatch_model(model, {name: str(cards[number]) for name, number in map_.items()})
    for name in ("connector", "dit", "vae"):
        components.modules[name].to(home)
    components._now_on(model.get_input_embeddings().weight.device, "off")
    used = " and ".join(str(cards[number]) for number in sorted(set(map_.values())))
    say(f"The language model is on {used}, the DiT on {home}.")
    return True
