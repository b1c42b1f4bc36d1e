"""A second device without a card: its tensors compute on the CPU and say that they lie on "card:0" or "card:1".

    with watched() as seen:
        out = model.to("card:0")(x.to("card:0"))      # model(x) raises, as on a GPU: tensors on two devices
    assert seen.syncs == 0

It is a backend of torch written in Python (PrivateUse1). Every kernel takes the CPU tensors out of its arguments,
refuses tensors of two devices in torch's own words, runs, and wraps what comes out: so numbers equal the CPU's. What
makes Python wait for a GPU is counted: numbers read back, copies from one device to another, and results whose size
depends on numbers (nonzero, masks as an index). Memory is counted by storage; with `limited`, it runs out.
Unlike a GPU it never computes beside Python, and a copy that would not block is counted too.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map

NAME, COUNT = "card", 2
READS = (
    "_local_scalar_dense",
    "equal",
    "nonzero",
    "masked_select",
    "_unique2",
    "bincount",
)  # results or sizes are read
COPIES = ("_to_copy", "copy_", "copy")
INDEXING = ("index.Tensor", "index_put", "_index_put_impl_", "_unsafe_index.Tensor")
MADE = (
    "empty.memory_format", "empty_strided", "arange", "arange.start", "arange.start_step", "linspace", "eye",
    "randperm", "tril_indices", "triu_indices", "_local_scalar_dense",
)  # fmt: skip


# ---------------------------------------------------------------- what is counted


@dataclass
class Seen:
    """What happened inside `watched`. reads: kernels that made Python wait; copies: (from, to, bytes)."""

    reads: list[str] = field(default_factory=list)
    copies: list[tuple[str, str, int]] = field(default_factory=list)
    kernels: int = 0

    @property
    def syncs(self) -> int:
        return len(self.reads) + len(self.copies)


_watching: list[Seen] = []


@contextmanager
def watched() -> Iterator[Seen]:
    seen = Seen()
    _watching.append(seen)
    try:
        yield seen
    finally:
        _watching.remove(seen)


class Memory:
    """Bytes of the storages that are alive on one card."""

    def __init__(self, index: int) -> None:
        self.index, self.used, self.highest, self.limit = index, 0, 0, None
        self._known: set[int] = set()

    def add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or not size:
            return
        if self.limit is not None and self.used + size > self.limit:
            raise torch.OutOfMemoryError(
                f"{NAME} out of memory. Tried to allocate {size} bytes on {NAME}:{self.index}."
            )
        self._known.add(key)
        self.used += size
        self.highest = max(self.highest, self.used)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.used -= size


memory = [Memory(index) for index in range(COUNT)]


@contextmanager
def limited(size: int, index: int = 0) -> Iterator[Memory]:
    """At most `size` bytes more than are used now."""
    gc.collect()
    mine = memory[index]
    mine.limit, mine.highest = mine.used + size, mine.used
    try:
        yield mine
    finally:
        mine.limit = None


# ---------------------------------------------------------------- the tensor and its kernels


class CardTensor(Tensor):
    """`numbers`: the CPU tensor that holds the numbers."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor, device: torch.device) -> CardTensor:
        memory[device.index].add(numbers.untyped_storage())
        made = Tensor._make_wrapper_subclass(
            cls, numbers.size(), strides=numbers.stride(), storage_offset=numbers.storage_offset(), dtype=numbers.dtype,
            device=device,
        )  # fmt: skip
        made.numbers = numbers
        return made

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = op.decompose(*args, **(kwargs or {}))  # under inference_mode kernels made of others arrive here too
        return _run(op, *args, **(kwargs or {})) if out is NotImplemented else out

    __torch_function__ = torch._C._disabled_torch_function_impl

    def tolist(self) -> Any:  # torch refuses it for subclasses
        return self.cpu().tolist()

    def __repr__(self, **_: Any) -> str:
        return f"{self.numbers!r} on {self.device}"


def _run(op: Any, *args: Any, **kwargs: Any) -> Any:
    name = op.name().removeprefix("aten::")
    leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    device = _device_of(name, leaves, args, kwargs)
    if "device" in kwargs:
        kwargs = {**kwargs, "device": "cpu"}
    cpu_args, cpu_kwargs = tree_map(lambda x: x.numbers if isinstance(x, CardTensor) else x, (args, kwargs))
    out = op(*cpu_args, **cpu_kwargs)
    given = {id(leaf.numbers): leaf for leaf in leaves if isinstance(leaf, CardTensor)}

    def wrapped(each: Any) -> Any:
        if not isinstance(each, Tensor):
            return each
        if id(each) in given:  # it was changed in place
            assert given[id(each)].shape == each.shape, f"{name} changes the size of a tensor, which is not done here"
            return given[id(each)]
        return CardTensor(each, device) if device.type == NAME else each

    # What is seen of a tensor from outside of inference_mode is a tensor from outside of it, too.
    with torch.inference_mode(False) if op.is_view and not leaves[0].is_inference() else nullcontext():
        return tree_map(wrapped, out)


def _device_of(name: str, leaves: list[Tensor], args: Any, kwargs: Any) -> torch.device:
    """Where the result lies; refuses tensors of two devices, and counts what Python waits for."""
    read, brought = name.startswith(READS), []
    if name.startswith(COPIES):
        source, device = (args[0], kwargs.get("device")) if name.startswith("_to_copy") else (args[1], args[0].device)
        brought, device = [source], torch.device(device or source.device)
    else:
        if name.startswith(INDEXING):  # an index is brought to where it is needed
            brought = [index for index in args[1] if isinstance(index, Tensor)]
            read = any(index.dtype == torch.bool for index in brought)
        # As on a GPU, a number on the CPU goes along with anything.
        held = [leaf for leaf in leaves if not any(leaf is index for index in brought)]
        places = {leaf.device for leaf in held if leaf.device.type == NAME or leaf.dim()}
        if len(places) > 1:
            found = ", ".join(sorted(map(str, places)))
            raise RuntimeError(f"Expected all tensors to be on the same device, but found {found} (in {name}).")
        device = torch.device(kwargs.get("device") or next(iter(places), "cpu"))
    if device.type == NAME and device.index is None:
        device = torch.device(NAME, 0)
    copies = [(str(t.device), str(device), t.numel() * t.element_size()) for t in brought if t.device != device]
    for seen in _watching:
        seen.kernels += 1
        seen.copies += copies
        seen.reads += [name] if read else []
    return device


if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
    pytest.skip("a device written in Python needs torch 2.9", allow_module_level=True)


class _Module(backend_registration._DummyBackendModule):
    """torch.card"""

    def device_count(self) -> int:
        return COUNT

    def mem_get_info(self, device: torch.device) -> tuple[int, int]:
        mine = memory[device.index]
        return (2**40 if mine.limit is None else mine.limit) - mine.used, 2**40

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """torch.utils.checkpoint asks this of whatever accelerator is there, in the tests of training too."""
        return [torch.float16, torch.bfloat16]


backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())
# Below Python's own key come the kernels that make a tensor there without having one, and what torch.tensor does.
_library = torch.library.Library("aten", "IMPL")
for _name in MADE:
    _packet, _, _overload = _name.partition(".")
    _op = getattr(getattr(torch.ops.aten, _packet), _overload or "default")
    _library.impl(_name, partial(_run, _op), "PrivateUse1")
_library.impl("_copy_from", lambda x, to, *_: _run(torch.ops.aten.copy_.default, to, x), "PrivateUse1")
