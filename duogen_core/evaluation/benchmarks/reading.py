"""What all benchmarks read and write: records of a file, fields of a record, pictures beside it.

    for where, record in records(file): text_of(record, "prompt", where)
    picture_beside(file.parent, "images/1.png", where)        and from nowhere else
    write_picture(picture, out / "1.jpg")                     PNG or JPEG, by the ending
    write_picture_or_none(None, out / "1.png")                for an answer without one, where the scorer needs a file
    picture_or_none(place, "1.png", where)                    None for that file

A fault is a DuoGenError with the file, the entry and the field.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from duogen_core.document import Document, Part, Picture, Turn, is_text
from duogen_core.document.picture_file import encode_png
from duogen_core.document.reading import folder_reader
from duogen_core.errors import DuoGenError, MissingPackage, shown
from duogen_core.files import parse_json, read_limited, write_atomically

T = TypeVar("T")
MAX_BYTES = 2 << 30
JPEG_QUALITY = 95
# A submission has thousands of images and is read once: zlib's quickest level, with its strategy for PNG (Z_RLE).
PNG = {"compress_level": 1, "compress_type": 3}
NO_PICTURE = "duogen: the model gave no image"
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
# Windows takes these for devices, whatever stands after a dot.
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(?=\.|$)", re.IGNORECASE)


def records(file: Path, what: str = "file of requests") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (where, record) of a JSON list, of JSON lines, of a Parquet file or of a folder of its shards (as Hugging
    Face publishes them)."""
    if file.is_dir():
        shards = sorted(file.glob("*.parquet"))
        if not shards:
            raise DuoGenError(f"The {what} {file} is a folder without Parquet files; name a file, or that folder.")
        for shard in shards:
            yield from _parquet_records(shard, what)
        return
    if file.suffix.lower() == ".parquet":
        yield from _parquet_records(file, what)
        return
    data = read_limited(file, MAX_BYTES, str(file), what)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DuoGenError(f"{file} is not UTF-8 text (byte {error.start}); expected JSON.") from None
    if text.lstrip().startswith("["):
        for number, record in enumerate(parse_json(text, str(file)), 1):
            yield _checked(f"{file}, entry {number}", record)
        return
    # Only \n ends a line: JSON may hold U+2028 and the like as they are.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _checked(f"{file}, line {number}", parse_json(line, f"{file}, line {number}"))


def _checked(where: str, record: Any) -> tuple[str, dict[str, Any]]:
    if not isinstance(record, dict):
        raise DuoGenError(f"{where} is {shown(repr(record)[:60])}; expected a JSON object.")
    return where, record


