"""The official .pt files, for `python -m duogen_core convert` alone: the one place where a pickle is opened.

torch.load(weights_only=True) builds tensors and plain containers and runs nothing else; what it refuses, we refuse.
The weights are mapped from the file, so they take no memory until they are written out.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from duogen_core.errors import is_out_of_memory
from duogen_core.weights.headers import Entry, WeightError
from duogen_core.weights.writing import CHUNK, Piece

if TYPE_CHECKING:
    from torch import Tensor

NESTED = ("model", "module", "state_dict")  # where trainers keep the weights in their files
DTYPES = {
    "torch.float64": "F64", "torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16",
    "torch.float8_e4m3fn": "F8_E4M3", "torch.float8_e5m2": "F8_E5M2", "torch.int64": "I64", "torch.int32": "I32",
    "torch.int16": "I16", "torch.int8": "I8", "torch.uint8": "U8", "torch.bool": "BOOL",
}  # fmt: skip


class PickledWeights:
    """The tensors of a .pt file, with the interface of WeightFiles. left_out: entries that are none."""

    def __init__(self, path: str | os.PathLike) -> None:
        self.tensors, self.left_out = load_pickled(path)
        self.files = (Path(path),)
        self.entries = {name: entry_of(tensor) for name, tensor in self.tensors.items()}
        self.metadata: dict[str, str] = {}

    def tensor(self, name: str) -> Tensor:
        return self.tensors[name]

    def piece(self, name: str, as_name: str) -> Piece:
        """A tensor as something that can be written under another name."""
        import torch

        tensor, entry = self.tensors[name], self.entries[name]

        def read() -> Iterator[memoryview]:
            flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
            for start in range(0, len(flat), CHUNK):
                yield memoryview(flat[start : start + CHUNK])

        return Piece(as_name, entry.dtype, entry.shape, tensor.numel() * tensor.element_size(), read)

    def note(self, name: str) -> bytes:
        return self.tensors[name].numpy().tobytes()


def load_pickled(path: str | os.PathLike) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a .pt file, and the names of what is none: counters, and TransformerEngine's notes (bytes)."""
    import torch

    path = Path(path)
    try:
        with torch.serialization.safe_globals([io.BytesIO]):
            found = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except FileNotFoundError:
        raise WeightError(f"There is no file {path}.") from None
    except Exception as error:  # unpickling foreign bytes raises whatever it likes
        if is_out_of_memory(error):
            raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WeightError(f"{path} cannot be opened as a file of weights alone ({first[:200]}).") from error
    for name in NESTED:
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
    if not isinstance(found, dict) or not any(isinstance(value, torch.Tensor) for value in found.values()):
        raise WeightError(f"{path} holds no table of weights; expected names with a tensor each.")
    tensors, rest = {}, []
    for name, value in found.items():
        if isinstance(value, torch.Tensor):
            tensors[str(name)] = value
        elif value is None or isinstance(value, (int, float, io.BytesIO)):
            rest.append(str(name))
        else:
            raise WeightError(f"{path}: {name} is a {type(value).__name__}; expected a tensor.")
    return tensors, rest


def entry_of(tensor: Tensor) -> Entry:
    kind = DTYPES.get(str(tensor.dtype))
    if kind is None or str(tensor.layout) != "torch.strided":
        raise WeightError(f"A tensor of the type {tensor.dtype} cannot be written to safetensors.")
    return Entry(kind, tuple(tensor.shape))
