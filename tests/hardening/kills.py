"""kill -9 at random moments: is anything finished lost, and does the same command come to the same end?

First each subject (`subjects.py`) runs undisturbed, which gives its length and its result. Then it is killed, again and
again, each time in a new folder: the moments are spread over the whole length, one at random in each of as many equal
parts as there are kills. Half of the kills hit its workers too; a third of the runs are killed once more when they go
on. What must hold:

- right after the kill: every file with a final name is whole; pictures, steps and shards that were finished can be
  read; no worker is left behind;
- then the same command, given again, ends with 0, leaves files that were finished as they are and nothing temporary,
  and its folder holds what that of the undisturbed run holds.

ComfyUI, which cannot be forked, is `comfyui_kills.py`.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.hardening import whole
from tests.hardening.subjects import Subject, subjects
from tests.hardening.zygote import Ended, Guard, Zygote, shared

GONE = 15.0  # seconds that workers have to notice that they were left alone


@dataclass
class Score:
    """What became of one subject."""

    name: str
    length: float = 0.0  # seconds of the undisturbed run
    moments: list[float] = field(default_factory=list)  # of the kills, as shares of the length
    late: int = 0  # runs that had ended before their kill
    finished: int = 0  # files that were finished when a kill came, and had to survive
    faults: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {
            **{"name": self.name, "seconds": round(self.length, 2), "kills": len(self.moments)},
            **{"late": self.late, "finished_files": self.finished, "faults": self.faults},
            "moments": [round(each, 3) for each in sorted(self.moments)],
        }


def campaign(
    kills: int, seed: int = 0, names: Sequence[str] = (), zygote: Zygote | None = None, show: Any = lambda _: None
) -> list[Score]:
    """That many kills in all, shared among the subjects."""
    scores = []
    with (
        tempfile.TemporaryDirectory(prefix="duogen-kills-") as folder,
        shared(zygote) as forks,
        subjects(Path(folder) / "inputs", names) as found,
    ):
        shares = sum(subject.share for subject in found)
        given = 0
        for index, subject in enumerate(found):
            here = round(kills * sum(each.share for each in found[: index + 1]) / shares) - given
            given += here
            if here:
                rng = random.Random(f"{seed} {subject.name}")
                scores.append(Killing(subject, forks, Path(folder) / f"{index:02d}").run(here, rng))
                show(scores[-1])
    return scores


class Killing:
    """The kills of one subject."""

    def __init__(self, subject: Subject, zygote: Zygote, folder: Path) -> None:
        self.subject, self.zygote, self.folder = subject, zygote, folder
        self.score = Score(subject.name)
        self.temporary = folder / "tmp"
        self.temporary.mkdir(parents=True)

    def run(self, kills: int, rng: random.Random) -> Score:
        for name in ("first", "undisturbed"):  # the first run of a program is slower than the later ones
            self.undisturbed = self.new_out(name)
            started = time.monotonic()
            if not self.ends_well(self.undisturbed, "the undisturbed run"):
                return self.score
            self.score.length = time.monotonic() - started
        places = [(k + rng.random()) / kills for k in range(kills)]
        rng.shuffle(places)
        while len(self.score.moments) < kills:
            if self.score.late > 2 * kills + 10:
                self.fault("nearly all runs ended before their kill; the length was measured wrongly")
                break
            # A run that was quicker than the measured one ended before its kill: another moment takes its place.
            place = places[len(self.score.moments)] if self.score.late < kills else rng.random() * 0.8
            self.attempt(place, rng, again=len(self.score.moments) + 1 < kills and rng.random() < 1 / 3)
        return self.score

    def attempt(self, place: float, rng: random.Random, again: bool) -> None:
        out = self.new_out(f"{len(self.score.moments)}-{self.score.late}")
        before, renames = len(self.score.moments), []
        for moment in (place, rng.random() * (1 - place)) if again else (place,):
            ended, group = self.killed_at(out, moment, rng.random() < 0.5)
            if ended.code != -9:
                self.score.late += 1
                break
            self.score.moments.append(moment)
            renames += ended.renames
            where = f"killed at {moment:.3f} of the run{' with its workers' if group else ''}"
            for line in whole.broken(out.parent):
                self.fault(f"{where}: half written under a final name: {line}")
            if said := self.subject.lost(out, renames):
                self.fault(f"{where}: {said}")
            for line in ended.outside:
                self.fault(f"{where}: outside the output: {line}")
        if len(self.score.moments) == before:
            return
        finished = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in self.finished_files(out)}
        self.score.finished += len(finished)
        if not self.ends_well(out, f"{where}, then given again"):
            return
        for path, (written, data) in finished.items():
            if not path.exists() or path.read_bytes() != data:
                self.fault(f"{where}: {path.relative_to(out)} was finished, and is another file at the end")
            elif not self.subject.name.startswith("generate") and path.stat().st_mtime_ns != written:
                self.fault(f"{where}: {path.relative_to(out)} was finished, and was made once more")
        for path in whole.left_over(out.parent):
            self.fault(f"{where}, then given again: {path} is left over")
        for line in self.subject.differences(self.undisturbed, out):
            self.fault(f"{where}, then given again: {line}")
        shutil.rmtree(out.parent)

    def killed_at(self, out: Path, moment: float, group: bool) -> tuple[Ended, bool]:
        due = time.monotonic() + moment * self.score.length
        for command in self.subject.commands(out):
            child = self.start(command, out)
            time.sleep(max(0.0, due - time.monotonic()))
            child.kill(group)
            ended = child.wait()
            until = time.monotonic() + GONE
            while child.members() and time.monotonic() < until:
                time.sleep(0.02)
            if left := child.members():
                self.fault(f"{len(left)} workers still run {GONE:.0f} s after the command was killed at {moment:.3f}")
                child.kill(group=True)
                time.sleep(0.2)
        return ended, group

    def ends_well(self, out: Path, what: str) -> bool:
        for command in self.subject.commands(out):
            child = self.start(command, out)
            ended = child.wait()
            child.kill(group=True)
            if ended.code == 2 and self.subject.refuses and self.subject.refuses in ended.stderr:
                continue  # it had come to its end, short of saying so; the folder is compared all the same
            if ended.code != 0 or "Traceback" in ended.stderr:
                last = ended.stderr.strip().splitlines()[-1:] or [""]
                self.fault(f"{what}: exit code {ended.code}{' after too long' if ended.timed_out else ''}: {last[0]}")
                return False
        return True

    def start(self, command: Sequence[object], out: Path) -> Any:
        guard = Guard((str(out.parent), str(self.temporary)), programs=True)
        return self.zygote.start(
            command, guard=guard, environment={"TMPDIR": str(self.temporary)}, **self.subject.options()
        )

    def new_out(self, name: str) -> Path:
        out = self.folder / name / "out"
        out.parent.mkdir()
        self.subject.fresh(out)
        return out

    def finished_files(self, out: Path) -> list[Path]:
        found = [path for pattern in self.subject.finished for path in sorted(out.glob(pattern))]
        # A shard is finished when its log has its name too: a kill between the two renames lets it be done again.
        return [
            path
            for path in found
            if path.suffix != ".tar" or path.parents[1].joinpath("logs", f"{path.stem}.jsonl") in found
        ]

    def fault(self, text: str) -> None:
        self.score.faults.append(text.replace(str(self.folder), "…"))
