"""Small documents and hand-made document folders, for tests of reading and writing."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from duogen_core.document import (
    Document,
    Picture,
    Text,
    Turn,
)


def picture(value=0, size=(12, 8), **meta):
    rng = np.random.default_rng(value)
    return Picture(rng.integers(0, 256, (size[1], size[0], 3), np.uint8), meta)


def sample(pictures=2) -> Document:
    document = Document(
        (
            Turn("system", (Text("Be kind."),)),
            Turn("user", (Text("Häuser? 🏠\n"), picture(9, (5, 7))), {"source": "me"}),
        )
    )
    document = document.begin_turn("assistant")
    for k in range(pictures):
        text = f"Step {k + 1}: “paint” – ✓"
        document = document.append(Text(text, {"scores": [0.1, 1e-7]})).append(picture(k, seed=7 + k, text=text))
    generation = {"model": "duogen-tiny", "seed": 7, "guidance": 2.0, "stop_reason": "end"}
    return Document(document.turns, generation, {"split": "test", "own": {"ключ": [1, None, True]}})


def files(root: Path) -> dict[str, bytes]:
    if root.is_file():
        return {root.name: root.read_bytes()}
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def put(folder: Path, value, picture_name="images/000.png") -> Path:
    """A hand-made document folder with one picture."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), "red").save(folder / picture_name)
    text = value if isinstance(value, (str, bytes)) else json.dumps(value)
    (folder / "document.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def base(file="images/000.png", **changes):
    parts = [{"type": "text", "text": "hello"}, {"type": "image", "file": file}]
    return {"format": "duogen-document", "version": 1, "turns": [{"role": "user", "parts": parts}], **changes}


def zipped(path: Path, entries, **info) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries:
            member = zipfile.ZipInfo(name)
            for key, value in info.items():
                setattr(member, key, value)
            archive.writestr(member, data)
    return path
