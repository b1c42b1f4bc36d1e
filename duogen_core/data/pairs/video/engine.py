"""The video engine's preset: every threshold under the name of its rule. presets/clips.yaml holds them all.

The transition from a clip's first frame to its last, in words by a vision-language model: object, action, camera.

    Describer(client).describe(first, last, seconds) -> {"object", "action", "camera", "instruction"}

An answer counts if it fits the schema and passes `check`; otherwise it is asked for again by the client, and in the end
an AnswerError is raised.

One video through all rules, and the shards of a run.

    engine = Engine(preset, describer)
    for judged in engine.clips(file, outcome): …      every clip with its values, and the rule that refused it
    do_shard(run, shard, engine, inputs)              the Documents of a shard, and its log

Without a describer the pairs that are kept say only how much later the second picture is.

Clips of a finished run to look at again, for the report: the same frames, and the words of the stored Documents.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from duogen_core.data.llm.answers import AnswerError
from duogen_core.data.llm.client import Client
from duogen_core.data.llm.messages import load_prompt, messages
from duogen_core.data.pairs.rules import Step, Verdict, document_of, encoding, judge
from duogen_core.data.pairs.sharded import WHOLE, Run, Shard, words_of
from duogen_core.data.pairs.video.reading import Folder, Reading, about, open_inputs
from duogen_core.data.pairs.video.shots import Clip
from duogen_core.data.runs.in_order import in_order
from duogen_core.data.runs.presets import Preset, digest, preset_values
from duogen_core.data.runs.shards import new_shard
from duogen_core.document import Document
from duogen_core.errors import DuoGenError

FOLDER = Path(__file__).with_name("presets")
DEFAULT = "clips"


def load_preset(name: str = DEFAULT, settings: Sequence[str] = ()) -> Preset:
    """A named preset or a YAML file, with settings such as clip.seconds=3 on top."""
    values = preset_values(FOLDER, DEFAULT, name, settings)
    clip, store = values["clip"], values["store"]
    if not 0 < clip["min_seconds"] <= clip["seconds"] <= 600:
        raise DuoGenError(
            f"clip.seconds is {clip['seconds']} and clip.min_seconds {clip['min_seconds']}; expected more than 0, the "
            "second at most the first, and at most 600."
        )
    if store["format"] not in ("jpeg", "png"):
        raise DuoGenError(f"store.format is {store['format']!r}; expected jpeg or png.")
    return values


# ------------------------------------------------------------ describe

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


# ------------------------------------------------------------ engine

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


# ------------------------------------------------------------ showing


class Showing:
    def __init__(self, run: Run) -> None:
        self.run, self.inputs = run, open_inputs(run.details["paths"])
        self.engine = Engine(run.details["preset"])

    def __call__(
        self, shard: Shard, wanted: Mapping[int, set[int]]
    ) -> Iterator[tuple[tuple[int, int], Sequence[np.ndarray], str]]:
        for number, (place, name) in enumerate(shard.items, shard.first):
            indices = wanted.get(number, set()) - {WHOLE}
            if not indices:
                continue
            for index, judged in enumerate(self.engine.clips(self.inputs[place].root / name, Outcome())):
                if index in indices and judged.first is not None:
                    words = words_of(self.run, shard.number, f"{number:08d}-{index:04d}")
                    yield (number, index), (judged.first, judged.last), words
