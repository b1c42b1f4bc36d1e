"""A full disk, and no memory, in the middle of every writer.

Each subject (`subjects.py`) runs undisturbed first: how much it writes. Then its disk gets a random part of that:

- a tmpfs of that size, where one can be mounted: a real full disk, for every library that writes;
- everywhere: Python's own files raise ENOSPC after so many bytes (`faults.py`).

And its memory gets a random part of what it needs (RLIMIT_AS, above what the imports take).

What must hold: exit code 2 and one sentence, or the undisturbed end where the room was enough; no traceback; files with
final names are whole, what was finished stays; with room again, the same command comes to the same end.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.hardening import whole
from tests.hardening.sentences import wrong_with
from tests.hardening.subjects import Subject, subjects
from tests.hardening.zygote import Ended, Guard, Limits, Zygote, shared

PAGE = 4096
KINDS = ("tmpfs", "files", "memory")


@dataclass
class Score:
    name: str
    runs: dict[str, int] = field(default_factory=dict)  # kind of shortage: runs that had too little
    enough: int = 0  # runs that came to their end all the same
    faults: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return vars(self)


def can_mount() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True)
        if done.returncode == 0:
            subprocess.run(["umount", folder], check=True)
    return done.returncode == 0


def campaign(
    runs: int, seed: int = 0, names: Sequence[str] = (), kinds: Sequence[str] = KINDS, zygote: Zygote | None = None,
    show: Any = lambda _: None,
) -> list[Score]:  # fmt: skip
    """That many runs of each kind for each subject."""
    kinds = [kind for kind in kinds if kind != "tmpfs" or (shutil.which("mount") and can_mount())]
    scores = []
    with (
        tempfile.TemporaryDirectory(prefix="duogen-disk-") as folder,
        shared(zygote) as forks,
        subjects(Path(folder) / "inputs", names, momentary=True) as found,
    ):
        for index, subject in enumerate(found):
            rng = random.Random(f"{seed} {subject.name}")
            scores.append(Starving(subject, forks, Path(folder) / f"{index:02d}").run(runs, rng, kinds))
            show(scores[-1])
    return scores


class Starving:
    def __init__(self, subject: Subject, zygote: Zygote, folder: Path) -> None:
        self.subject, self.zygote, self.folder = subject, zygote, folder
        self.score, self.temporary = Score(subject.name), folder / "tmp"
        self.temporary.mkdir(parents=True)

    def run(self, runs: int, rng: random.Random, kinds: Sequence[str]) -> Score:
        self.undisturbed = self.new_out(self.folder / "undisturbed")
        used = 0
        for command in self.subject.commands(self.undisturbed):
            ended = self.start(command, self.undisturbed, Limits())
            used = max(used, ended.memory)
            if ended.code != 0:
                self.fault("the undisturbed run", f"exit code {ended.code}: {ended.stderr[-300:]}")
                return self.score
        size = sum(-(-path.stat().st_size // PAGE) * PAGE for path in whole.files(self.undisturbed.parent))
        for kind in kinds:
            for k in range(runs):
                part = (k + rng.random()) / runs
                place = self.folder / f"{kind}-{k}"
                place.mkdir()
                if kind == "memory":
                    self.attempt(
                        place, f"with {part:.2f} of its memory", Limits(memory=int(part * (used + 2**26))), kind
                    )
                elif kind == "files":
                    fault = {"bytes": int(part * size), "below": str(place)}
                    self.attempt(place, f"with room for {part:.2f} of its bytes", Limits(fault=fault), kind)
                else:
                    self.on_a_tmpfs(place, part, size)
                shutil.rmtree(place, ignore_errors=True)
        return self.score

    def on_a_tmpfs(self, place: Path, part: float, size: int) -> None:
        before = self.new_out(place / "before")  # what stands there already has room in any case
        taken = sum(-(-path.stat().st_size // PAGE) * PAGE for path in whole.files(before)) + 16 * PAGE
        shutil.rmtree(place / "before")
        room = max(1, int(taken + part * size) // PAGE) * PAGE
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", place], check=True)
        try:
            more = ["mount", "-o", "remount,size=2g", place]
            self.attempt(place, f"on a disk of {part:.2f} of its size", Limits(), "tmpfs", lambda: subprocess.run(more))
        finally:
            subprocess.run(["umount", "-l", place], check=True)

    def attempt(self, place: Path, what: str, limits: Limits, kind: str, give_room: Any = lambda: None) -> None:
        out = self.new_out(place)
        finished: dict[Path, bytes] = {}
        for command in self.subject.commands(out):
            ended = self.start(command, out, limits)
            if ended.code != 0:
                break
        if ended.code == 0:
            self.score.enough += 1
        else:
            self.score.runs[kind] = self.score.runs.get(kind, 0) + 1
            if said := wrong_with(ended, (2,)):
                self.fault(what, said)
        for line in ended.outside:
            self.fault(what, f"outside the output: {line}")
        for line in whole.broken(out.parent):
            self.fault(what, f"half written under a final name: {line}")
        if said := self.subject.lost(out, ended.renames):
            self.fault(what, said)
        finished = {path: path.read_bytes() for pattern in self.subject.finished for path in out.glob(pattern)}
        give_room()
        for command in self.subject.commands(out):
            ended = self.start(command, out, Limits())
            if ended.code != 0 and not (self.subject.refuses and self.subject.refuses in ended.stderr):
                self.fault(what, f"given again with room: exit code {ended.code}: {ended.stderr.strip()[-300:]}")
                return
        for path, data in finished.items():
            if not path.exists() or path.read_bytes() != data:
                self.fault(what, f"given again: {path.relative_to(out)} was finished, and is another file at the end")
        for line in self.subject.differences(self.undisturbed, out):
            self.fault(what, f"given again with room: {line}")
        for path in whole.left_over(out.parent):
            self.fault(what, f"given again with room: {path} is left over")

    def start(self, command: Sequence[object], out: Path, limits: Limits) -> Ended:
        guard = Guard((str(out.parent), str(self.temporary)), programs=True)
        return self.zygote.run(
            command, guard=guard, limits=limits, environment={"TMPDIR": str(self.temporary)}, **self.subject.options()
        )

    def new_out(self, place: Path) -> Path:
        place.mkdir(exist_ok=True)
        out = place / "out"
        self.subject.fresh(out)
        return out

    def fault(self, what: str, text: str) -> None:
        self.score.faults.append(f"{what}: {text}".replace(str(self.folder), "…"))
