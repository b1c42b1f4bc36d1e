"""Rows of a set on this machine: Parquet files, what `datasets` saved (Arrow), JSON lists and JSON lines.

    rows = open_rows(paths, split, file)
    rows.columns, len(rows), rows.column("img_id"), rows.read(start, stop)

Parquet is read group by group and Arrow is mapped, so nothing is copied and a set may be larger than the memory. A JSON
list is held whole. No picture is decoded here, and a path in a row is followed only inside the set's own folder.
"""

from __future__ import annotations

import fnmatch
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from duogen_core.data.sources.files import digest
from duogen_core.errors import DuoGenError, MissingPackage
from duogen_core.store_read import folder_reader

BATCH = 8  # rows that are held with their pictures
MAX_JSON = 4 * 2**30


class Rows(ABC):
    columns: list[str]
    where: str
    files: list[Path]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Rows start … stop - 1, only with these columns. Several threads may read at once."""

    def identity(self) -> dict[str, Any]:
        return {"rows": len(self), "digest": digest((file.name, file.stat().st_size) for file in self.files)}

    def picture(self, value: Any, name: str) -> bytes:
        """The bytes of a picture: in the row itself, or in a file of the set's folder."""
        if isinstance(value, bytes):
            return value
        data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (None, value)
        if isinstance(data, bytes):
            return data
        if not isinstance(path, str) or not path:
            raise DuoGenError(f"{name} holds no picture.")
        return folder_reader(self.files[0].parent.resolve())(path, name)


class Parquet(Rows):
    def __init__(self, files: Sequence[Path], where: str) -> None:
        import pyarrow.parquet as parquet

        self.files, self.where = list(files), where
        self.groups: list[tuple[Path, int, int]] = []  # file, group, first row
        self.count = 0
        for file in self.files:
            try:
                opened = parquet.ParquetFile(file)
            except Exception as error:  # the library has many errors for a damaged file
                raise DuoGenError(f"{file} cannot be read as Parquet ({_short(error)}); is it whole?") from None
            names = list(opened.schema_arrow.names)
            if file == self.files[0]:
                self.columns = names
            elif names != self.columns:
                raise DuoGenError(f"{file} has other columns than {self.files[0].name}; give files of one set.")
            for group in range(opened.metadata.num_row_groups):
                self.groups.append((file, group, self.count))
                self.count += opened.metadata.row_group(group).num_rows

    def __len__(self) -> int:
        return self.count

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        import pyarrow.parquet as parquet

        ends = [first for _, _, first in self.groups[1:]] + [self.count]
        for (file, group, first), end in zip(self.groups, ends):
            if first >= stop or end <= start:
                continue
            row = first
            with parquet.ParquetFile(file) as opened:
                for batch in opened.iter_batches(BATCH, row_groups=[group], columns=list(columns), use_threads=False):
                    if row + len(batch) > start:
                        yield from batch.slice(max(start - row, 0), stop - max(row, start)).to_pylist()
                    row += len(batch)
                    if row >= stop:
                        break


class Arrow(Rows):
    """What `datasets` wrote with save_to_disk, or its .arrow files."""

    def __init__(self, path: Path, split: str) -> None:
        try:
            import datasets
        except ImportError:
            raise MissingPackage("Arrow sets", "datasets", "hf") from None
        self.where = str(path)
        try:
            found = datasets.load_from_disk(str(path)) if path.is_dir() else datasets.Dataset.from_file(str(path))
        except Exception as error:  # FileNotFoundError, ValueError, pyarrow's own, …
            raise DuoGenError(f"{path} cannot be read by datasets ({_short(error)}).") from None
        if isinstance(found, dict):
            found = found[_one(list(found), split, self.where)]
        self.columns = list(found.column_names)
        self.rows = found.with_format("arrow")
        self.files = sorted(Path(each["filename"]) for each in found.cache_files) or [path]

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        rows = self.rows.select_columns(list(columns))
        for first in range(start, stop, BATCH):
            yield from rows[first : min(first + BATCH, stop)].to_pylist()


class Json(Rows):
    def __init__(self, file: Path) -> None:
        self.files, self.where = [file], str(file)
        try:
            if file.stat().st_size > MAX_JSON:
                raise DuoGenError(f"{file} is larger than {MAX_JSON / 2**30:g} GB, the most that is read; split it.")
            text = file.read_text("utf-8")
            lines = file.suffix.lower() == ".jsonl"
            self.rows = [json.loads(line) for line in text.splitlines() if line.strip()] if lines else json.loads(text)
        except (OSError, ValueError, RecursionError) as error:
            raise DuoGenError(f"{file} cannot be read as JSON ({_short(error)}).") from None
        if not isinstance(self.rows, list) or not all(isinstance(row, dict) for row in self.rows):
            raise DuoGenError(f"{file} is no list of objects; expected one object for each edit.")
        self.columns = list(self.rows[0]) if self.rows else []

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        for row in self.rows[start:stop]:
            yield {name: row.get(name) for name in columns}


def open_rows(path: str, split: str = "", file: str = "") -> Rows:
    """file: the list's usual name in a folder that holds several JSON files."""
    place = Path(path)
    kind = place.suffix.lower()
    if place.is_file():
        if kind == ".parquet":
            rows: Rows = Parquet([place], path)
        elif kind == ".arrow":
            rows = Arrow(place, split)
        elif kind in (".json", ".jsonl"):
            rows = Json(place)
        else:
            raise DuoGenError(f"{path} is no set; expected a .parquet, .arrow, .json or .jsonl file, or a folder.")
    elif place.is_dir():
        rows = _folder(place, split, file)
    else:
        raise DuoGenError(f"{path} does not exist; give the folder or file of a set that is on this machine.")
    if not len(rows):
        raise DuoGenError(f"{path} has no rows.")
    return rows


def _folder(place: Path, split: str, file: str) -> Rows:
    if (place / "state.json").is_file() or (place / "dataset_dict.json").is_file():
        return Arrow(place, split)
    found = sorted(place.rglob("*.parquet"))
    if found:
        name = _one(sorted({each.name.rpartition("-of-")[0].rpartition("-")[0] for each in found}), split, str(place))
        wanted = [each for each in found if _matches(each.name.rpartition("-of-")[0].rpartition("-")[0], name)]
        return Parquet(wanted, str(place))
    lists = [place / file] if file and (place / file).is_file() else sorted(place.glob("*.json*"))
    if len(lists) == 1:
        return Json(lists[0])
    what = ", ".join(each.name for each in lists[:8]) or "none"
    raise DuoGenError(
        f"{place} holds no Parquet or Arrow files and not one JSON list but {what}; give the file itself."
    )


def _one(names: list[str], split: str, where: str) -> str:
    """The split that was asked for, or the only one there is."""
    if split:
        if not any(_matches(name, split) for name in names):
            raise DuoGenError(f"{where} has no split {split}; it has {', '.join(names) or 'none'}.")
        return split
    if len(names) > 1:
        raise DuoGenError(f"{where} has the splits {', '.join(names[:12])}; choose with --split, as in --split train.")
    return names[0]


def _matches(name: str, split: str) -> bool:
    return name == split or fnmatch.fnmatchcase(name, split)


def _short(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
