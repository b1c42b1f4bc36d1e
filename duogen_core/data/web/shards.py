"""Does one shard of a run: its pages through the engine, then the tar, the times and, last, the log.

Each of the three appears whole, under its name, or not at all. A shard is a pure function of its line in the plan, so
one that was begun twice, or interrupted and begun again, ends as the same bytes.
"""

from __future__ import annotations

import io
import json
import tarfile
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from PIL import Image

from duogen_core.data.web.engine import Engine
from duogen_core.data.web.inputs import Input
from duogen_core.data.web.plan import Run, Shard
from duogen_core.data.whole_file import whole_file
from duogen_core.document import Document, Picture
from duogen_core.store import document_json, write_atomically

PNG_LEVEL = 4  # of 9: within a few per cent of the smallest, in a third of the time


def do_shard(run: Run, shard: Shard, engine: Engine, inputs: Sequence[Input]) -> dict[str, Any]:
    """Writes the shard's files; what it found, in figures."""
    started = time.perf_counter()
    lines: list[str] = []
    seconds: Counter[str] = Counter()
    kept = pictures = 0
    with whole_file(run.documents(shard.number)) as stream, tarfile.open(fileobj=stream, mode="w") as archive:
        for offset, name in enumerate(shard.pages):
            outcome = engine.page(inputs[shard.input], name)
            lines.append(json.dumps({"number": shard.first + offset, **outcome.log()}, ensure_ascii=False))
            begun = time.perf_counter()
            if outcome.document is not None:
                add_document(archive, f"{shard.first + offset:08d}", outcome.document, engine.preset.picture)
                kept, pictures = kept + 1, pictures + len(outcome.document.pictures)
            seconds.update(outcome.seconds)
            seconds["write"] += time.perf_counter() - begun
    times = {"pages": len(shard.pages), "seconds": time.perf_counter() - started, "stages": dict(seconds)}
    write_atomically(run.times(shard.number), json.dumps(times).encode())
    write_atomically(run.log(shard.number), "".join(f"{line}\n" for line in lines).encode("utf-8", "replace"))
    return {"shard": shard.number, "pages": len(shard.pages), "kept": kept, "pictures": pictures}


def add_document(archive: tarfile.TarFile, key: str, document: Document, rules: Any) -> None:
    """One sample: key.json, key.000.png, … Photographs are JPEG files."""
    files = [encode(picture, rules) for picture in document.pictures]
    names = [f"{index:03d}.{ending}" for index, (_, ending) in enumerate(files)]
    value = json.dumps(document_json(document, names), ensure_ascii=False, allow_nan=False).encode("utf-8")
    for name, data in [("json", value), *zip(names, (data for data, _ in files))]:
        info = tarfile.TarInfo(f"{key}.{name}")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))


def encode(picture: Picture, rules: Any) -> tuple[bytes, str]:
    buffer = io.BytesIO()
    image = Image.fromarray(picture.pixels)
    if picture.meta.get("class") == "photo":
        image.save(buffer, "JPEG", quality=rules["photo_quality"])
        return buffer.getvalue(), "jpg"
    image.save(buffer, "PNG", compress_level=PNG_LEVEL)
    return buffer.getvalue(), "png"
