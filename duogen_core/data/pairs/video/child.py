"""The process that reads one video, and nothing else. Run by `reading`, never imported by the engine.

Its stdin is the video file; arguments: the package's root, the container's name, and the preset as JSON. It limits its
memory, its processor time, and the files and sockets it may open (none: a file that names another one, as playlists do,
leads nowhere), then decodes twice: first small copies of all frames, to find shots and clips, then the frames of the
pairs. Messages on stdout: a JSON line, with `bytes` of raw RGB behind it.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import pkgutil
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

sys.path.insert(0, sys.argv[1])

import av
import numpy as np

from duogen_core.data.pairs.video.shots import HEIGHT, WIDTH, clips_of, shots
from duogen_core.data.runs import Refused

CONTAINER, PRESET = sys.argv[2:4]
HIGH_RANGE = (16, 18)  # transfer curves: PQ and HLG, which need tone mapping to be seen as meant
BT709, HD_HEIGHT = 1, 720  # the colour matrix of HD videos that do not say which
NO_MATRIX = (0, 2, None)


def warm_up(preset: dict) -> None:
    """Loads all modules of PyAV and reads a video made here: later the limits allow no file to be opened."""
    for module in pkgutil.walk_packages(av.__path__, "av."):
        if not module.name.endswith(("__main__", ".datasets")):
            importlib.import_module(module.name)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 32
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        container.mux([*stream.encode(frame), *stream.encode()])
    buffer.seek(0)
    with av.open(buffer, format="avi") as container:
        for frame in container.decode(video=0):
            frame.reformat(16, 16, "rgb24", interpolation="AREA").to_ndarray()
    times = np.arange(200) / 25
    small = np.linspace(0, 255, 200 * HEIGHT * WIDTH * 3).astype(np.uint8).reshape(200, HEIGHT, WIDTH, 3)
    clips_of(shots(small, times, preset["shot"]), times, preset["clip"])


def limit(load: dict) -> None:
    try:
        import resource
    except ImportError:  # Windows: the engine's own clock is what limits then
        return
    seconds = int(time.process_time() + load["max_seconds"]) + 1
    limits = (
        ("RLIMIT_AS", load["max_memory_mb"] * 2**20),
        ("RLIMIT_FSIZE", 0),
        ("RLIMIT_NOFILE", 3),
        ("RLIMIT_CORE", 0),
    )
    for name, value in (*limits, ("RLIMIT_CPU", seconds)):
        try:
            resource.setrlimit(getattr(resource, name), (value, value))
        except (AttributeError, ValueError, OSError):
            continue


def leave_with(parent: int) -> None:
    """Ends this process when the one that started it is gone, killed or not."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def say(message: dict, pixels: np.ndarray | None = None) -> None:
    raw = b"" if pixels is None else pixels.tobytes()
    sys.stdout.buffer.write(json.dumps({**message, "bytes": len(raw)}).encode() + b"\n" + raw)
    sys.stdout.buffer.flush()


