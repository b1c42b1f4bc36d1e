"""Two runs at once on one output folder: the second says that the folder is in use, and the first is not disturbed.

Each subject (`subjects.py`) is started twice, the second one at a random moment of the first. What must hold: one of
them ends with 0; the other with 2 and a sentence that says which other run is using the folder (or that the result is
there already, when it came late), or with 0 where it found everything done; the folder holds what that of an
undisturbed run holds; nothing temporary stays; and a third run afterwards finds nothing locked.
"""

from __future__ import annotations

import random
import re
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.hardening import whole
from tests.hardening.sentences import wrong_with
from tests.hardening.subjects import Subject, subjects
from tests.hardening.zygote import Guard, Zygote, shared

IN_USE = re.compile(r"in use by another run of DuoGen \(process \d+")


@dataclass
class Score:
    name: str
    pairs: int = 0
    refused: int = 0  # pairs in which the second said that the folder is in use
    faults: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return vars(self)


def campaign(
    pairs: int, seed: int = 0, names: Sequence[str] = (), zygote: Zygote | None = None, show: Any = lambda _: None
) -> list[Score]:
    """That many pairs for each subject."""
    scores = []
    with (
        tempfile.TemporaryDirectory(prefix="duogen-twice-") as folder,
        shared(zygote) as forks,
        subjects(Path(folder) / "inputs", names) as found,
    ):
        for index, subject in enumerate(found):
            place = Path(folder) / f"{index:02d}"
            (place / "tmp").mkdir(parents=True)
            scores.append(Pairs(subject, forks, place).run(pairs, random.Random(f"{seed} {subject.name}")))
            show(scores[-1])
    return scores


class Pairs:
    def __init__(self, subject: Subject, zygote: Zygote, folder: Path) -> None:
        self.subject, self.zygote, self.folder, self.score = subject, zygote, folder, Score(subject.name)

    def run(self, pairs: int, rng: random.Random) -> Score:
        undisturbed = self.new_out("undisturbed")
        ended = self.start(undisturbed).wait()
        if ended.code != 0:
            self.score.faults.append(f"alone: exit code {ended.code}: {ended.stderr.strip()[-300:]}")
            return self.score
        length = ended.seconds
        for k in range(pairs):
            out = self.new_out(str(k))
            later = rng.random() * 0.7 * length if k else 0.0  # the first pair begins at once
            children = [self.start(out)]
            time.sleep(later)
            children.append(self.start(out))
            ends = [child.wait() for child in children]
            self.score.pairs += 1
            what = f"the second {later / length:.2f} of a run later"
            for ended in ends:
                if said := wrong_with(ended, (0, 2)):
                    self.fault(what, said)
            said = " / ".join(ended.stderr.strip().splitlines()[-1][:200] for ended in ends if ended.code == 2)
            if all(ended.code == 2 for ended in ends):
                self.fault(what, f"both refused: {said}")
            elif any(ended.code == 2 for ended in ends):
                if IN_USE.search(said):
                    self.score.refused += 1
                elif not self.says_done(said):
                    self.fault(what, f"the other was refused with another sentence: {said}")
            elif not all(ended.locks for ended in ends):  # else one had ended its work when the other began
                self.fault(what, "both ran, and one of them looked for no other")
            for line in whole.broken(out.parent):
                self.fault(what, f"not whole: {line}")
            for line in self.subject.differences(undisturbed, out):
                self.fault(what, line)
            for path in whole.left_over(out.parent):
                self.fault(what, f"{path} is left over")
            ended = self.start(out).wait()
            if ended.code != 0 and not self.says_done(ended.stderr):
                self.fault(what, f"a third run afterwards: exit code {ended.code}: {ended.stderr.strip()[-300:]}")
            shutil.rmtree(out.parent)
        return self.score

    def says_done(self, text: str) -> bool:
        return bool(self.subject.refuses) and self.subject.refuses in text

    def start(self, out: Path) -> Any:
        (command,) = self.subject.commands(out)
        guard = Guard((str(out.parent), str(self.folder / "tmp")), programs=True)
        return self.zygote.start(
            command, guard=guard, environment={"TMPDIR": str(self.folder / "tmp")}, **self.subject.options()
        )

    def new_out(self, name: str) -> Path:
        out = self.folder / name / "out"
        out.parent.mkdir()
        self.subject.fresh(out)
        return out

    def fault(self, what: str, text: str) -> None:
        self.score.faults.append(f"{what}: {text}".replace(str(self.folder), "…"))
