"""Is a file whole, and do two folders hold the same? For what a killed or starved command leaves behind.

`broken(folder)` reads every file that has a final name to its end, by its format, and says what is wrong with it.
`differences(one, other)` compares two finished folders, figures of time left out.
"""

from __future__ import annotations

import fnmatch
import io
import json
import re
import sqlite3
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors import safe_open

TEMPORARY = ("*.duogen-tmp", "*.tmp", "*.new", "*.new.*", "*.old", ".duogen-*", "*-journal", "*-wal")
GROWING = (
    "answers.jsonl",
    "metrics.jsonl",
    "*.recording.jsonl",
    "fetched/*.jsonl",
    "bad_samples.jsonl",
    "requests.log",
)
# digests.json remembers what files held whose times are old enough to say that they did not change since.
VOLATILE = (
    "index/digests.json",
    "times/*",
    "*/times/*",
    "tensorboard/*",
    "*/tensorboard/*",
    "STATUS",
    "*/STATUS",
    "*.lock",
)


def temporary_name(name: str) -> bool:
    """Whether a file or folder of this name says: not finished."""
    return any(fnmatch.fnmatch(name, pattern) for pattern in TEMPORARY)


def is_temporary(path: Path, below: Path) -> bool:
    """Whether the path, or a folder it lies in, has such a name."""
    return any(map(temporary_name, path.relative_to(below).parts))


def left_over(folder: Path) -> list[Path]:
    """The temporary files and folders in it; of a folder only the folder."""
    found = [path.relative_to(folder) for path in files(folder) if is_temporary(path, folder)]
    tops = {next(each for each in (*path.parents[::-1], path) if temporary_name(each.name)) for path in found}
    return sorted(tops)


def is_growing(path: Path) -> bool:
    """A log that is appended to: its last line may be cut by a kill, and is mended by the next run."""
    return any(fnmatch.fnmatch(path.as_posix(), f"*{pattern}") for pattern in GROWING)


def files(folder: Path) -> Iterator[Path]:
    yield from (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())


def broken(folder: Path) -> list[str]:
    """What is wrong with files of final names, a line each."""
    found = []
    for path in files(folder):
        if is_temporary(path, folder):
            continue
        try:
            check(path)
        except Exception as error:
            found.append(f"{path.relative_to(folder)} ({path.stat().st_size} bytes): {type(error).__name__}: {error}")
    return found


def check(path: Path) -> None:
    """Raises what the reader of its format raises, if the file is not whole."""
    kind = path.suffix.lower()
    if kind in CHECKS:
        CHECKS[kind](path)


def _json(path: Path) -> None:
    json.loads(path.read_text("utf-8"))


def _jsonl(path: Path) -> None:
    data = path.read_bytes()
    *lines, rest = data.split(b"\n")
    if rest and not is_growing(path):
        raise ValueError("the last line has no end")
    for line in lines:
        if line.strip():
            json.loads(line)


def _picture(path: Path) -> None:
    with Image.open(path) as image:
        image.load()


def _tar(path: Path) -> None:
    data = path.read_bytes()
    if len(data) % 512 or data[-1024:].strip(b"\0"):
        raise ValueError("the end of the archive is missing")
    with tarfile.open(path) as archive:
        for member in archive:
            stream = archive.extractfile(member)
            if stream is not None and len(stream.read()) != member.size:
                raise ValueError(f"{member.name} is cut off")


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        if (bad := archive.testzip()) is not None:
            raise ValueError(f"{bad} is damaged")


def _safetensors(path: Path) -> None:
    with safe_open(path, "pt") as weights:
        for name in weights.keys():  # noqa: SIM118  (not a mapping)
            weights.get_tensor(name)


def _html(path: Path) -> None:
    if not path.read_text("utf-8").rstrip().endswith("</html>"):
        raise ValueError("the end of the page is missing")


def _pdf(path: Path) -> None:
    data = path.read_bytes()
    if not data.startswith(b"%PDF-") or not data.rstrip().endswith(b"%%EOF"):
        raise ValueError("the end of the file is missing")


def _parquet(path: Path) -> None:
    import pyarrow.parquet

    pyarrow.parquet.read_table(path)


def _yaml(path: Path) -> None:
    import yaml

    yaml.safe_load(path.read_text("utf-8"))


def _sqlite(path: Path) -> None:
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
        if database.execute("pragma integrity_check").fetchone() != ("ok",):
            raise ValueError("the database is damaged")


CHECKS: dict[str, Callable[[Path], None]] = {
    **{".json": _json, ".jsonl": _jsonl, ".tar": _tar, ".zip": _zip, ".safetensors": _safetensors, ".html": _html},
    **{".pdf": _pdf, ".parquet": _parquet, ".yaml": _yaml, ".sqlite": _sqlite, ".db": _sqlite},
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".webp"), _picture),
}


# ---------------------------------------------------------------- comparing


def differences(one: Path, other: Path, volatile: Sequence[str] = ()) -> list[str]:
    """Files of `one` that `other` lacks, what it has besides, and what differs in more than times and folder names."""
    skip = (*VOLATILE, *volatile)
    names = [
        {
            path.relative_to(folder).as_posix()
            for path in files(folder)
            if not any(fnmatch.fnmatch(path.relative_to(folder).as_posix(), pattern) for pattern in skip)
            and not is_temporary(path, folder)
        }
        for folder in (one, other)
    ]
    found = [f"{name} is missing" for name in sorted(names[0] - names[1])]
    found += [f"{name} is one too many" for name in sorted(names[1] - names[0])]
    for name in sorted(names[0] & names[1]):
        data = [(folder / name).read_bytes().replace(str(folder).encode(), b"OUT") for folder in (one, other)]
        if data[0] != data[1] and timeless(name, data[0]) != timeless(name, data[1]):
            found.append(f"{name} differs")
    return found


TIMES = {
    "seconds",
    "speed",
    "elapsed",
    "hours",
    "minutes_spent",
    "time",
    "started",
    "per_second",
    "versions",
    "rate",
    "when",
}


def timeless(name: str, data: bytes) -> Any:
    """The content without figures of time; of pictures the pixels, of archives the members."""
    kind = Path(name).suffix.lower()
    try:
        if kind == ".json":
            return _without_times(json.loads(data))
        if kind == ".jsonl":
            return [_without_times(json.loads(line)) for line in data.splitlines() if line.strip()]
        if kind == ".md":
            return re.sub(rb"[\d.]+ (s|seconds|minutes|hours)\b", b"TIME", data)
        if kind == ".zip":
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                return {each: archive.read(each) for each in archive.namelist()}
    except ValueError:
        pass
    return data


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(each) for key, each in value.items() if key not in TIMES}
    return [_without_times(each) for each in value] if isinstance(value, list) else value
