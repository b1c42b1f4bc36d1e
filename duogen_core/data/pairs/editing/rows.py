"""Rows of a set on this machine: Parquet files, what `datasets` saved (Arrow), JSON lists and JSON lines.

    rows = open_rows(paths, split, file)
    rows.columns, len(rows)
    reader = RowReader(rows, columns)
    reader.read(start, stop)         a list of dicts; spans in ascending order cost one pass over the set

A set may be larger than the memory: Parquet is read group by group, Arrow is mapped, and of JSON lines only their
places are kept. A JSON list is held whole. No picture is decoded here, and a path in a row is followed only inside the
set's own folder.
"""

from __future__ import annotations

import fnmatch
import json
from abc import ABC, abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from duogen_core.data.sources.base import digest
from duogen_core.document.reading import folder_reader
from duogen_core.errors import DuoGenError, MissingPackage, is_system_failure

BATCH = 8  # rows that are held with their pictures
MAX_JSON = 2**29  # bytes of a JSON list, which takes several times as much memory
MAX_LINE = 2**26  # bytes of one line of JSON


class Rows(ABC):
    columns: list[str]
    where: str
    files: list[Path]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batches(self, start: int, columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
        """(number of its first row, rows) to the end of the set; the first batch holds row `start` or lies before it.

        The rows are a list of dicts, or a table of pyarrow. Several threads may read at once.
        """

    def reopens(self, position: int, start: int) -> bool:
        """Whether a reader that stands at `position` comes to the later row `start` sooner through new batches."""
        return start > position

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Rows start … stop - 1, only with these columns."""
        reader = RowReader(self, columns)
        for first in range(start, stop, BATCH):
            yield from reader.read(first, min(first + BATCH, stop))

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
            raise DuoGenError(f"{name} holds no image.")
        return folder_reader(self.files[0].parent.resolve())(path, name)


class RowReader:
    """Reads spans of rows for one thread. It stays where the last span ended, because Parquet can be entered only at
    the beginning of a row group: whoever opens the file anew for each row decodes the rows before it every time."""

    def __init__(self, rows: Rows, columns: Sequence[str]) -> None:
        self.rows, self.columns = rows, list(columns)
        self.batches: Iterator[tuple[int, Any]] | None = None
        self.first = self.end = 0  # of the batch at hand
        self.batch: Any = ()

    def read(self, start: int, stop: int) -> list[dict[str, Any]]:
        """Rows start … stop - 1."""
        if self.batches is None or start < self.first or self.rows.reopens(self.end, start):
            self.batches, self.first, self.end, self.batch = self.rows.batches(start, self.columns), start, start, ()
        found: list[dict[str, Any]] = []
        while (row := start + len(found)) < stop:
            while row >= self.end:
                self.first, self.batch = next(self.batches)
                self.end = self.first + len(self.batch)
            begin, count = row - self.first, min(stop, self.end) - row
            if isinstance(self.batch, list):
                found += self.batch[begin : begin + count]
                continue
            try:
                found += self.batch.slice(begin, count).to_pylist()
            except UnicodeDecodeError:
                raise DuoGenError(
                    f"{self.rows.where}, row {row}: a text is not valid UTF-8; the file is damaged."
                ) from None
        return found


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
                if is_system_failure(error):
                    raise
                raise DuoGenError(f"{file} cannot be read as Parquet ({_short(error)}); is it whole?") from None
            names = list(opened.schema_arrow.names)
            if file == self.files[0]:
                self.columns = names
            elif names != self.columns:
                raise DuoGenError(f"{file} has other columns than {self.files[0].name}; give files of one set.")
            for group in range(opened.metadata.num_row_groups):
                self.groups.append((file, group, self.count))
                self.count += opened.metadata.row_group(group).num_rows
        self.firsts = [first for _, _, first in self.groups]

    def __len__(self) -> int:
        return self.count

    def batches(self, start: int, columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
        import pyarrow.parquet as parquet

        for file, group, row in self.groups[self._group(start) :]:
            try:
                # a row group may be larger than the memory, so its pages are read as they are needed
                with parquet.ParquetFile(file, pre_buffer=False, buffer_size=2**20) as opened:
                    names = list(columns)
                    for batch in opened.iter_batches(BATCH, row_groups=[group], columns=names, use_threads=False):
                        yield row, batch
                        row += len(batch)
            except (OSError, ValueError, MemoryError) as error:  # pyarrow's own errors are among them
                if is_system_failure(error):
                    raise
                raise DuoGenError(
                    f"{file}: row group {group} is damaged ({_short(error)}); copy the file again from its source."
                ) from None

    def reopens(self, position: int, start: int) -> bool:
        return self._group(start) > self._group(position)

    def _group(self, row: int) -> int:
        """The place in self.groups of the row group that holds a row."""
        return bisect_right(self.firsts, row) - 1


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
            if is_system_failure(error):
                raise
            raise DuoGenError(f"{path} cannot be read by datasets ({_short(error)}).") from None
        if isinstance(found, dict):
            found = found[_one(list(found), split, self.where)]
        self.columns = list(found.column_names)
        self.rows = found.with_format("arrow")
        self.files = sorted(Path(each["filename"]) for each in found.cache_files) or [path]

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, start: int, columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
        rows = self.rows.select_columns(list(columns))
        for first in range(start, len(rows), BATCH):
            yield first, rows[first : first + BATCH]


class Json(Rows):
    """A list of objects, held whole."""

    def __init__(self, file: Path) -> None:
        self.files, self.where = [file], str(file)
        try:
            if file.stat().st_size > MAX_JSON:
                raise DuoGenError(
                    f"{file} is larger than {MAX_JSON / 2**20:g} MB, the most that is read of a JSON list; write it as "
                    "JSON lines (.jsonl), which may have any size."
                )
            self.rows = json.loads(file.read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            if isinstance(error, DuoGenError):
                raise
            raise DuoGenError(f"{file} cannot be read as JSON ({_short(error)}).") from None
        if not isinstance(self.rows, list) or not all(isinstance(row, dict) for row in self.rows):
            raise DuoGenError(f"{file} is not a list of objects; expected one object for each edit.")
        self.columns = list(self.rows[0]) if self.rows else []

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, start: int, columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
        for first in range(start, len(self.rows), BATCH):
            yield first, [{name: row.get(name) for name in columns} for row in self.rows[first : first + BATCH]]


class JsonLines(Rows):
    """An object a line. Every line is looked at once, then only its place in the file is kept."""

    def __init__(self, file: Path) -> None:
        self.files, self.where, self.columns = [file], str(file), []
        self.starts, self.numbers = array("q"), array("q")
        try:
            with file.open("rb") as stream:
                place = 0
                for number, line in enumerate(iter(lambda: stream.readline(MAX_LINE + 1), b""), 1):
                    if line.strip():
                        row = self._row(line, number)
                        self.columns = self.columns or list(row)
                        self.starts.append(place)
                        self.numbers.append(number)
                    place += len(line)
        except OSError as error:
            raise DuoGenError(f"{file} cannot be read ({error.strerror or error}).") from None

    def _row(self, line: bytes, number: int) -> dict[str, Any]:
        where = f"{self.files[0]}, line {number}"
        if len(line) > MAX_LINE:
            raise DuoGenError(f"{where} is longer than {MAX_LINE / 2**20:g} MB, the most that is read; is it a list?")
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DuoGenError(f"{where} cannot be read as JSON ({_short(error)}).") from None
        if not isinstance(row, dict):
            raise DuoGenError(f"{where} is not an object; expected one object for each edit.")
        return row

    def __len__(self) -> int:
        return len(self.starts)

    def batches(self, start: int, columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
        with self.files[0].open("rb") as stream:
            for row in range(start, len(self)):
                stream.seek(self.starts[row])
                values = self._row(stream.readline(MAX_LINE + 1), self.numbers[row])
                yield row, [{name: values.get(name) for name in columns}]


def open_rows(path: str, split: str = "", file: str = "") -> Rows:
    """file: the list's usual name in a folder that holds several JSON files."""
    place = Path(path)
    kind = place.suffix.lower()
    if place.is_file():
        if kind == ".parquet":
            rows: Rows = Parquet([place], path)
        elif kind == ".arrow":
            rows = Arrow(place, split)
        elif kind == ".jsonl":
            rows = JsonLines(place)
        elif kind == ".json":
            rows = Json(place)
        else:
            raise DuoGenError(
                f"{path} is not a data set; expected a .parquet, .arrow, .json or .jsonl file, or a folder."
            )
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
        return JsonLines(lists[0]) if lists[0].suffix.lower() == ".jsonl" else Json(lists[0])
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
