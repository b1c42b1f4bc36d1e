"""A run's folder and its plan: which pages make which shard, fixed when the run begins.

OUT/run.json        inputs, preset and sizes; written last when a run is begun, so it stands for a whole plan
OUT/plan.jsonl      a line a shard: its number, its input, its pages' names, the number of its first page
OUT/index/000.sqlite  of a WARC file (`warc`)
OUT/fetched/          what --fetch brought, before there was a plan (`fetching`)
OUT/shards/00000.tar  the Documents of a shard, as webdataset: read them with webdataset:OUT/shards
OUT/logs/00000.jsonl  a line a page, with the rule and the value for it and for each picture; stands for a done shard
OUT/times/00000.json  seconds by stage, the only thing that differs between two runs
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duogen_core import __version__
from duogen_core.data.fetch.network import Network
from duogen_core.data.web import nsfw
from duogen_core.data.web.ad_hosts import read_hosts
from duogen_core.data.web.fetching import Report, WithFetched, fetch, is_list, read_list
from duogen_core.data.web.inputs import Input
from duogen_core.data.web.opening import open_inputs
from duogen_core.data.web.preset import Preset, preset_from_json
from duogen_core.data.web.warc import Warc
from duogen_core.errors import DuoGenError
from duogen_core.store import write_atomically

FORMAT, VERSION = "duogen-web-run", 1
SHARD_PAGES = 64


@dataclass(frozen=True)
class Shard:
    number: int
    input: int
    first: int  # the number of its first page in the run
    pages: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """An existing run: where it is, what it reads and by what rules."""

    folder: Path
    paths: tuple[str, ...]
    preset: Preset
    pages: int
    shards: int
    notes: tuple[str, ...] = ()

    def inputs(self) -> list[Input]:
        return _opened(self.paths, self.folder, finished=True)

    def plan(self) -> Iterator[Shard]:
        for _, shard in self.places():
            yield shard

    def places(self) -> Iterator[tuple[int, Shard]]:
        """Every shard with the byte at which its line of the plan begins: small enough to be sent anywhere."""
        with (self.folder / "plan.jsonl").open("rb") as lines:
            place = 0
            for line in lines:
                yield place, _shard(line)
                place += len(line)

    def shard_at(self, place: int) -> Shard:
        with (self.folder / "plan.jsonl").open("rb") as lines:
            lines.seek(place)
            return _shard(lines.readline())

    def documents(self, shard: int) -> Path:
        return self.folder / "shards" / f"{shard:05d}.tar"

    def log(self, shard: int) -> Path:
        return self.folder / "logs" / f"{shard:05d}.jsonl"

    def times(self, shard: int) -> Path:
        return self.folder / "times" / f"{shard:05d}.json"

    def is_done(self, shard: int) -> bool:
        return self.log(shard).is_file()


def _shard(line: bytes) -> Shard:
    entry = json.loads(line)
    return Shard(entry["shard"], entry["input"], entry["first"], tuple(entry["pages"]))


def begin(
    folder: Path,
    paths: Sequence[str],
    preset: Preset,
    shard_pages: int = SHARD_PAGES,
    say: Callable[[str], None] = lambda _: None,
    network: Network | None = None,
    report: Report = lambda *_: None,
) -> Run:
    """The run in this folder: gone on with if it is there with the same inputs and rules, planned otherwise.

    network: what is missing is fetched through it first; report tells how far that is.
    """
    if shard_pages < 1:
        raise DuoGenError(f"A shard has {shard_pages} pages; expected at least 1.")
    for path in map(Path, paths):
        if path.is_dir() and path.resolve() in (folder.resolve(), *folder.resolve().parents):
            raise DuoGenError(
                f"{folder} lies in the input {path}, where it would be read as input; choose another --out."
            )
    lists = [path for path in map(Path, paths) if is_list(path)]
    if lists and network is None:
        raise DuoGenError(f"{lists[0]} is a list of pages on the web; they are fetched only with --fetch.")
    identity = {
        "inputs": [{"path": str(each.path), **each.identity()} for each in _opened(paths, None)],
        "fetch": None if network is None else _digest([read_list(path) for path in lists]),
        "preset": preset.to_json(),
        "nsfw": nsfw.identity(preset.nsfw),
        "ad_hosts": len(read_hosts(preset.advert["hosts"])) if preset.advert["hosts"] else None,
        "shard_pages": shard_pages,
        "duogen": __version__,
    }
    if (folder / "run.json").is_file():
        run, found = _read(folder)
        if found != _digest(identity):
            raise DuoGenError(
                f"{folder} holds a run with other inputs, rules or shard sizes; choose another --out, or give the same "
                "ones to go on with it."
            )
        return run
    if folder.exists() and not all(map(_was_begun, folder.iterdir())):
        raise DuoGenError(f"The folder {folder} has something else in it; choose another --out, or empty it first.")
    try:
        for name in ("index", "shards", "logs", "times"):
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DuoGenError(f"The folder {folder} cannot be made ({error.strerror}); choose another --out.") from None
    if network is not None:
        fetch(
            folder / "fetched", _digest(identity), lists, lambda: _opened(paths, folder, say), preset, network, report
        )
    inputs = _opened(paths, folder, say, finished=True)
    pages, shards = _write_plan(folder / "plan.jsonl", inputs, shard_pages)
    notes = [note for each in inputs if isinstance(each, Warc) for note in each.notes()]
    value = {"format": FORMAT, "version": VERSION, **identity, "paths": list(paths), "pages": pages, "shards": shards}
    value |= {"notes": notes, "digest": _digest(identity)}
    write_atomically(folder / "run.json", (json.dumps(value, indent=2) + "\n").encode())
    return Run(folder, tuple(paths), preset, pages, shards, tuple(notes))


def _was_begun(entry: Path) -> bool:
    """Whether this is what a kill leaves of a run that had no plan yet."""
    if entry.name in ("shards", "logs", "times"):
        return entry.is_dir() and next(entry.iterdir(), None) is None
    return entry.name in ("index", "fetched", "plan.jsonl") or entry.name.endswith(".duogen-tmp")


def open_run(folder: Path) -> Run:
    """The run in this folder, to look at."""
    return _read(folder)[0]


def _read(folder: Path) -> tuple[Run, str]:
    try:
        value = json.loads((folder / "run.json").read_text("utf-8"))
        if value["format"] != FORMAT or value["version"] != VERSION:
            raise KeyError("format")
        preset, paths, notes = preset_from_json(value["preset"]), tuple(value["paths"]), tuple(value["notes"])
        return Run(folder, paths, preset, value["pages"], value["shards"], notes), value["digest"]
    except FileNotFoundError:
        raise DuoGenError(f"{folder} holds no run.json; expected a folder that `data web` made.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DuoGenError(f"{folder / 'run.json'} cannot be read ({error}); was it made by `data web`?") from None


def _opened(
    paths: Sequence[str], folder: Path | None, say: Callable[[str], None] = lambda _: None, finished: bool = False
) -> list[Input]:
    """The inputs, and what was fetched for them; with indices if there is a folder. finished: all was fetched."""
    given = [path for path in paths if not is_list(Path(path))]
    inputs = open_inputs(given) if given else []
    if folder is None:
        return inputs
    fetched = folder / "fetched"
    if (fetched / "pages.warc.gz").exists():
        inputs.append(Warc(fetched / "pages.warc.gz"))
    for number, each in enumerate(inputs):
        if isinstance(each, Warc):
            _index(each, folder / "index" / f"{number:03d}.sqlite", say)
    if finished and (fetched / "pictures.warc.gz").exists():
        pictures = Warc(fetched / "pictures.warc.gz")
        _index(pictures, folder / "index" / "pictures.sqlite", say)
        inputs = [WithFetched(each, pictures) for each in inputs]
    return inputs


def _index(warc: Warc, index: Path, say: Callable[[str], None]) -> None:
    if not index.exists():
        say(f"Indexing {warc.path} …")
    warc.use_index(index)


def _write_plan(file: Path, inputs: Sequence[Input], size: int) -> tuple[int, int]:
    pages = shards = 0
    temporary = file.with_name(f".{file.name}.duogen-tmp")
    with temporary.open("w", encoding="utf-8") as lines:
        for number, each in enumerate(inputs):
            names: list[str] = []

            def put(names: list[str], number: int = number) -> None:
                nonlocal pages, shards
                lines.write(json.dumps({"shard": shards, "input": number, "first": pages, "pages": names}) + "\n")
                pages, shards = pages + len(names), shards + 1

            for name in each.names():
                names.append(name)
                if len(names) == size:
                    put(names)
                    names = []
            if names:
                put(names)
    temporary.replace(file)
    return pages, shards


def _digest(identity: Any) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