class Video:
    def __init__(self, preset: dict) -> None:
        self.preset = preset
        self.damaged = self.packets = 0

    def facts(self) -> dict[str, Any]:
        with self._open(capped=False) as container:  # where the cap holds, the size is not told
            stream = self._stream(container)
            context, load = stream.codec_context, self.preset["load"]
            width, height = context.width, context.height
            rate = float(stream.average_rate or 0)
            length = stream.duration * stream.time_base if stream.duration else (container.duration or 0) / av.time_base
            facts = {"codec": context.name, "width": width, "height": height, "rate": round(rate, 3)}
            if not width * height:
                raise Refused("broken", "no size")
            if width * height > load["max_pixels"]:
                raise Refused("too_many_pixels", width * height)
            if min(width, height) < self.preset["clip"]["min_side"]:
                raise Refused("small", min(width, height))
            if length > load["max_minutes"] * 60:
                raise Refused("too_long", round(float(length), 1))
            if getattr(context, "color_trc", None) in HIGH_RANGE:
                raise Refused("hdr", int(context.color_trc))
            return facts

    def look(self) -> tuple[np.ndarray, np.ndarray]:
        """Small copies of all frames and their times."""
        load, small, times = self.preset["load"], bytearray(), []
        for frame in self._frames():
            step = times[-1] - times[-2] if len(times) > 1 else 0.04
            when = frame.time if frame.time is not None else (times[-1] + step if times else 0.0)
            times.append(max(float(when), times[-1]) if times else float(when))
            small += frame.reformat(WIDTH, HEIGHT, "rgb24", interpolation="AREA").to_ndarray().tobytes()
            if len(times) > load["max_frames"] or times[-1] - times[0] > load["max_minutes"] * 60:
                raise Refused("too_long", round(times[-1] - times[0], 1))
        if self.damaged > load["max_damaged"] * max(self.packets, 1):
            raise Refused("broken", round(self.damaged / self.packets, 3))
        if len(times) < 2:
            raise Refused("no_frames", len(times))
        return np.frombuffer(bytes(small), np.uint8).reshape(-1, HEIGHT, WIDTH, 3), np.array(times) - times[0]

    def send(self, wanted: set[int]) -> None:
        left = len(wanted)
        for index, frame in enumerate(self._frames()):
            if index in wanted:
                pixels = self._pixels(frame)
                say({"frame": index, "shape": list(pixels.shape), "interlaced": bool(frame.interlaced_frame)}, pixels)
                left -= 1
                if not left:
                    return

    def _pixels(self, frame: Any) -> np.ndarray:
        """As it is to be shown: square pixels, upright, and no larger than what is stored."""
        ratio = frame.sample_aspect_ratio if hasattr(frame, "sample_aspect_ratio") else None
        ratio = float(ratio or self.ratio or 1)
        width, height = frame.width * max(ratio, 1.0), frame.height / min(ratio, 1.0)
        scale = min(self.preset["store"]["side"] / max(width, height), 1.0)
        width, height = max(round(width * scale), 1), max(round(height * scale), 1)
        matrix = BT709 if frame.colorspace in NO_MATRIX and frame.height >= HD_HEIGHT else None
        way = "LANCZOS" if (width, height) != (frame.width, frame.height) else "BILINEAR"
        pixels = frame.reformat(width, height, "rgb24", src_colorspace=matrix, interpolation=way).to_ndarray()
        return np.ascontiguousarray(np.rot90(pixels, round((getattr(frame, "rotation", 0) or 0) / 90)))

    def _frames(self) -> Iterator[Any]:
        """All frames that are whole, in the order they are shown; the same ones every time."""
        self.damaged = self.packets = 0
        with self._open() as container:
            stream = self._stream(container)
            packets = container.demux(stream)
            while True:
                try:
                    packet = next(packets)
                except (StopIteration, av.error.EOFError):
                    return
                except av.error.FFmpegError:  # what follows cannot be found any more
                    self.damaged += 1
                    return
                self.packets += 1
                try:
                    frames = packet.decode()
                except av.error.EOFError:
                    return
                except av.error.FFmpegError as error:
                    if isinstance(error, MemoryError) or error.errno == 12:
                        raise MemoryError from None
                    self.damaged += 1
                    continue
                yield from (frame for frame in frames if not frame.is_corrupt)

    def _open(self, capped: bool = True) -> Any:
        sys.stdin.buffer.seek(0)
        options = {"max_pixels": str(self.preset["load"]["max_pixels"])} if capped else {}
        return av.open(sys.stdin.buffer, format=CONTAINER, options=options, metadata_errors="replace")

    def _stream(self, container: Any) -> Any:
        if not container.streams.video:
            raise Refused("no_video")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise Refused("unknown_codec")
        stream.thread_type = "NONE"  # the engine runs several videos at once
        stream.codec_context.thread_count = 1
        self.ratio = stream.sample_aspect_ratio
        return stream


def main() -> None:
    preset = json.loads(PRESET)
    threading.Thread(target=leave_with, args=(os.getppid(),), daemon=True).start()
    av.logging.set_level(None)
    warm_up(preset)
    limit(preset["load"])
    video, facts = Video(preset), {}
    try:
        facts = video.facts()
        small, times = video.look()
        found = shots(small, times, preset["shot"])
        clips = clips_of(found, times, preset["clip"])
        facts |= {"frames": len(times), "seconds": round(float(times[-1]), 3)}
        listed = [[shot.first, shot.stop, shot.value, round(float(times[shot.first]), 3)] for shot in found]
        del small
        say({"facts": facts, "shots": listed, "clips": [vars(clip) for clip in clips]})
        if wanted := {frame for clip in clips if not clip.short for frame in (clip.first, clip.last)}:
            video.send(wanted)
        say({"end": True})
    except Refused as refused:
        say({"facts": facts, "rule": refused.rule, "value": refused.value})
    except MemoryError:
        say({"facts": facts, "rule": "too_much_memory", "value": preset["load"]["max_memory_mb"]})
    except Exception as error:  # demuxers and decoders fail in every way on what is damaged
        memory = getattr(error, "errno", None) == 12
        say({"facts": facts, "rule": "too_much_memory" if memory else "broken", "value": type(error).__name__})


if __name__ == "__main__":
    main()
