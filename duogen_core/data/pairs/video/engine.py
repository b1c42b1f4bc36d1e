"""Videos -> shots -> clips -> first and last frame, with the change between them in words: one video through all rules.

    engine = VideoEngine(preset, paths, connect)
    for judged in engine.clips(file, result): …      every clip with its values, and the rule that refused it

A vision-language model describes the transition (object, action, camera). An answer counts if it fits the schema and
passes `check`; otherwise the client asks again, and in the end raises an AnswerError. Without a model the pairs that
are kept say only how much later the second picture is.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from duogen_core.data.pairs.rules import WHOLE, Step, Verdict, document_of, encoding, judge
from duogen_core.data.pairs.video.reading import Folder, Reading, about, open_inputs
from duogen_core.data.pairs.video.shots import Clip
from duogen_core.data.runs import Engine, Outcome
from duogen_core.data.runs.presets import Preset, digest, preset_of_run
from duogen_core.data.runs.run import Run, Shard
from duogen_core.data.runs.workers import in_threads
from duogen_core.document import Document, Picture
from duogen_core.llm.answers import AnswerError
from duogen_core.llm.client import Client
from duogen_core.llm.messages import load_prompt, messages

PROMPTS = Path(__file__).with_name("prompts")
SIDE = 768  # longer side of what the model is shown
MOST_TOKENS = 700
FIELDS = {"object": 600, "action": 600, "camera": 300, "instruction": 900}  # and the most characters of each
SCHEMA = {
    "type": "object",
    "properties": {name: {"type": "string", "minLength": 3, "maxLength": most} for name, most in FIELDS.items()},
    "required": list(FIELDS),
    "additionalProperties": False,
}
LINK = re.compile(r"https?://|www\.|<[a-z/!|][^>]*>", re.IGNORECASE)
TALK = re.compile(r"\b(?:frames?|clip|video|(?:second|last|first) (?:picture|image))\b", re.IGNORECASE)
FEWEST_WORDS = 4


class Describer:
    def __init__(self, client: Client) -> None:
        self.client = client
        self.prompt = load_prompt(PROMPTS / "describe.txt")

    def identity(self) -> dict[str, Any]:
        """What its answers depend on."""
        return {"model": self.client.endpoint.model, "prompt": digest([self.prompt, SCHEMA, SIDE])}

    def describe(self, first: np.ndarray, last: np.ndarray, seconds: float) -> dict[str, str]:
        prompt = self.prompt.replace("SECONDS", f"{seconds:g}")
        asked = messages(prompt, {}, [_shown(first), _shown(last)])
        answer = self.client.ask(asked, SCHEMA, max_tokens=MOST_TOKENS, check=check)
        return {name: " ".join(answer.value[name].split()) for name in FIELDS}


def check(value: Mapping[str, str]) -> None:
    """Raises an AnswerError, which the model is shown, for what a schema cannot say."""
    for name in FIELDS:
        if LINK.search(value[name]):
            raise AnswerError(f"{name} has a link or a tag in it; describe the pictures in plain words.")
    instruction = value["instruction"]
    if len(instruction.split()) < FEWEST_WORDS:
        raise AnswerError("instruction is too short to draw by; say what moves, what it does and where it ends.")
    if word := TALK.search(instruction):
        raise AnswerError(f"instruction speaks of {word[0]!r}; ask for the new picture as if it did not exist yet.")


def undescribed(seconds: float) -> str:
    """The request of a pair that nobody described: it says only how much later."""
    return load_prompt(PROMPTS / "undescribed.txt").replace("SECONDS", f"{seconds:g}")


def _shown(pixels: np.ndarray) -> np.ndarray:
    if max(pixels.shape[:2]) <= SIDE:
        return pixels
    image = Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.asarray(image)


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
class VideoResult:
    """What became of a video as a whole; filled while its clips are gone through."""

    facts: dict[str, Any] = field(default_factory=dict)
    shots: int = 0
    verdict: Verdict | None = None
    seconds: Counter[str] = field(default_factory=Counter)


class VideoEngine(Engine):
    """Items are [number of the input, name of the video]. parallel: descriptions of one video asked for at once."""

    kind, things = "video", "videos"

    def __init__(
        self,
        preset: Preset,
        paths: Sequence[str] = (),
        connect: Callable[[], Client] | None = None,
        parallel: int = 1,
        uses_gpu: bool = False,
    ) -> None:
        self.preset, self.paths, self.connect, self.parallel, self.uses_gpu = preset, paths, connect, parallel, uses_gpu

    @classmethod
    def of_run(cls, run: Run) -> VideoEngine:
        return cls(preset_of_run("video", run.details["preset"]), run.details["paths"])

    @cached_property
    def inputs(self) -> list[Folder]:
        return open_inputs(self.paths)

    @cached_property
    def describer(self) -> Describer | None:
        return Describer(self.connect()) if self.connect else None

    def clients(self) -> dict[str, Client]:
        return {"describer": self.describer.client} if self.describer else {}

    def identity(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "inputs": [each.identity() for each in self.inputs],
            "preset": self.preset,
            "describer": self.describer.identity() if self.describer else None,
        }

    def details(self) -> dict[str, Any]:
        return {"paths": list(self.paths), "preset": self.preset}

    def items(self) -> Iterator[list[Any]]:
        for number, each in enumerate(self.inputs):
            yield from ([number, name] for name in each.names())

    def encode(self, picture: Picture) -> tuple[bytes, str]:
        return encoding(self.preset["store"])(picture)

    def do(self, item: list[Any]) -> Outcome:
        place, name = item
        file, result, entry = self.inputs[place].root / name, VideoResult(), {}
        origin = about(file)

        def documents() -> Iterator[tuple[str, Document]]:
            clips = []
            for index, judged in enumerate(self.clips(file, result)):
                clips.append(judged.log())
                if judged.verdict is None:
                    yield f"-{index:04d}", self.document(judged, name, origin)
            kept = sum(clip["kept"] for clip in clips)
            verdict = result.verdict or (None if kept else ("no_clip_left", len(clips)))
            refused = {"rule": verdict[0], "value": verdict[1]} if verdict else {}
            if kept:  # what could not be read any more came after them
                refused = {"ended_by": refused} if refused else {}
            facts = {"stage": "videos", "input": place, "video": name, **result.facts}
            entry.update({**facts, "shot_count": result.shots, "kept": kept > 0, **refused, "clips": clips})

        return Outcome(entry, documents(), seconds=result.seconds)

    def look_again(
        self, shard: Shard, wanted: Mapping[int, set[int]]
    ) -> Iterator[tuple[tuple[int, int], Sequence[np.ndarray], str]]:
        """Clips of a finished run once more, for the report: (video, clip), the frames, the Document's key."""
        for number, (place, name) in enumerate(shard.items, shard.first):
            indices = wanted.get(number, set()) - {WHOLE}
            if not indices:
                continue
            for index, judged in enumerate(self.clips(self.inputs[place].root / name, VideoResult())):
                if index in indices and judged.first is not None:
                    yield (number, index), (judged.first, judged.last), f"{number:08d}-{index:04d}"

    def clips(self, file: Path, result: VideoResult) -> Iterator[Judged]:
        """Every clip of the video, in order, as the rules found it."""
        for judged, problem in in_threads(self._described, self._judged(file, result), self.parallel):
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

    def _judged(self, file: Path, result: VideoResult) -> Iterator[Judged]:
        begun = time.perf_counter()
        with Reading(file, self.preset) as reading:
            result.facts, result.verdict, result.shots = reading.facts, reading.verdict, len(reading.shots)
            result.seconds["shots"] += time.perf_counter() - begun
            waiting = iter(reading.clips)
            for clip, first, last, interlaced in self._timed(reading, result):
                yield from _short(waiting, clip)
                judged = Judged(clip, first=first, last=last)
                begun = time.perf_counter()
                judged.values, judged.verdict = judge(first, last, self.preset["pair"])
                if interlaced and not self.preset["clip"]["interlaced"]:
                    judged.verdict = ("interlaced", True)
                result.seconds["rules"] += time.perf_counter() - begun
                yield judged
            yield from _short(waiting, None, reading.verdict)
            result.verdict = result.verdict or reading.verdict

    def _timed(self, reading: Reading, result: VideoResult) -> Iterator[Any]:
        pairs = reading.pairs()
        while True:
            begun = time.perf_counter()
            pair = next(pairs, None)
            result.seconds["frames"] += time.perf_counter() - begun
            if pair is None:
                return
            yield pair

    def document(self, judged: Judged, name: str, origin: dict[str, str]) -> Document:
        clip, words = judged.clip, judged.description or {}
        text = words.get("instruction") or undescribed(clip.seconds)
        meta = {
            "source": "video",
            "video": name,
            **origin,
            "begin": clip.begin,
            "end": clip.end,
            "description": {part: words.get(part, "") for part in ("object", "action", "camera")},
            "preset": digest(self.preset),
            **({"described_by": self.describer.identity()} if words else {}),
        }
        return document_of([Step([judged.first, text], judged.last)], meta)


def _short(waiting: Iterator[Clip], until: Clip | None, verdict: Verdict | None = None) -> Iterator[Judged]:
    """The clips before `until`, none of which came with frames: too short, or the video ended before them."""
    for clip in waiting:
        if clip == until:
            return
        yield Judged(clip, verdict=("short", clip.seconds) if clip.short else verdict)
