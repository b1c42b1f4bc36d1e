"""Where a model computes and in what: devices, dtypes, weights that come to a device only while they are used.

In:  what the user asked for ("auto", "cuda:1", "bf16", …), modules on the CPU.
Out: a torch.device, a torch.dtype, or one sentence that names what there is.

Offloading here, not accelerate's hooks: those fire at a module's `forward`, while a DiT and a VAE here are run through
methods of their own; `cpu_offload_with_hook` copies weights back to the computer's memory each time, though inference
never changes them; and `cpu_offload` puts new, empty parameters in place of the old ones, by which the MLLM's prefix
cache would take them for other weights. `Offloaded` keeps the parameters where they are (often mapped from their file)
and puts copies on the device in their place, which are dropped afterwards.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import suppress

import torch
from torch import nn

from duogen_core.errors import DuoGenError
from duogen_core.weights.quantised import ScaledLinear

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
ACCELERATORS = ("cuda", "xpu", "mps")  # what "auto" looks for, the first that is there; ROCm calls itself cuda
# A float32 model this small runs in the precision it was trained in: halving it would save next to nothing.
SMALL_MODEL = 300_000_000


# ---------------------------------------------------------------- devices


def count_devices(kind: str) -> int:
    """Returns how many devices of a kind torch finds here."""
    if kind == "cpu":
        return 1
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    with suppress(Exception):  # a kind that this torch was built without
        module = torch.get_device_module(kind)
        return module.device_count() if module.is_available() else 0
    return 0


def available() -> list[str]:
    """Returns the names of all devices here, the CPU last."""
    found = []
    for kind in ACCELERATORS:
        count = count_devices(kind)
        found += [kind] if kind == "mps" and count else [f"{kind}:{index}" for index in range(count)]
    return [*found, "cpu"]


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """Returns the device of that name; "auto": the first graphics card, else the CPU."""
    if isinstance(name, str) and name.strip().lower() == "auto":
        return torch.device(available()[0])
    here = " and ".join(available())
    try:
        device = torch.device(name.strip().lower() if isinstance(name, str) else name)
    except RuntimeError:
        raise DuoGenError(f"The device {str(name)!r} is not known; give auto, or what is here: {here}.") from None
    count = count_devices(device.type)
    if device.type == "meta" or not count:
        built = "" if device.type in here or torch.version.cuda or device.type != "cuda" else " (torch without CUDA)"
        raise DuoGenError(f"There is no device {device} here{built}; give auto, or what is here: {here}.")
    if device.index is not None and device.index >= count:
        raise DuoGenError(f"There is no device {device} here, only {count} of its kind; give auto, or one of {here}.")
    if device.index is None and device.type not in ("cpu", "mps"):
        device = torch.device(device.type, 0)
    return device


def devices_of(name: str) -> list[torch.device]:
    """Returns all devices that a name stands for: "cuda" and "auto" for every card of the kind, "cuda:1" for itself."""
    device = choose_device(name)
    if device.index is None or name.strip().lower() not in ("auto", device.type):
        return [device]
    return [torch.device(device.type, index) for index in range(count_devices(device.type))]


def free_memory(device: torch.device) -> int | None:
    """Returns the free bytes of a device; None: not known (MPS and the CPU share the computer's memory)."""
    with suppress(Exception):
        return torch.get_device_module(device.type).mem_get_info(device)[0]
    return None


def empty_caches(*devices: torch.device) -> None:
    """Frees what nobody holds any more, and what torch keeps of freed memory for its next tensors."""
    gc.collect()
    for kind in {device.type for device in devices}:
        with suppress(Exception):  # no cache to empty
            torch.get_device_module(kind).empty_cache()


# ---------------------------------------------------------------- dtypes


def supported_dtypes(device: torch.device) -> tuple[torch.dtype, ...]:
    """Returns what a device computes in by itself (a CPU does all three, half precision slowly on most)."""
    half = True
    if device.type == "cuda" and torch.version.hip is None:
        half = torch.cuda.get_device_capability(device) >= (8, 0)  # older ones emulate bf16
    elif device.type == "mps":
        half = torch.backends.mps.is_macos_or_newer(14, 0)
    return (torch.float32, torch.float16, torch.bfloat16) if half else (torch.float32, torch.float16)


def choose_dtype(asked: str, device: torch.device, stored: torch.dtype, count: int) -> torch.dtype:
    """Returns the dtype for `count` weights that are stored in one.

    auto: on the CPU as stored. Else bf16, where the device can: the published weights were trained in it, and in fp16
    some of their activations are too large. A small float32 model stays one.
    """
    can = supported_dtypes(device)
    if asked != "auto":
        dtype = DTYPES[asked]
        if dtype not in can:
            names = " and ".join(name for name, each in DTYPES.items() if each in can)
            raise DuoGenError(
                f"The device {device} cannot compute in {asked}; it can in {names}. Or give --dtype auto."
            )
        return dtype
    if device.type == "cpu" or (stored == torch.float32 and count < SMALL_MODEL):
        return stored
    return torch.bfloat16 if torch.bfloat16 in can else torch.float32


def packed_dtype(device: torch.device) -> torch.dtype:
    """Returns what layers of GGUF's blocks compute in: half precision, on a CPU only where it multiplies in bf16."""
    if device.type == "cpu":
        known = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
        return torch.bfloat16 if known() else torch.float32
    return torch.bfloat16 if torch.bfloat16 in supported_dtypes(device) else torch.float16


def stored_dtype(module: nn.Module) -> tuple[torch.dtype, int]:
    """Returns the dtype of most weights that are not quantised, and the number of all weights."""
    counts: dict[torch.dtype, int] = {}
    for parameter in _convertible(module):
        counts[parameter.dtype] = counts.get(parameter.dtype, 0) + parameter.numel()
    total = sum(parameter.numel() for parameter in module.parameters())
    return max(counts, key=counts.__getitem__, default=torch.bfloat16), total


def _convertible(module: nn.Module) -> Iterator[nn.Parameter]:
    """Yields the floating-point parameters, without the weights of quantised layers."""
    quantised = {id(layer.weight) for layer in module.modules() if isinstance(layer, ScaledLinear)}
    for parameter in module.parameters():
        if parameter.is_floating_point() and id(parameter) not in quantised:
            yield parameter


def move(module: nn.Module, device: torch.device | None = None, dtype: torch.dtype | None = None) -> nn.Module:
    """Brings a module to a device and converts its parameters. Quantised weights stay quantised.

    Buffers keep their dtype: rotary tables and the scales of quantised layers are float32 on purpose.
    """
    if dtype is not None:
        for parameter in _convertible(module):
            if parameter.dtype != dtype:
                parameter.data = parameter.data.to(dtype)
    if device is not None:
        module.to(device)
    return module


def size_of(module: nn.Module) -> int:
    """Returns the bytes of a module's weights."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers()))


# ---------------------------------------------------------------- offloading


class Offloaded:
    """The weights of a module, copied to a device by `bring` and dropped there by `leave`.

    Buffers are small and stay on the device. A copy remembers in `home` which parameter it stands for, so that a cache
    that goes by the identity of weights (`Mllm`) knows it again.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.device = device
        self.places = [
            (owner, name, parameter)
            for owner in module.modules()
            for name, parameter in owner._parameters.items()
            if parameter is not None
        ]
        for owner in module.modules():
            for name, buffer in owner._buffers.items():
                owner._buffers[name] = None if buffer is None else buffer.to(device)

    def bring(self) -> None:
        copies: dict[int, nn.Parameter] = {}  # tied weights are copied once
        with torch.inference_mode(False), torch.no_grad():
            for owner, name, home in self.places:
                if id(home) not in copies:
                    copies[id(home)] = nn.Parameter(home.to(self.device, non_blocking=True), requires_grad=False)
                    copies[id(home)].home = home
                owner._parameters[name] = copies[id(home)]

    def leave(self) -> None:
        for owner, name, home in self.places:
            owner._parameters[name] = home


class Turns:
    """Parts of a model of which one at a time is on the device."""

    def __init__(self, parts: Mapping[str, nn.Module], device: torch.device) -> None:
        self.device, self.present = device, ""
        self.parts = {name: Offloaded(module, device) for name, module in parts.items()}

    def use(self, part: str) -> None:
        if part == self.present or part not in self.parts:
            return
        self.end()
        try:
            self.parts[part].bring()
        except BaseException:
            self.parts[part].leave()
            raise
        self.present = part

    def end(self) -> None:
        """Nobody's turn: all weights are in the computer's memory."""
        if self.present:
            self.parts[self.present].leave()
            self.present = ""
            empty_caches(self.device)


LEAST = 2**20  # bytes: a smaller layer is not worth a copy each time


def offload_layers(module: nn.Module, device: torch.device, stay: int = 0, least: int | None = None) -> int:
    """Lets each large layer of a module bring its weights when it runs; returns the bytes that do so.

    stay: as many bytes of layers stay on the device, the first ones. An embedding never comes: its rows are looked up
    where it lies, and only those are copied.
    """
    least = LEAST if least is None else least
    came: dict[int, int] = {}
    for layer in module.modules():
        own = {name: parameter for name, parameter in layer._parameters.items() if parameter is not None}
        size = sum(parameter.numel() * parameter.element_size() for parameter in own.values())
        large = bool(own) and size >= least and next(layer.children(), None) is None
        if large and isinstance(layer, nn.Embedding):
            layer.register_forward_pre_hook(lambda layer, args: (args[0].to(layer.weight.device), *args[1:]))
            layer.register_forward_hook(lambda layer, args, out: out.to(device))
        elif large and size > stay:
            weights = Offloaded(layer, device)
            layer.register_forward_pre_hook(lambda layer, args, weights=weights: weights.bring())
            layer.register_forward_hook(lambda layer, args, out, weights=weights: weights.leave(), always_call=True)
        else:
            stay -= size if large else 0
            with torch.inference_mode(False):  # it may be in the middle of an answer
                own = {name: nn.Parameter(each.detach().to(device), requires_grad=False) for name, each in own.items()}
            layer._parameters.update(own)
            layer._buffers.update({n: b if b is None else b.to(device) for n, b in layer._buffers.items()})
            continue
        came |= {id(parameter): parameter.numel() * parameter.element_size() for parameter in own.values()}
    return sum(came.values())
