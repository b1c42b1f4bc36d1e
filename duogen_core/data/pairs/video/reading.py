"""A video file -> what it is, its shots and clips, and the first and last frame of each clip, read in a child process.

    inputs = open_inputs(paths)             files and folders; nothing is fetched
    with Reading(file, preset) as reading:
        reading.verdict or reading.facts, reading.shots, reading.clips
        for clip, first, last in reading.pairs(): …

The kind is known by the first bytes. The child (`child`) can open no file, and has limits on memory and processor time.
Nothing it says is believed: a message of another form ends the video as crashed. Only pixels come back: names, places
and everything else in the file stay behind. Beside a video may lie NAME.json (as video downloaders write it): its
address, title, licence and time are kept.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from duogen_core.data.pairs.rules import Verdict
from duogen_core.data.pairs.video.shots import Clip, Shot
from duogen_core.data.runs.folder import names_below
from duogen_core.data.runs.presets import Preset
from duogen_core.data.sources.base import digest
from duogen_core.errors import DuoGenError, MissingPackage

ENDINGS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ogv", ".flv", ".ts", ".mpg", ".mpeg")
SIDECAR_BYTES = 4_000_000
SIDECAR = {
    "url": ("webpage_url", "url"),
    "title": ("title",),
    "licence": ("license", "licence"),
    "time": ("timestamp",),
}
LONGEST = 500  # characters of a value


@dataclass(frozen=True)
class Folder:
    """One input: a folder, and what is wanted of it (nothing: all videos at any depth)."""

    root: Path
    only: tuple[str, ...] = ()

    def names(self) -> Iterator[str]:
        yield from self.only or names_below(self.root, ENDINGS)

    def identity(self) -> dict[str, Any]:
        return {"path": str(self.root), "digest": digest((n, (self.root / n).stat().st_size) for n in self.names())}


def open_inputs(paths: Sequence[str]) -> list[Folder]:
    found = []
    for given in paths:
        path = Path(given)
        if path.is_file():
            found.append(Folder(path.parent, (path.name,)))
        elif path.is_dir():
            if next(names_below(path, ENDINGS), None) is None:
                raise DuoGenError(f"The folder {given} has no video; expected files such as .mp4, .mkv, .webm or .avi.")
            found.append(Folder(path))
        else:
            raise DuoGenError(f"{given} does not exist; give video files or folders of them.")
    return found


def container_of(head: bytes) -> str | None:
    """The container by the first bytes, as FFmpeg calls it. Playlists, which name other files, are none of these."""
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return "mov"
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    if head[:4] == b"OggS":
        return "ogg"
    if head[:3] == b"FLV":
        return "flv"
    if head[:4] == b"\x00\x00\x01\xba":
        return "mpeg"
    if len(head) > 376 and head[0] == head[188] == head[376] == 0x47:
        return "mpegts"
    return None


def about(file: Path) -> dict[str, str]:
    """What NAME.json beside the video says of where it is from; {} if there is none that can be read."""
    try:
        with file.with_suffix(".json").open("rb") as stream:
            data = stream.read(SIDECAR_BYTES + 1)
        value = json.loads(data) if len(data) <= SIDECAR_BYTES else None
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(value, dict):
        return {}
    found = {name: next((value[key] for key in keys if key in value), None) for name, keys in SIDECAR.items()}
    return {name: str(each)[:LONGEST] for name, each in found.items() if isinstance(each, (str, int, float))}


# ------------------------------------------------------------ reading

CHILD = Path(__file__).with_name("child.py")
ROOT = Path(__file__).parents[4]
HEAD = 512
MOST_LINE = 2**24  # characters of a message; the list of a long video's clips is one
FACTS = {"codec": str, "width": int, "height": int, "rate": float, "frames": int, "seconds": float}
RULES = (
    "too_many_pixels", "small", "too_long", "hdr", "broken", "no_frames", "no_video", "unknown_codec",
    "too_much_memory", "too_slow", "crashed",
)  # fmt: skip
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def check_installed() -> None:
    if find_spec("av") is None:
        raise MissingPackage("Reading videos", "PyAV", "video")


class Reading:
    def __init__(self, file: Path, preset: Preset) -> None:
        self.file, self.preset, self.side = file, preset, preset["store"]["side"]
        self.facts: dict[str, Any] = {}
        self.verdict: Verdict | None = None
        self.shots: list[Shot] = []
        self.clips: list[Clip] = []
        self.child: subprocess.Popen | None = None

    def __enter__(self) -> Reading:
        try:
            with self.file.open("rb") as stream:
                self._start(stream)
        except OSError as error:
            self.verdict = ("unreadable", error.strerror or str(error))
        return self

    def __exit__(self, *_: object) -> None:
        child, self.child = self.child, None
        if child is not None:
            with contextlib.suppress(OSError):
                child.kill()
            child.stdout.close()
            child.wait()

    def _start(self, stream: Any) -> None:
        load, size = self.preset["load"], os.fstat(stream.fileno()).st_size
        if size > load["max_bytes"]:
            self.verdict = ("too_many_bytes", size)
            return
        container = container_of(stream.read(HEAD))
        if container is None:
            self.verdict = ("unknown_format", self.file.suffix.lower()[:10])
            return
        self.child = subprocess.Popen(
            [sys.executable, "-I", str(CHILD), str(ROOT), container, json.dumps(self.preset)],
            stdin=stream,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **dict.fromkeys(THREADS, "1")},
            start_new_session=os.name == "posix",  # Ctrl-C is the engine's to take
        )
        message, _ = self._message()
        if "rule" in message:
            self.verdict = _verdict(message)
        try:
            facts = message.get("facts", {})
            self.facts = {name: kind(facts[name]) for name, kind in FACTS.items() if name in facts}
            if self.verdict is None:
                self.shots = [Shot(int(first), int(stop), float(value)) for first, stop, value, _ in message["shots"]]
                self.clips = [_clip(entry) for entry in message["clips"]]
        except (KeyError, TypeError, ValueError, OverflowError):
            self.facts, self.verdict = {}, self.verdict or ("crashed", "message")

    def pairs(self) -> Iterator[tuple[Clip, np.ndarray, np.ndarray, bool]]:
        """Every clip that is long enough, its two frames, and whether they are interlaced, in order.

        Ends early, with a verdict, if the child did.
        """
        for clip in self.clips:
            if clip.short:
                continue
            frames = []
            for wanted in (clip.first, clip.last):
                message, raw = self._message()
                shape = message.get("shape")
                if "rule" in message or message.get("frame") != wanted or not self._fits(shape, raw):
                    self.verdict = _verdict(message)
                    return
                pixels = np.frombuffer(raw, np.uint8).reshape(shape)
                frames.append((pixels, bool(message.get("interlaced"))))
            yield clip, frames[0][0], frames[1][0], frames[0][1] or frames[1][1]

    def _fits(self, shape: Any, raw: bytes) -> bool:
        whole = isinstance(shape, list) and len(shape) == 3 and all(type(side) is int for side in shape)
        return whole and shape[2] == 3 and min(shape) >= 1 and shape[0] * shape[1] * 3 == len(raw)

    def _message(self) -> tuple[dict[str, Any], bytes]:
        """The child's next message; one with a rule when there is none, because its limits or the video ended it."""
        late = threading.Event()

        def end() -> None:
            late.set()
            self.child.kill()

        clock = threading.Timer(self.preset["load"]["max_seconds"] * 4 + 10, end)  # a child that only waits
        clock.daemon = True
        clock.start()
        try:
            line = self.child.stdout.readline(MOST_LINE)
            message = json.loads(line) if line else {}
            count = message.get("bytes", -1)
            if type(count) is int and 0 <= count <= self.side * self.side * 3:
                raw = self.child.stdout.read(count)
                if len(raw) == count:
                    return message, raw
        except (OSError, ValueError, AttributeError, RecursionError):
            pass
        finally:
            clock.cancel()
        self.child.kill()
        code = -self.child.wait()
        slow = late.is_set() or (os.name == "posix" and code == signal.SIGXCPU)
        rule, value = ("too_slow", self.preset["load"]["max_seconds"]) if slow else ("crashed", code)
        return {"rule": rule, "value": value}, b""


def _verdict(message: dict[str, Any]) -> Verdict:
    rule, value = message.get("rule"), message.get("value")
    plain = value if value is None or isinstance(value, (int, float)) else str(value)[:100]
    return (rule, plain) if isinstance(rule, str) and rule in RULES else ("crashed", "message")


def _clip(entry: dict[str, Any]) -> Clip:
    whole = (int(entry[name]) for name in ("shot", "first", "last"))
    return Clip(*whole, float(entry["begin"]), float(entry["end"]), bool(entry["short"]))
