"""One video through all rules, and the shards of a run.

    engine = Engine(preset, describer)
    for judged in engine.clips(file, outcome): …      every clip with its values, and the rule that refused it
    do_shard(run, shard, engine, inputs)              the Documents of a shard, and its log

Without a describer the pairs that are kept say only how much later the second picture is.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from duogen_core.data.llm.answers import AnswerError
from duogen_core.data.pairs.rules import Step, Verdict, document_of, encoding, judge
from duogen_core.data.pairs.sharded import Run, Shard
from duogen_core.data.pairs.video.describe import Describer, undescribed
from duogen_core.data.pairs.video.preset import Preset
from duogen_core.data.pairs.video.reading import Folder, Reading, about
from duogen_core.data.pairs.video.shots import Clip
from duogen_core.data.runs.in_order import in_order
from duogen_core.data.runs.presets import digest
from duogen_core.data.runs.shards import new_shard
from duogen_core.document import Document

SHARD_VIDEOS = 4


@dataclass
class Judged:
    """A clip after the rules: verdict is None for a kept one, which has its frames and, if asked for, a description."""

    clip: Clip
    values: dict[str, Any] = field(default_factory=dict)
    verdict: Verdict | None = None
    first: np.ndarray | None = field(default=None, repr=False)
    last: np.ndarray | None = field(default=None, repr=False)
    description: dict[str, str] | None = None

    def log(self) -> dict[str, Any]:
        refused = {"rule": self.verdict[0], "value": self.verdict[1]} if self.verdict else {}
        place = {"shot": self.clip.shot, "begin": self.clip.begin, "end": self.clip.end}
        return {**place, **self.values, "kept": self.verdict is None, **refused}


@dataclass
class Outcome:
    """What became of a video as a whole; filled while its clips are gone through."""

    facts: dict[str, Any] = field(default_factory=dict)
    shots: int = 0
    verdict: Verdict | None = None
    seconds: Counter[str] = field(default_factory=Counter)


class Engine:
    """Threads may share one. parallel: descriptions of one shard that are asked for at the same time."""

    def __init__(self, preset: Preset, describer: Describer | None = None, parallel: int = 1) -> None:
        self.preset, self.describer, self.parallel = preset, describer, parallel

    def clips(self, file: Path, outcome: Outcome) -> Iterator[Judged]:
        """Every clip of the video, in order, as the rules found it."""
        for judged, problem in in_order(self._described, self._judged(file, outcome), self.parallel):
            if problem is not None:
                judged.verdict = ("undescribed", problem)
            yield judged

    def _described(self, judged: Judged) -> str | None:
        """Puts the description in; what is wrong with it if there is none to be had."""
        if self.describer is None or judged.verdict is not None:
            return None
        try:
            judged.description = self.describer.describe(judged.first, judged.last, judged.clip.seconds)
        except AnswerError as error:
            return str(error)[:300]
        return None

    def _judged(self, file: Path, outcome: Outcome) -> Iterator[Judged]:
        begun = time.perf_counter()
        with Reading(file, self.preset) as reading:
            outcome.facts, outcome.verdict, outcome.shots = reading.facts, reading.verdict, len(reading.shots)
            outcome.seconds["shots"] += time.perf_counter() - begun
            waiting = iter(reading.clips)
            for clip, first, last, interlaced in self._timed(reading, outcome):
                yield from _short(waiting, clip)
                judged = Judged(clip, first=first, last=last)
                begun = time.perf_counter()
                judged.values, judged.verdict = judge(first, last, self.preset["pair"])
                if interlaced and not self.preset["clip"]["interlaced"]:
                    judged.verdict = ("interlaced", True)
                outcome.seconds["rules"] += time.perf_counter() - begun
                yield judged
            yield from _short(waiting, None, reading.verdict)
            outcome.verdict = outcome.verdict or reading.verdict

    def _timed(self, reading: Reading, outcome: Outcome) -> Iterator[Any]:
        pairs = reading.pairs()
        while True:
            begun = time.perf_counter()
            pair = next(pairs, None)
            outcome.seconds["frames"] += time.perf_counter() - begun
            if pair is None:
                return
            yield pair


def _short(waiting: Iterator[Clip], until: Clip | None, verdict: Verdict | None = None) -> Iterator[Judged]:
    """The clips before `until`, none of which came with frames: too short, or the video ended before them."""
    for clip in waiting:
        if clip == until:
            return
        yield Judged(clip, verdict=("short", clip.seconds) if clip.short else verdict)


def do_shard(
    run: Run,
    shard: Shard,
    engine: Engine,
    inputs: Sequence[Folder],
    tell: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Writes the shard's files; what it found, in figures. tell(pairs) is called after every video."""
    found, encode = Counter(videos=len(shard.items)), encoding(engine.preset["store"])
    with new_shard(run, shard.number, "items") as new:
        for number, (place, name) in enumerate(shard.items, shard.first):
            outcome, entries = Outcome(), []
            file = inputs[place].root / name
            origin = about(file)
            for index, judged in enumerate(engine.clips(file, outcome)):
                entries.append(judged.log())
                if judged.verdict is None:
                    begun = time.perf_counter()
                    new.add(f"{number:08d}-{index:04d}", document_from(judged, name, origin, engine), encode)
                    outcome.seconds["write"] += time.perf_counter() - begun
            kept = sum(entry["kept"] for entry in entries)
            verdict = outcome.verdict or (None if kept else ("no_clip_left", len(entries)))
            refused = {"rule": verdict[0], "value": verdict[1]} if verdict else {}
            if kept:  # what could not be read any more came after them
                refused = {"ended_by": refused} if refused else {}
            facts = {"number": number, "stage": "videos", "input": place, "video": name, **outcome.facts}
            new.log({**facts, "shot_count": outcome.shots, "kept": kept > 0, **refused, "clips": entries})
            found.update(clips=len(entries), kept=kept, seconds=outcome.facts.get("seconds", 0))
            new.seconds.update(outcome.seconds)
            tell(kept)
    return dict(found)


def document_from(judged: Judged, name: str, origin: dict[str, str], engine: Engine) -> Document:
    clip, words = judged.clip, judged.description or {}
    text = words.get("instruction") or undescribed(clip.seconds)
    meta = {
        "source": "video",
        "video": name,
        **origin,
        "begin": clip.begin,
        "end": clip.end,
        "description": {part: words.get(part, "") for part in ("object", "action", "camera")},
        "preset": digest(engine.preset),
        **({"described_by": engine.describer.identity()} if words else {}),
    }
    return document_of([Step([judged.first, text], judged.last)], meta)
