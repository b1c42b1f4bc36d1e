"""Document <-> interleaved rows, in the columns of NeMo Curator's INTERLEAVED_SCHEMA (its tasks/interleaved.py).

    sample_id, position, modality   which sample, where in it (-1: about all of it), text | image | metadata
    content_type, text_content, binary_content   a text, or the bytes of a picture file
    source_ref, materialize_error   where the bytes lie if they are not here (see `parquet`); why they could not be had
and, in columns of the user, which Curator passes on as they are, what a stream of parts has no place for:
    turn, role                      the number of the turn, and who speaks
    meta                            JSON: of the part; in the metadata row turns, generation and meta of the document

Rows of others have no turns. Then all up to the first text is what the user says, and the rest is the answer; with
`request` the user says what stands in that column instead. What other columns say of the sample becomes its meta.

MINT-1T's tars hold the same as parallel lists, which NeMo Curator reads and writes too (`rows_of_lists`, `lists_of`):

    KEY.json         {"sample_id", "texts": [text or null, …], "images": [member or null, …], …}: one of them at a place
    KEY.3.png        the picture at place 3

Our own columns (turn, role, meta) become lists with an entry for each text and picture, which Curator passes on; so a
document comes back exactly. Whatever else the JSON of others says about the sample becomes its meta.
"""

from __future__ import annotations

import json
import mimetypes
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any
from urllib.parse import quote

from duogen_core.document import Document, Picture, Text
from duogen_core.document.reading import FORMAT, VERSION, document_from_json
from duogen_core.errors import DuoGenError
from duogen_core.files import parse_json

RESERVED = (
    "sample_id", "position", "modality", "content_type", "text_content", "binary_content", "source_ref",
    "materialize_error",
)  # fmt: skip
OWN = ("turn", "role", "meta")
NEEDED = ("sample_id", "position", "modality")
METADATA = -1  # position of the row that is about the whole sample
FILE = "file"  # of a row: the member that holds its picture
PARTS_META = "parts_meta"
Row = Mapping[str, Any]
Encode = Callable[[Picture], tuple[bytes, str]]


def schema() -> Any:
    """Returns Curator's columns with its types, and ours."""
    import pyarrow as pa

    types = {"position": pa.int32(), "turn": pa.int32(), "binary_content": pa.large_binary()}
    fields = [pa.field(name, types.get(name, pa.string()), nullable=name not in NEEDED) for name in (*RESERVED, *OWN)]
    return pa.schema(fields)


def as_png(picture: Picture) -> tuple[bytes, str]:
    return picture.to_png(), "image/png"


def rows_of(document: Document, sample_id: str, encode: Encode = as_png) -> list[dict[str, Any]]:
    """Returns a metadata row, then one for each part."""
    turns = [{"role": turn.role, **({"meta": turn.meta} if turn.meta else {})} for turn in document.turns]
    about = {"format": FORMAT, "version": VERSION, "turns": turns}
    about |= {"generation": document.generation} if document.generation else {}
    about |= {"meta": document.meta} if document.meta else {}
    rows = [_row(sample_id, METADATA, "metadata", "application/json", meta=_json(about))]
    for number, turn in enumerate(document.turns):
        for part in turn.parts:
            own = {"turn": number, "role": turn.role, "meta": _json(part.meta) if part.meta else None}
            position = len(rows) - 1
            if isinstance(part, Text):
                rows.append(_row(sample_id, position, "text", "text/plain", text_content=part.text, **own))
            else:
                data, kind = encode(part)
                rows.append(_row(sample_id, position, "image", kind, binary_content=data, **own))
    return rows


def _row(sample_id: str, position: int, modality: str, content_type: str, **more: Any) -> dict[str, Any]:
    row = {"sample_id": sample_id, "position": position, "modality": modality, "content_type": content_type}
    return {**dict.fromkeys((*RESERVED, *OWN)), **row, **more}


def document_of(
    rows: Sequence[Row], where: str, read: Callable[[Row, str], bytes], request: str | None = None
) -> Document:
    """Turns the rows of one sample, in any order, into its Document. `read` gives the bytes of a picture's row."""
    rows = [{**row, "position": _whole(row["position"], "position", where)} for row in rows]
    about = [row for row in rows if row["modality"] == "metadata" or row["position"] < 0]
    parts = [row for row in rows if row["modality"] != "metadata" and row["position"] >= 0]
    parts.sort(key=lambda row: row["position"])
    if twice := [row["position"] for row, after in pairwise(parts) if row["position"] == after["position"]]:
        raise DuoGenError(
            f"{where}: the position {twice[0]} is used twice; every position of a sample must be different."
        )
    values = [_part(row, f"{where}, position {row['position']}") for row in parts]
    is_own = bool(parts) and all(row.get("turn") is not None for row in parts)
    value = _with_turns(about, parts, values, where) if is_own else _without_turns(about, parts, values, where, request)
    places = {str(row["position"]): row for row in parts}
    return document_from_json(value, lambda name, place: read(places[name], place), where)