def _parquet_records(file: Path, what: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """A picture column comes as {"bytes", "path"}, as Hugging Face stores images."""
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise MissingPackage(f"{file} is a Parquet file", "pyarrow", "parquet") from None
    if not file.is_file():
        raise DuoGenError(f"The {what} {file} does not exist; check the path.")
    try:
        number = 0
        for batch in parquet.ParquetFile(file).iter_batches(64):
            for record in batch.to_pylist():
                number += 1
                yield f"{file}, row {number}", record
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise DuoGenError(f"{file} cannot be read as Parquet: {shown(str(error)[:200])}.") from None


def csv_rows(file: Path, columns: Sequence[str], what: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields (where, row) of a CSV file that has these columns."""
    data = read_limited(file, MAX_BYTES, str(file), what)
    try:
        rows = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""))
        missing = [name for name in columns if name not in (rows.fieldnames or ())]
        if missing:
            raise DuoGenError(f"{file} has no column {missing[0]}; expected a {what}.")
        for row in rows:
            where = f"{file}, line {rows.line_num}"
            if any(row[name] is None for name in columns):
                raise DuoGenError(f"{where} has too few columns; it was cut off.")
            yield where, row
    except UnicodeDecodeError as error:
        raise DuoGenError(f"{file} is not UTF-8 text (byte {error.start}); expected CSV.") from None
    except csv.Error as error:
        raise DuoGenError(f"{file} cannot be read as CSV: {shown(str(error)[:200])}.") from None


def field_of(record: Mapping[str, Any], name: str, kinds: type | tuple[type, ...], where: str, expected: str) -> Any:
    """Returns a field that must be there; true and false are no numbers."""
    value = record.get(name)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in _all(kinds)):
        found = "is missing" if name not in record else f"is {shown(repr(value)[:60])}"
        raise DuoGenError(f"{where}: {name} {found}; expected {expected}.")
    return value


def _all(kinds: type | tuple[type, ...]) -> tuple[type, ...]:
    return kinds if isinstance(kinds, tuple) else (kinds,)


def text_of(record: Mapping[str, Any], name: str, where: str, *, default: str | None = None) -> str:
    """Returns a text; with a default it may be missing or null."""
    if default is not None and record.get(name) is None:
        return default
    text = field_of(record, name, str, where, "text")
    if not is_text(text):
        raise DuoGenError(f"{where}: {name} is not valid Unicode.")
    return text


def id_of(record: Mapping[str, Any], name: str, where: str) -> str:
    """Returns an id as text, whether it was written as a number or as text."""
    value = field_of(record, name, (str, int), where, "the id, as text or as a number")
    if not str(value).strip() or not is_text(str(value)):
        raise DuoGenError(f"{where}: {name} is empty; expected the id.")
    return str(value)


def number_of(
    record: Mapping[str, Any], name: str, low: float, high: float, where: str, *, missing: bool = False
) -> float | None:
    """Returns a number on a scale; None where it may be missing or null and is."""
    if missing and record.get(name) is None:
        return None
    expected = f"a number from {low:g} to {high:g}"
    value = field_of(record, name, (int, float), where, expected)
    if not low <= value <= high:
        raise DuoGenError(f"{where}: {name} is {value!r}; expected {expected}.")
    return float(value)


def list_of(record: Mapping[str, Any], name: str, kind: type, where: str, expected: str) -> list[Any]:
    """Returns a list whose entries are all of one kind."""
    value = field_of(record, name, list, where, f"a list of {expected}")
    for entry in value:
        if not isinstance(entry, kind):
            raise DuoGenError(f"{where}: {name} has {shown(repr(entry)[:60])}; expected a list of {expected}.")
    return value


def answered_by(record: Mapping[str, Any], name: str, items: dict[str, T], where: str) -> T:
    """Takes the item that an entry of a submission answers out of `items`, so that no two entries answer the same."""
    id = id_of(record, name, where)
    if id not in items:
        raise DuoGenError(f"{where} answers {id[:80]!r}, which no request has or an earlier entry answers, too.")
    return items.pop(id)


def is_there(file: Path) -> bool:
    """`Path.is_file`, False also for names that this system cannot have; older Pythons raise the system's error."""
    try:
        return file.is_file()
    except (OSError, ValueError):
        return False


def picture_beside(folder: Path, name: str, where: str) -> Picture:
    """Reads the picture with this relative name from the folder and from nowhere else."""
    return Picture.from_bytes(folder_reader(folder)(name.removeprefix("./"), where), f"{name} (named by {where})")


def alike(one: Turn, other: Turn) -> bool:
    """Whether two turns say and show the same, however they were made."""
    said = [[part.digest if isinstance(part, Picture) else part.text for part in turn.parts] for turn in (one, other)]
    return one.role == other.role and said[0] == said[1]


def begins_with(document: Document, prompt: Document) -> bool:
    """Whether the document begins with the words and pictures of the prompt, whatever else its parts carry."""
    first = document.turns[: len(prompt.turns)]
    return len(first) == len(prompt.turns) and all(map(alike, first, prompt.turns))


def paired(parts: Iterable[Part]) -> list[tuple[str, Picture | None]]:
    """Returns each picture with the text before it, and a text after the last one with None."""
    pairs: list[tuple[str, Picture | None]] = []
    texts: list[str] = []
    for part in parts:
        if isinstance(part, Picture):
            pairs.append(("".join(texts), part))
            texts = []
        else:
            texts.append(part.text)
    return [*pairs, ("".join(texts), None)] if texts else pairs


def write_picture(picture: Picture, file: Path) -> None:
    """Writes a PNG, or a JPEG where the name ends so: pixels alone, nothing of how they were made."""
    from PIL import Image

    if picture.meta.get("text") == NO_PICTURE:
        write_atomically(file, encode_png(picture.pixels, {"text": NO_PICTURE}))
        return
    stream = io.BytesIO()
    image = Image.fromarray(picture.pixels)
    if file.suffix.lower() in (".jpg", ".jpeg"):
        image.save(stream, "JPEG", quality=JPEG_QUALITY, subsampling=0)  # the colours as sharp as the rest
    else:
        image.save(stream, "PNG", **PNG)
    write_atomically(file, stream.getvalue())


def write_pictures(pictures: Iterable[Picture], out: Path, stem: str) -> list[str]:
    """Writes STEM-1.png, STEM-2.png, … into `out` and returns these names."""
    names = []
    for number, picture in enumerate(pictures, 1):
        names.append(f"{stem}-{number}.png")
        write_picture(picture, out / names[-1])
    return names


def no_picture(size: tuple[int, int] = (512, 512)) -> Picture:
    """Returns the grey picture that stands in a submission for an answer without one, and is shown to a judge.

    Most scorers leave an item out whose file is missing: the mean would rise with every answer that fails."""
    return Picture(np.full((size[1], size[0], 3), 128, np.uint8))


def write_picture_or_none(picture: Picture | None, file: Path, size: tuple[int, int] = (512, 512)) -> None:
    """Writes a PNG; for None that of `no_picture`, which says in its text fields that it is no model's."""
    if picture is None:
        write_atomically(file, encode_png(no_picture(size).pixels, {"text": NO_PICTURE}))
    else:
        write_picture(picture, file)


def picture_or_none(folder: Path, name: str, where: str) -> Picture | None:
    """Reads a picture of a submission, as `picture_beside` does; None for that of `no_picture`."""
    data = folder_reader(folder)(name.removeprefix("./"), where)
    if data.startswith(b"\x89PNG") and NO_PICTURE.encode() in data:
        return None
    return Picture.from_bytes(data, f"{name} (named by {where})")


def write_json(file: Path, value: Any, indent: int | None = 1) -> None:
    write_atomically(file, (json.dumps(value, indent=indent, ensure_ascii=False) + "\n").encode("utf-8", "replace"))


def file_name(id: str) -> str:
    """A name of a file for an id that the benchmark does not use as one: letters, digits, dot, dash, underscore."""
    name = _UNSAFE.sub("_", id).lstrip(".")[:100].rstrip(".")  # Windows drops a dot at the end
    return _DEVICE.sub(r"\1_", name, count=1) if _DEVICE.match(name) else name or "_"


def new_file_name(id: str, taken: set[str]) -> str:
    """The same, and another one for every id: some file systems do not tell A from a, either."""
    name, number = file_name(id), 1
    while name.lower() in taken:
        number += 1
        name = f"{file_name(id)}_{number}"
    taken.add(name.lower())
    return name
