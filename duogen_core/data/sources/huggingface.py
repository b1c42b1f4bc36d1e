"""Hugging Face datasets (the optional `datasets` library): rows with turns and pictures in columns of your choice.

NAME is a folder written by save_to_disk, a Parquet, JSON or Arrow file, a folder that `load_dataset` reads, or a name
on the hub (which the library takes from its cache, or downloads if HF_HUB_OFFLINE=0 is set).

Turns: a list, or its JSON text, of {"role", "parts"} as in document.json, of {"role", "content"} or {"from", "value"}.
A string holds its pictures' places as <image>; a list has entries {"type": "text", "text"} and {"type": "image"}. The
pictures are those of the images column, in order. human is the user; gpt, bot and model are the assistant.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from duogen_core.data.sources.base import Limits, Source, digest
from duogen_core.document import Document
from duogen_core.document.reading import FORMAT, VERSION, document_from_json, folder_reader
from duogen_core.errors import DuoGenError, MissingPackage, is_out_of_memory, unknown
from duogen_core.files import parse_json

ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
TURN_COLUMNS = ("turns", "messages", "conversations", "conversation")
IMAGE_COLUMNS = ("images", "image")
FILE_KINDS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".arrow": "arrow"}


class HuggingFace(Source):
    def __init__(
        self,
        path: str,
        split: str = "train",
        config: str | None = None,
        turns: str | None = None,
        images: str | None = None,
        roles: Mapping[str, str] | None = None,
        marker: str = "<image>",
        limits: Limits | None = None,
    ) -> None:
        super().__init__(f"hf:{path}" + ("" if split == "train" else f" ({split})"), limits)
        self.path, self.marker, self.roles = path, marker, {**ROLES, **(roles or {})}
        if not marker:
            raise DuoGenError(f"{self.name}: the marker of an image's place is empty; the usual one is <image>.")
        self.rows = _load(path, split, config)
        columns = list(self.rows.column_names)
        self.turns = _column(self.name, columns, turns, TURN_COLUMNS, "turns")
        self.images = _column(self.name, columns, images, IMAGE_COLUMNS, "images", needed=False)
        self.rows = self.rows.select_columns([name for name in (self.turns, self.images) if name])
        self.rows = self.rows.with_format("arrow")  # rows as they are stored: no picture is decoded by the library
        if not len(self.rows):
            raise DuoGenError(f"{self.name} has no rows.")
        self._digest = digest([split, config, *(self.rows[k].to_pylist() for k in (0, len(self.rows) - 1))])

    def __len__(self) -> int:
        return len(self.rows)

    def label(self, index: int) -> str:
        return f"{self.name}, row {index}"

    def identity(self) -> dict[str, Any]:
        return {"kind": "hf", "samples": len(self), "columns": [self.turns, self.images], "digest": self._digest}

    def load(self, index: int) -> Document:
        where = self.label(index)
        row = self.rows[index].to_pylist()[0]
        images = row[self.images] if self.images else []
        images = images if isinstance(images, list) else [] if images is None else [images]
        turns = row[self.turns]
        if isinstance(turns, (str, bytes)):
            turns = parse_json(turns.encode() if isinstance(turns, str) else turns, f"{where}, {self.turns}")
            turns = turns["turns"] if isinstance(turns, dict) and "turns" in turns else turns
        if not isinstance(turns, list):
            raise DuoGenError(f"{where}, {self.turns} is {type(turns).__name__}; expected a list of turns.")
        places = iter(range(len(images)))
        value = [self._turn(turn, places, f"{where}, {self.turns}[{i}]") for i, turn in enumerate(turns)]
        left = len(list(places))
        if left:
            raise DuoGenError(
                f"{where}: it has {len(images)} images and places for {len(images) - left} in its turns; expected "
                f"one {self.marker} for each."
            )

        def read(name: str, place: str) -> bytes:
            return self._bytes(images[int(name)], f"{self.images}[{name}] (named by {place})")

        return document_from_json({"format": FORMAT, "version": VERSION, "turns": value}, read, where)

    def _turn(self, turn: Any, places: Any, where: str) -> dict[str, Any]:
        """Turns a turn of the dataset into a turn of document.json whose image files are numbers."""
        if not isinstance(turn, dict):
            raise DuoGenError(f"{where} is {type(turn).__name__}; expected an object with a role and a content.")
        role, content = _first(turn, "role", "from"), _first(turn, "parts", "content", "value")
        if isinstance(content, str):
            pieces = content.split(self.marker)
            content = [{"type": "text", "text": pieces[0]}]
            for text in pieces[1:]:
                content += [{"type": "image"}, {"type": "text", "text": text}]
        if not isinstance(content, list):
            raise DuoGenError(
                f"{where} has no content; expected text or a list of parts under parts, content or value."
            )
        parts = []
        for k, part in enumerate(content):
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "text" and part.get("text") != "":
                parts.append({"type": "text", "text": part.get("text")})
            elif kind == "image":
                place = next(places, None)
                if place is None:
                    raise DuoGenError(f"{where}, part {k}: there is no image left for this place; one is missing.")
                parts.append({"type": "image", "file": str(place)})
            elif kind != "text":
                raise DuoGenError(f"{where}, part {k}: the type is {kind!r}; expected 'text' or 'image'.")
        return {"role": self.roles.get(role, role) if isinstance(role, str) else role, "parts": parts}

    def _bytes(self, image: Any, where: str) -> bytes:
        if isinstance(image, bytes):
            return image
        data, path = (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (None, image)
        if isinstance(data, bytes):
            return data
        root = Path(self.path)
        if not isinstance(path, str) or not root.exists():
            raise DuoGenError(f"{where} is missing: the column holds neither its bytes nor a path.")
        root = (root if root.is_dir() else root.parent).resolve()
        file = Path(path)
        return folder_reader(root)(str(file.relative_to(root)) if file.is_relative_to(root) else path, where)


def _first(turn: dict[str, Any], *names: str) -> Any:
    return next((turn[name] for name in names if turn.get(name) is not None), None)


def _column(
    source: str, columns: list[str], name: str | None, usual: tuple[str, ...], option: str, needed: bool = True
) -> str | None:
    if name is not None:
        if name not in columns:
            raise DuoGenError(unknown(f"{source}: the column", name, columns))
        return name
    found = next((each for each in usual if each in columns), None)
    if found is None and needed:
        raise DuoGenError(
            f"{source} has no column {' or '.join(usual)}; say which one holds the {option} with the option "
            f"{option!r}. It has {', '.join(columns)}."
        )
    return found


def _load(path: str, split: str, config: str | None) -> Any:
    try:
        import datasets
    except ImportError:
        raise MissingPackage("hf: sources", "datasets", "hf") from None
    place = Path(path)
    try:
        if place.is_file() and place.suffix in FILE_KINDS:
            return datasets.load_dataset(FILE_KINDS[place.suffix], data_files={split: str(place)}, split=split)
        if (place / "state.json").is_file() or (place / "dataset_dict.json").is_file():
            found = datasets.load_from_disk(str(place))
            if not isinstance(found, dict):
                return found
            if split not in found:
                raise DuoGenError(unknown(f"hf:{path}: the split", split, found))
            return found[split]
        return datasets.load_dataset(path, config, split=split)
    except DuoGenError:
        raise
    except Exception as error:  # the library has no error of its own: FileNotFoundError, ValueError, ConnectionError, …
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:300]
        raise DuoGenError(
            f"The dataset hf:{path} (split {split}) cannot be opened: {type(error).__name__}: {reason}. Check its name "
            "and split; a dataset of the hub must be in the library's cache, or set HF_HUB_OFFLINE=0 to download it."
        ) from None
