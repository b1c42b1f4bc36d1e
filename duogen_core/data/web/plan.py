"""A run's folder and its plan: which pages make which shard, fixed when the run begins.

OUT/index/000.sqlite  of a WARC file (`warc`); digests.json, of what stood in the inputs (`file_digests`)
OUT/inputs.jsonl      a line an input, if a WARC file among them is damaged: where, and how
OUT/fetched/          what --fetch brought, before there was a plan (`fetching`)

The rest of the folder is as `run_folder` says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duogen_core import __version__
from duogen_core.data.net.client import HttpClient
from duogen_core.data.pictures import nsfw
from duogen_core.data.runs.folder import (
    FOLDERS,
    RunFolder,
    check_same,
    check_unused,
    make_folders,
    read_plan,
    read_plan_line,
    read_run,
    write_plan,
    write_run,
)
from duogen_core.data.runs.input_files import FileDigests
from duogen_core.data.runs.presets import digest
from duogen_core.data.web.fetching import (
    MAX_UNREACHABLE,
    Report,
    WithFetched,
    fetch,
    is_list,
    read_list,
)
from duogen_core.data.web.inputs import open_inputs
from duogen_core.data.web.page import Input
from duogen_core.data.web.pictures import read_hosts
from duogen_core.data.web.preset import Preset, preset_from_json
from duogen_core.data.web.warc import Warc, log_damage
from duogen_core.errors import DuoGenError

KIND = "web"
SHARD_PAGES = 64


@dataclass(frozen=True)
class Shard:
    number: int
    input: int
    first: int  # the number of its first page in the run
    pages: tuple[str, ...]


@dataclass(frozen=True)
class Run(RunFolder):
    """An existing run: where it is, what it reads and by what rules."""

    paths: tuple[str, ...]
    preset: Preset
    pages: int
    shards: int
    notes: tuple[str, ...] = ()

    def inputs(self) -> list[Input]:
        return _opened(self.paths, self.folder, finished=True, planned=True)

    def plan(self) -> Iterator[Shard]:
        for _, shard in self.places():
            yield shard

    def places(self) -> Iterator[tuple[int, Shard]]:
        """Every shard with the byte at which its line of the plan begins: small enough to be sent anywhere."""
        yield from read_plan(self.folder, self.shards, _shard)

    def shard_at(self, place: int) -> Shard:
        with (self.folder / "plan.jsonl").open("rb") as lines:
            lines.seek(place)
            return read_plan_line(self.folder, lines.readline(), _shard)


def _shard(entry: dict[str, Any]) -> Shard:
    return Shard(entry["shard"], entry["input"], entry["first"], tuple(entry["pages"]))


def begin(
    folder: Path,
    paths: Sequence[str],
    preset: Preset,
    shard_pages: int = SHARD_PAGES,
    say: Callable[[str], None] = lambda _: None,
    network: HttpClient | None = None,
    report: Report = lambda *_: None,
    max_unreachable: float = MAX_UNREACHABLE,
) -> Run:
    """The run in this folder: gone on with if it is there with the same inputs and rules, planned otherwise.

    network: what is missing is fetched through it first; report tells how far that is. max_unreachable: the share of
    addresses that may be left because the network or a host failed; beyond it there is no plan and an error.
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
    digests = FileDigests(folder / "index" / "digests.json")
    hosts = preset.advert["hosts"]
    identity = {
        "inputs": [{"path": str(each.path), **each.identity(digests)} for each in _opened(paths, None)],
        "fetch": None if network is None else digest([read_list(path) for path in lists]),
        "preset": preset.to_json(),
        "nsfw": nsfw.identity(preset.nsfw, digests),
        "ad_hosts": digest(sorted(read_hosts(hosts))) if hosts else None,
        "shard_pages": shard_pages,
        "duogen": __version__,
    }
    mark = digest(identity)
    if (folder / "run.json").is_file():
        run, found = _read(folder)
        check_same(folder, found, mark)
        return run
    check_unused(folder, ("index", "fetched", "inputs.jsonl", "plan.jsonl"))
    make_folders(folder, (*FOLDERS, "index"))
    digests.save()
    notes: list[str] = []
    if network is not None:
        notes += fetch(
            folder / "fetched", mark, lists, lambda: _opened(paths, folder, say), preset, network, report,
            max_unreachable,
        )  # fmt: skip
    inputs = _opened(paths, folder, say, finished=True)
    groups = (({"input": number}, each.names()) for number, each in enumerate(inputs))
    pages, shards = write_plan(folder, "pages", groups, shard_pages)
    notes += log_damage(folder / "inputs.jsonl", inputs)
    counts = {"pages": pages, "shards": shards}
    write_run(folder, KIND, {**identity, "paths": list(paths), **counts, "notes": notes, "digest": mark})
    return Run(folder, tuple(paths), preset, pages, shards, tuple(notes))


def open_run(folder: Path) -> Run:
    """The run in this folder, to look at."""
    return _read(folder)[0]


def _read(folder: Path) -> tuple[Run, str]:
    def run(value: dict[str, Any]) -> tuple[Run, str]:
        preset, paths, notes = preset_from_json(value["preset"]), tuple(value["paths"]), tuple(value["notes"])
        return Run(folder, paths, preset, value["pages"], value["shards"], notes), value["digest"]

    return read_run(folder, KIND, run)


def _opened(
    paths: Sequence[str],
    folder: Path | None,
    say: Callable[[str], None] = lambda _: None,
    finished: bool = False,
    planned: bool = False,
) -> list[Input]:
    """The inputs, and what was fetched for them; with indices if there is a folder.

    finished: all was fetched. planned: there is a plan, whose pages stand at the places that the indices say.
    """
    given = [path for path in paths if not is_list(Path(path))]
    inputs = open_inputs(given) if given else []
    if folder is None:
        return inputs
    fetched = folder / "fetched"
    if (fetched / "pages.warc.gz").exists():
        inputs.append(Warc(fetched / "pages.warc.gz"))
    for number, each in enumerate(inputs):
        if isinstance(each, Warc):
            _index(each, folder / "index" / f"{number:03d}.sqlite", say, planned)
    if finished and (fetched / "pictures.warc.gz").exists():
        pictures = Warc(fetched / "pictures.warc.gz")
        _index(pictures, folder / "index" / "pictures.sqlite", say, planned)
        inputs = [WithFetched(each, pictures) for each in inputs]
    return inputs


def _index(warc: Warc, index: Path, say: Callable[[str], None], planned: bool) -> None:
    if planned and index.exists():
        return warc.use_finished_index(index)
    if not index.exists():
        say(f"Indexing {warc.path} …")
    warc.use_index(index)
