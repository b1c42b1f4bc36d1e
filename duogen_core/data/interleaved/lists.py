"""Interleaved rows <-> parallel lists, as MINT-1T's tars hold them and NeMo Curator reads and writes them.

KEY.json         {"sample_id", "texts": [text or null, …], "images": [member or null, …], …}: one of the two at a place
KEY.3.png        the picture at place 3

Our own columns (turn, role, meta) become lists with an entry for each text and picture, which Curator passes on; so a
document comes back exactly. Whatever else the JSON of others says about the sample becomes its meta.
"""

from __future__ import annotations

import json
import mimetypes
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from duogen_core.data.interleaved.rows import METADATA, RESERVED

FILE = "file"  # of a row: the member that holds its picture
PARTS_META = "parts_meta"


def is_lists(value: Any) -> bool:
    """Whether the JSON of a sample is in this layout."""
    return isinstance(value, dict) and all(isinstance(value.get(name), list) for name in ("texts", "images"))


def rows_of_lists(value: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a sample; the row of a picture says its member."""
    texts, images = value["texts"], value["images"]
    sample_id = str(value.get("sample_id", ""))
    parts: list[dict[str, Any]] = []
    for position in range(max(len(texts), len(images))):
        for modality, entries, cell in (("text", texts, "text_content"), ("image", images, FILE)):
            if position < len(entries) and entries[position] is not None:
                row = {**dict.fromkeys(RESERVED), "sample_id": sample_id, "position": position, "modality": modality}
                parts.append({**row, cell: entries[position]})
    rest = {name: cell for name, cell in value.items() if name not in ("sample_id", "texts", "images")}
    for name, column in (("turn", "turn"), ("role", "role"), (PARTS_META, "meta")):
        if isinstance(rest.get(name), list) and len(rest[name]) == len(parts):
            for row, cell in zip(parts, rest.pop(name)):
                row[column] = cell
    about = {**dict.fromkeys(RESERVED), "sample_id": sample_id, "position": METADATA, "modality": "metadata", **rest}
    return [about, *parts]


def lists_of(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, bytes]]:
    """The members of a sample: its pictures, then its JSON."""
    parts = [row for row in rows if row["position"] >= 0]
    about = next(row for row in rows if row["position"] == METADATA)
    sample_id = about["sample_id"]
    key = quote(sample_id, safe="").replace(".", "%2E")
    members: list[tuple[str, bytes]] = []
    texts: list[str | None] = [None] * len(parts)
    images: list[str | None] = [None] * len(parts)
    for place, row in enumerate(parts):
        if row["modality"] == "text":
            texts[place] = row["text_content"]
            continue
        images[place] = f"{key}.{place}{mimetypes.guess_extension(row['content_type']) or '.bin'}"
        members.append((images[place], row["binary_content"]))
    value = {"sample_id": sample_id, "texts": texts, "images": images, "meta": about["meta"]}
    value |= {"turn": [row["turn"] for row in parts], "role": [row["role"] for row in parts]}
    value |= {PARTS_META: [row["meta"] for row in parts]}
    return [*members, (f"{key}.json", json.dumps(value, ensure_ascii=False).encode("utf-8"))]
