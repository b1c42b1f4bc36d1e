"""Hostile inputs: does each get a sentence, or is it read rightly, within bounds, and is nothing else touched?

A family (`hostile_inputs.py`, `hostile_servers.py`) makes cases: files in a folder of their own and a command that
reads them. Each case runs in a child (`zygote.py`) whose writes, connections and programs are watched. What must hold,
for every one:

- exit code 0, or 2 with one sentence (or 1, where the command reports bad samples); never a traceback;
- nothing is written outside the output folder, nothing is connected to, started or unpickled; the inputs stay;
- under `SECONDS` and `MEMORY`;
- what the output folder holds is whole, and no text of the input is live markup in a page of it;
- where a case knows what is right (`right`), it came out so.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.hardening import mutations, whole
from tests.hardening.sentences import wrong_with
from tests.hardening.zygote import Ended, Guard, Limits, Zygote, shared

SECONDS = 60.0  # of a busy machine; the slowest is reported
MEMORY = 1 << 30  # bytes above what the imports take
LIVE = re.compile(r"<script>\s*alert|<img src=x onerror|href=[\"']?\s*javascript:|src=[\"']?http://127", re.IGNORECASE)


@dataclass
class Case:
    command: list[object]
    codes: tuple[int, ...] = (0, 2)
    right: Callable[[Ended, Path], str] = lambda ended, out: ""  # a sentence where something came out wrong
    hosts: tuple[str, ...] = ("127.0.0.1",)
    programs: bool = False  # the command starts workers of its own
    whole: bool = True  # the output holds nothing hostile of the case's own
    caches: bool = False  # a library may keep what it read in the cache of Hugging Face
    module: str = "tests.hardening.hostile:without_pauses"


@dataclass
class Box:
    """The folder of one case."""

    folder: Path
    shared: Path  # inputs that all cases may read

    @property
    def input(self) -> Path:
        return self.folder / "input"

    @property
    def out(self) -> Path:
        return self.folder / "output" / "out"


Family = Callable[[Box, random.Random, int, ExitStack], Case]


@dataclass
class Score:
    family: str
    cases: int = 0
    distinct: int = 0
    codes: dict[int, int] = field(default_factory=dict)
    slowest: float = 0.0
    largest: int = 0  # bytes
    faults: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "slowest": round(self.slowest, 1), "largest": self.largest >> 20}


def campaign(
    count: int, seed: int = 0, names: Sequence[str] = (), zygote: Zygote | None = None, show: Any = lambda _: None,
    only: int | None = None, keep: Path | None = None,
) -> list[Score]:  # fmt: skip
    """About `count` cases in all, shared among the families by their weights. only: the number of a case to repeat.

    keep: a folder for the inputs of cases that went wrong.
    """
    from tests.hardening.hostile_inputs import FAMILIES
    from tests.hardening.hostile_servers import SERVERS

    chosen = {
        name: each for name, each in (FAMILIES | SERVERS).items() if not names or any(part in name for part in names)
    }
    weights = sum(weight for _, weight in chosen.values())
    scores = []
    with tempfile.TemporaryDirectory(prefix="duogen-hostile-") as folder, shared(zygote) as forks:
        (common := Path(folder) / "shared").mkdir()
        for name, (family, weight) in chosen.items():
            score, known = Score(name), set()
            for k in [only] if only is not None else range(-(-count * weight // weights)):
                said, digest = one(Path(folder) / "case", common, forks, family, f"{seed} {name}", k, score)
                known.add(digest)
                if said:
                    score.faults.append(f"{name} {k}: {said}".replace(folder, "…"))
                    if keep is not None:
                        shutil.copytree(Path(folder) / "case", keep / f"{name} {k}", symlinks=True, dirs_exist_ok=True)
                remove(Path(folder) / "case")
            score.distinct = len(known)
            scores.append(score)
            show(score)
    return scores


def one(folder: Path, common: Path, zygote: Zygote, family: Family, seed: str, k: int, score: Score) -> tuple[str, str]:
    """What went wrong with case k, and a digest of its input."""
    box = Box(folder, common)
    for each in (box.input, box.out.parent, folder / "tmp", folder / "home"):
        each.mkdir(parents=True)
    with ExitStack() as stack:
        with mutations.deep_values():
            case = family(box, random.Random(f"{seed} {k}"), k, stack)
        before = state(folder)
        digest = hashlib.sha256(
            repr((before, case.command, k if case.hosts != ("127.0.0.1",) else 0)).encode("utf-8", "replace")
        )
        for path in whole.files(box.folder):
            if path.stat().st_size < 1 << 24:
                digest.update(path.read_bytes())
        places = (str(box.out.parent), str(folder / "tmp"), *([str(zygote.cache)] if case.caches else []))
        guard = Guard(places, case.hosts, case.programs)
        environment = {
            "TMPDIR": str(folder / "tmp"),
            "HOME": str(folder / "home"),
            "XDG_CACHE_HOME": str(folder / "home"),
        }
        ended = zygote.run(
            case.command, seconds=SECONDS, cwd=box.out.parent, guard=guard, limits=Limits(memory=4 << 30),
            environment=environment, module=case.module,
        )  # fmt: skip
    score.cases += 1
    score.codes[ended.code] = score.codes.get(ended.code, 0) + 1
    score.slowest, score.largest = max(score.slowest, ended.seconds), max(score.largest, ended.memory)
    found = [wrong_with(ended, case.codes), *(f"outside: {line[:300]}" for line in ended.outside)]
    if "There is no option" in ended.stderr:
        found.append("the case's own command is wrong")
    if ended.memory > MEMORY or "not enough memory" in ended.stderr:
        found.append(f"{ended.memory >> 20} MiB of memory")
    found += [f"changed outside the output: {each[0]}" for each in sorted(state(folder) ^ before)]
    if not found[0]:
        found += whole.broken(box.out.parent) if case.whole else []
        found += [f"live markup in {path.name}: {match[0]}" for path, match in live_markup(box.out.parent)]
        found.append(case.right(ended, box.out))
    return "; ".join(filter(None, found)), digest.hexdigest()


def without_pauses(arguments: list[str]) -> int:
    """The command line; what would wait for seconds before it asks a server again waits for less."""
    from duogen_core import cli
    from duogen_core.data.synthetic.comfyui import Server
    from duogen_core.llm.client import Client, RateLimit

    sleep = time.sleep
    for each in (Client.__init__, RateLimit.__init__, Server.__init__):
        defaults = tuple(short_sleep if value is sleep else value for value in each.__defaults__ or ())
        each.__defaults__ = defaults or None
        for name, value in (each.__kwdefaults__ or {}).items():
            if value is sleep:
                each.__kwdefaults__[name] = short_sleep
    return cli.main(arguments)


def short_sleep(seconds: float) -> None:
    time.sleep(min(seconds, 0.02))


def state(folder: Path) -> set[tuple[str, int, int]]:
    """What lies in the folder besides the output and temporary files: names, sizes, times of change."""
    found = set()
    for top in ("input", "home"):
        for place, folders, names in os.walk(os.fsencode(folder / top)):
            for name in [*folders, *names]:
                status = os.lstat(os.path.join(place, name))
                found.add((os.fsdecode(os.path.join(place, name)), status.st_size, status.st_mtime_ns))
    return found


def live_markup(folder: Path) -> Iterator[tuple[Path, re.Match]]:
    for path in whole.files(folder):
        if path.suffix == ".html" and (match := LIVE.search(path.read_text("utf-8", "replace"))):
            yield path, match


def remove(folder: Path) -> None:
    """Also what has a name or a depth that shutil does not like."""
    shutil.rmtree(os.fsencode(folder), ignore_errors=True)
