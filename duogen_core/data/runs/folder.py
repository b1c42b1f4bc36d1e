"""The folder of a run that makes Documents in shards: the same for every data engine.

DIR/run.json            what it was begun with; another identity is refused
DIR/plan.jsonl          a line a shard: what it is made of (where that is not a range of numbers)
DIR/shards/00000.tar    the Documents of a shard, as webdataset: read them with webdataset:DIR/shards
DIR/logs/00000.jsonl    a line an entry, with the rule that refused it (`log`); stands for a done shard
DIR/times/00000.json    seconds by stage, the only thing that differs between two runs

`shards` writes the last three. What an engine keeps beside them stands at the top of its own file.

Of the files that a run reads it knows the names, in an order that never changes, and digests of their contents.

    digests = FileDigests(OUT/index/digests.json)
    digests.of(path)      # the same at any place, another one after any edit
    digests.save()

An input is known by its contents, not by name and size. A file is read again when its size or one of its times has
changed, as git does it, so going on with a run over many inputs costs a look at each of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, TypeVar

from duogen_core import __version__
from duogen_core.data.runs.log import MAX_RUN_BYTES, is_whole, json_lines
from duogen_core.data.runs.presets import digest
from duogen_core.document import plain_json
from duogen_core.errors import DuoGenError
from duogen_core.files import atomic_path, read_json, write_atomically

Result = TypeVar("Result")
VERSION = 1  # of every run.json
_BEGIN_ANEW = "choose another --out, or remove the folder"
FOLDERS = ("shards", "logs", "times")
# whose kind is not the name of a command of `data`
_COMMANDS = {"benchmark": "evaluate run", "judging": "evaluate judge", "comparing": "evaluate compare"}
BEFORE = ("index", "fetched", "inputs.jsonl", "plan.jsonl", "answers.jsonl")  # what may be there before run.json is


@dataclass(frozen=True)
class RunFolder:
    folder: Path

    def tar(self, shard: int) -> Path:
        return self.folder / "shards" / f"{shard:05d}.tar"

    def log(self, shard: int) -> Path:
        return self.folder / "logs" / f"{shard:05d}.jsonl"

    def times(self, shard: int) -> Path:
        return self.folder / "times" / f"{shard:05d}.json"

    def is_done(self, shard: int) -> bool:
        """Whether its log stands there to the end; a loss of power may leave one that does not."""
        return is_whole(self.log(shard))

    def entries_of(self, shards: Iterable[int]) -> Iterator[dict[str, Any]]:
        """What the logs of done shards say, so that a run that goes on reports all that it holds."""
        for shard in shards:
            yield from json_lines(self.log(shard))

    def sweep(self, shard: int | None = None) -> None:
        """Removes what a killed run left half written; of one shard only where others may be another process's."""
        names = ".*.duogen-tmp" if shard is None else f".{shard:05d}.*.duogen-tmp"
        for folder in FOLDERS:
            for file in (self.folder / folder).glob(names):
                file.unlink(missing_ok=True)


