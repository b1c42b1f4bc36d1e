"""Safetensors files of any size that take no room: a true header, and a hole where the tensors would be.

`key_list(name)`: a published model's names and shapes, from key_lists/NAME.txt.
"""

from __future__ import annotations

import json
import math
import re
import struct
from pathlib import Path

LISTS = Path(__file__).parent / "key_lists"
BYTES = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "U8": 1, "I8": 1}


def key_list(name: str) -> dict[str, tuple[int, ...]]:
    """{tensor name: shape}; `{0..27}` in a line stands for every number from 0 to 27."""
    found = {}
    for line in (LISTS / f"{name}.txt").read_text("utf-8").splitlines():
        if line.startswith("#"):
            continue
        key, shape = line.rsplit(" ", 1)
        dims = () if shape == "-" else tuple(int(n) for n in shape.split("x"))
        run = re.search(r"\{(\d+)\.\.(\d+)\}", key)
        for n in range(int(run[1]), int(run[2]) + 1) if run else [0]:
            found[key.replace(run[0], str(n)) if run else key] = dims
    return found


def hollow(
    path: Path, shapes: dict[str, tuple[int, ...]], dtype: str | dict[str, str] = "BF16", **metadata: str
) -> Path:
    """Writes the file; reading a tensor of it gives zeros. dtype: one for all, or {name: dtype}, BF16 for the rest."""
    header, end = {"__metadata__": metadata}, 0
    for name, shape in shapes.items():
        size = math.prod(shape) * BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path
