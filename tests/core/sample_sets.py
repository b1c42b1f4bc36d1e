"""Small data sets on disk in every format, for tests of sources and of `data check`."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

from duogen_core.data.export import write_rows
from duogen_core.data.sources import Bad, Source
from duogen_core.data.sources.rows import rows_of
from duogen_core.document import Document, Text, Turn
from duogen_core.document.store import document_json, save_document
from tests.core.documents import picture

COUNT = 6
USER, ANSWER = Turn("user", (Text("Draw."),)), Turn("assistant", (Text("Here."),))


def guide(number: int, size=(12, 8)) -> Document:
    """A good sample that says its number."""
    user = Turn("user", (Text(f"Request {number}"), picture(100 + number, (5, 7))))
    answer = Turn("assistant", (Text("Step 1."), picture(number, size), Text("Done.")))
    return Document((user, answer), meta={"number": number})


def png(part) -> bytes:
    return part.to_png()


def write_documents(root: Path, documents) -> Path:
    root.mkdir()
    for i, document in enumerate(documents):
        save_document(document, root / (f"{i:02d}.zip" if i % 2 else f"{i:02d}"))
    return root


def write_jsonl(file: Path, documents, tail=b"") -> Path:
    file.parent.mkdir(exist_ok=True, parents=True)
    with file.open("wb") as lines:
        for i, document in enumerate(documents):
            names = [f"pictures/{i}-{k}.png" for k in range(len(document.pictures))]
            for name, each in zip(names, document.pictures):
                path = file.parent / name
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(png(each))
            lines.write(json.dumps(document_json(document, names)).encode() + b"\n")
        lines.write(tail)
    return file


def write_tar(file: Path, samples) -> Path:
    """samples: lists of (member name, bytes or TarInfo)."""
    with tarfile.open(file, "w") as archive:
        for members in samples:
            for name, data in members:
                info = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
                if not isinstance(data, tarfile.TarInfo):
                    info.size = len(data)
                archive.addfile(info, None if info is data else io.BytesIO(data))
    return file


def members(key: str, document: Document) -> list[tuple[str, bytes]]:
    names = [f"{k:03d}.png" for k in range(len(document.pictures))]
    pictures = [(f"{key}.{name}", png(each)) for name, each in zip(names, document.pictures)]
    return [(f"{key}.json", json.dumps(document_json(document, names)).encode()), *pictures]


def write_kind(kind: str, root: Path, documents) -> str:
    if kind == "documents":
        return f"documents:{write_documents(root / 'set', documents)}"
    if kind == "jsonl":
        return f"jsonl:{write_jsonl(root / 'set' / 'train.jsonl', documents)}"
    if kind == "parquet":
        (root / "set").mkdir()
        half = len(documents) // 2
        for name, part in (("a.parquet", documents[:half]), ("b.parquet", documents[half:])):
            with (root / "set" / name).open("wb") as stream:
                write_rows(stream, (rows_of(d, f"{d.meta['number']:03d}") for d in part))
        return f"parquet:{root / 'set'}"
    half = len(documents) // 2
    for name, part in (("a-000.tar", documents[:half]), ("a-001.tar", documents[half:])):
        write_tar(root / name, [members(f"x/{d.meta['number']:03d}", d) for d in part])
    return f"webdataset:{root}/a-{{000..001}}.tar"


FORMATS = ("documents", "jsonl", "webdataset", "parquet")


def only_bad(source: Source, match: str, index: int = 0) -> Bad:
    found = source.read(index)
    assert isinstance(found, Bad), found
    assert match in found.sentence and found.label in found.sentence and found.source == source.name
    return found


def numbers(samples) -> list[int]:
    return [sample.document.meta["number"] for sample in samples]