def found_run(folder: Path, kind: str, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """What run.json of a run says that was begun with this identity; None if there is none yet."""
    if not (folder / "run.json").exists():
        return None
    value = read_run(folder, kind, lambda value: {**value, "identity": dict(value["identity"])}
                     if "identity" in value else {**value, "digest": value["digest"]})  # fmt: skip
    if "identity" not in value:  # runs of web, video and editing that an older version began have a digest of it
        if value["digest"] != digest(identity):
            raise DuoGenError(
                f"{folder} holds a run with other inputs, rules or shard sizes; choose another --out, or give the same "
                "ones to go on with it."
            )
    elif (found := value["identity"]) != identity:
        named = sorted(name for name in {*found, *identity} if found.get(name) != identity.get(name))
        raise DuoGenError(
            f"{folder} was begun with other values of {', '.join(named)}; give the same again to go on with it, or "
            "choose another folder, or remove this one."
        )
    return value


def with_version(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The identity as run.json has it: another version of this project may do anything differently."""
    return plain_json({**identity, "duogen": __version__}, "identity")


def begin_step(folder: Path, kind: str, identity: Mapping[str, Any]) -> None:
    """The folder of a step that has no shards: made, or continued if it was begun with the same identity."""
    whole = with_version(identity)
    if found_run(folder, kind, whole) is None:
        make_folders(folder)
        write_run(folder, kind, {"identity": whole})


def check_unused(folder: Path) -> None:
    """Refuses a folder with anything in it but what a kill leaves of a run that had no run.json yet."""

    def is_left(entry: Path) -> bool:
        if entry.name in FOLDERS:
            return entry.is_dir() and next(entry.iterdir(), None) is None
        return entry.name in BEFORE or entry.name.endswith(".duogen-tmp")

    if folder.exists() and not all(map(is_left, folder.iterdir())):
        raise DuoGenError(f"The folder {folder} has something else in it; choose another --out, or empty it first.")


def make_folders(folder: Path, names: Sequence[str] = ()) -> None:
    try:
        for name in ("", *names):
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DuoGenError(f"The folder {folder} cannot be made ({error.strerror}); choose another --out.") from None


def write_plan(folder: Path, items: Iterable[Any], size: int, group: Callable[[Any], Hashable]) -> tuple[int, int]:
    """Cuts the items into shards of this size, each of one group; how many items and shards there are."""
    count = shards = 0
    with atomic_path(folder / "plan.jsonl") as temporary, temporary.open("w", encoding="utf-8") as lines:
        for _, rest in groupby(items, group):
            while here := list(islice(rest, size)):
                lines.write(json.dumps({"shard": shards, "first": count, "items": here}) + "\n")
                count, shards = count + len(here), shards + 1
    return count, shards


def read_plan(folder: Path, shards: int, use: Callable[[dict[str, Any]], Result]) -> Iterator[tuple[int, Result]]:
    """What `use` makes of every line of plan.jsonl, with the byte at which the line begins."""
    place = count = 0
    try:
        lines = (folder / "plan.jsonl").open("rb")
    except OSError as error:
        raise DuoGenError(f"{folder / 'plan.jsonl'} cannot be read ({error.strerror}); {_BEGIN_ANEW}.") from None
    with lines:
        for line in lines:
            yield place, read_plan_line(folder, line, use)
            place, count = place + len(line), count + 1
    if count != shards:
        raise DuoGenError(f"{folder / 'plan.jsonl'} is damaged: it has {count} shards of {shards}; {_BEGIN_ANEW}.")


def read_plan_line(folder: Path, line: bytes, use: Callable[[dict[str, Any]], Result]) -> Result:
    """What `use` makes of a line of plan.jsonl; one that is damaged is a sentence."""
    try:
        return use(json.loads(line))
    except (ValueError, LookupError, TypeError, RecursionError):
        raise DuoGenError(f"{folder / 'plan.jsonl'} is damaged: {line[:60]!r} is not a shard; {_BEGIN_ANEW}.") from None


def write_run(folder: Path, kind: str, values: Mapping[str, Any]) -> None:
    value = {"format": f"duogen-{kind}-run", "version": VERSION, **values}
    write_atomically(folder / "run.json", (json.dumps(value, indent=2) + "\n").encode())


def read_run(folder: Path, kind: str, use: Callable[[dict[str, Any]], Result]) -> Result:
    """What `use` makes of run.json: a field that it lacks, or that is of another kind, is the file's fault."""
    if not (folder / "run.json").exists():
        raise DuoGenError(f"{folder} holds no run.json; expected a folder that `{_command(kind)}` made.")
    value = read_json(folder / "run.json", limit=MAX_RUN_BYTES)
    try:
        if value["format"] != f"duogen-{kind}-run" or value["version"] != VERSION:
            raise KeyError("format")
        return use(value)
    except DuoGenError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DuoGenError(
            f"{folder / 'run.json'} cannot be read ({error}); was it made by `{_command(kind)}`?"
        ) from None


def _command(kind: str) -> str:
    return _COMMANDS.get(kind) or "data " + kind.replace("-", " ")


# ------------------------------------------------------------ files that a run reads

FRESH = 2 * 10**9  # nanoseconds: of a file that has just been written, another edit may leave the same times
LARGE = 100 * 10**6  # bytes; see `of_small`
STEP = 2**20


class FileDigests:
    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.known: dict[str, list] = {}
        try:
            found = json.loads(cache.read_text("utf-8"))
            self.known = {name: entry for name, entry in found.items() if isinstance(entry, list) and len(entry) == 4}
        except (OSError, ValueError, AttributeError, RecursionError):
            pass  # no more than a short cut
        self.used: dict[str, list] = {}

    def of(self, file: Path) -> str:
        """The digest of a file's contents. Raises OSError."""
        name, stat = str(file.absolute()), file.stat()
        marks = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        known = self.used.get(name) or self.known.get(name)
        if known is None or known[:3] != marks:
            total = hashlib.sha256()
            with file.open("rb") as stream:
                while piece := stream.read(STEP):
                    total.update(piece)
            known = [*marks, total.hexdigest()[:32]]
        if time.time_ns() - stat.st_mtime_ns > FRESH:
            self.used[name] = known
        return known[3]

    def of_small(self, file: Path) -> str:
        """The same for a file beside which many may lie that are no input; of a large one only its size counts."""
        try:
            size = file.stat().st_size
            return self.of(file) if size <= LARGE else f"{size} bytes"
        except OSError as error:
            return f"unreadable: {error.errno}"

    def save(self) -> None:
        if self.used != self.known:
            write_atomically(self.cache, json.dumps(self.used).encode())


PIECES, PIECE = 64, 16 * 2**10  # of a file of weights, evenly spread: other training changes nearly all of it
WEIGHTS = (".safetensors", ".gguf", ".json")


def weights_digest(*places: Path) -> str:
    """A digest of models' files (folders, or single ones) that does not read gigabytes: names, sizes and pieces."""
    total = hashlib.sha256()
    for place in places:
        # Links as well: Hugging Face's cache has nothing else.
        files = sorted(place.rglob("*")) if place.is_dir() else [place]
        for file in files:
            if file.suffix not in WEIGHTS or not file.is_file():
                continue
            name = file.relative_to(place).as_posix() if file != place else file.suffix
            try:
                with file.open("rb") as stream:
                    size = os.fstat(stream.fileno()).st_size
                    total.update(f"{name} {size}\n".encode("utf-8", "surrogateescape"))
                    for number in range(PIECES):
                        stream.seek(max(size - PIECE, 0) * number // (PIECES - 1))
                        total.update(stream.read(PIECE))
            except OSError as error:
                raise DuoGenError(f"{file} cannot be read ({error.strerror}); check the model's files.") from None
    return total.hexdigest()[:32]


def names_below(folder: Path, endings: tuple[str, ...], inside: str = "") -> Iterator[str]:
    """Those with one of these endings, relative to the folder. What is hidden or a link is left out."""
    with os.scandir(folder) as entries:
        found = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    for entry in found:
        name = f"{inside}/{entry.name}" if inside else entry.name
        if entry.is_dir(follow_symlinks=False):
            yield from names_below(Path(entry.path), endings, name)
        elif entry.name.lower().endswith(endings) and entry.is_file(follow_symlinks=False):
            yield name