def _part(row: Row, where: str) -> dict[str, Any]:
    """Returns the row as a part of document.json, whose file is its position."""
    if row.get("materialize_error"):
        raise DuoGenError(f"{where}: it could not be read when it was written: {row['materialize_error']}")
    meta = row.get("meta") if row.get("turn") is not None else None
    more = {"meta": parse_json(meta.encode(), f"{where}, meta")} if isinstance(meta, str) else {}
    if row["modality"] == "text":
        if not isinstance(row.get("text_content"), str):
            raise DuoGenError(f"{where} is a text without text_content.")
        return {"type": "text", "text": row["text_content"], **more}
    if row["modality"] == "image":
        return {"type": "image", "file": str(row["position"]), **more}
    raise DuoGenError(f"{where}: the modality is {row['modality']!r}; expected text, image or metadata.")


def _with_turns(about: Sequence[Row], parts: Sequence[Row], values: list[dict], where: str) -> dict[str, Any]:
    """Reads rows that we wrote; a filter may have dropped some of them, the metadata row too."""
    stated = next((row["meta"] for row in about if isinstance(row.get("meta"), str)), None)
    value = parse_json(stated.encode(), f"{where}, meta") if stated else {"format": FORMAT, "version": VERSION}
    if not isinstance(value, dict) or not isinstance(value.setdefault("turns", []), list):
        raise DuoGenError(f"{where}: the meta in its metadata row is not a document's.")
    turns = value["turns"]
    for row, part in zip(parts, values):
        number = _whole(row["turn"], "turn", f"{where}, position {row['position']}")
        if not 0 <= number <= len(parts) + len(turns):
            raise DuoGenError(f"{where}, position {row['position']}: there is no turn {number}.")
        turns += [{} for _ in range(number + 1 - len(turns))]
        turns[number].setdefault("role", row.get("role"))
        turns[number].setdefault("parts", []).append(part)
    return {**value, "turns": [{**turn, "parts": turn.get("parts", [])} for turn in turns]}


def _without_turns(
    about: Sequence[Row], parts: Sequence[Row], values: list[dict], where: str, request: str | None
) -> dict[str, Any]:
    own = {"sample_id": parts[0]["sample_id"]} if parts else {}
    for row in about:
        own |= {name: _plain(cell) for name, cell in row.items() if name not in RESERVED and cell is not None}
    if request is not None:
        text = next((row[request] for row in (*about, *parts) if isinstance(row.get(request), str)), "")
        if not text.strip():
            raise DuoGenError(f"{where} has nothing in the column {request}, which is to be what the user says.")
        said, answer = [{"type": "text", "text": text}], values
    else:
        first = next((index for index, part in enumerate(values) if part["type"] == "text"), len(values) - 1) + 1
        said, answer = values[:first], values[first:]
    turns = [{"role": "user", "parts": said}, {"role": "assistant", "parts": answer}]
    return {"format": FORMAT, "version": VERSION, "turns": turns, "meta": own}


def _whole(value: Any, name: str, where: str) -> int:
    """Returns a whole number; as pandas writes whole numbers beside missing ones, 3.0 is one too."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise DuoGenError(f"{where}: a {name} is {str(value)[:80]!r}; expected a whole number in every row.")
    return value


def _plain(cell: Any) -> Any:
    """Returns a cell as JSON can hold it."""
    if isinstance(cell, Mapping):
        return {str(name): _plain(value) for name, value in cell.items()}
    if isinstance(cell, (list, tuple)):
        return [_plain(value) for value in cell]
    if isinstance(cell, float) and cell != cell:
        return None
    return cell if isinstance(cell, (str, int, float, bool)) or cell is None else str(cell)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def is_lists(value: Any) -> bool:
    """Tells whether the JSON of a sample is in this layout."""
    return isinstance(value, dict) and all(isinstance(value.get(name), list) for name in ("texts", "images"))


def rows_of_lists(value: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the rows of a sample; the row of a picture says its member."""
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
    """Returns the members of a sample: its pictures, then its JSON."""
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
