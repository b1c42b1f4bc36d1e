"""The alignment engine on real clips: shots beside labels, pairs as specified, time, and kills.

    python tests/bench/video_clips.py [shots] [pairs] [rules] [speed] [kills]   needs the material of video_material.py

shots: found beside video_shots.json, and beside PySceneDetect where it is installed. pairs: each frame of a pair beside
an independent decoding of the video, and every clip's length. rules: pairs blurred or taken from two shots on purpose.
speed: `data video` with two workers, on the wall and in processor seconds. kills: kill -9 at 20 random moments.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import checkout  # noqa: F401
import numpy as np
from PIL import Image, ImageFilter
from video_material import videos
from web_speed import digest

from duogen_core.data.pairs.rules import judge
from duogen_core.data.pairs.video.reading import Reading
from duogen_core.data.runs.presets import load_preset

LABELS = json.loads(Path(__file__).with_name("video_shots.json").read_text("utf-8"))
NEAR = 1  # frames by which a cut may be off
PRESET = load_preset("video")


def names() -> list[str]:
    return [name for name in LABELS if name != "what"]


def beside_labels(starts: list[int], labels: dict) -> tuple[int, int, int]:
    """(cuts found, gradual changes found, starts that are neither)."""
    cuts = sum(any(abs(start - cut) <= NEAR for start in starts) for cut in labels["cuts"])
    spans = [(first - NEAR, last + NEAR) for first, last in labels["gradual"]]
    gradual = sum(any(first <= start <= last for start in starts) for first, last in spans)
    false = sum(
        not any(abs(start - cut) <= NEAR for cut in labels["cuts"])
        and not any(first <= start <= last for first, last in spans)
        for start in starts
    )
    return cuts, gradual, false


def scenedetect_starts(file: Path) -> list[int] | None:
    try:
        from scenedetect import AdaptiveDetector, detect
    except ImportError:
        return None
    return [scene[0].frame_num for scene in detect(str(file), AdaptiveDetector())[1:]]


def shots() -> None:
    total, other = np.zeros(3, int), np.zeros(3, int)
    compared = True
    for name in names():
        with Reading(videos() / name, PRESET) as reading:
            ends = {shot.first for shot in reading.shots} | {shot.stop for shot in reading.shots}
            starts = sorted(ends - {0, reading.facts["frames"]})
        found = beside_labels(starts, LABELS[name])
        total += found
        theirs = scenedetect_starts(videos() / name)
        compared = compared and theirs is not None
        beside = beside_labels(theirs, LABELS[name]) if theirs is not None else "-"
        other += beside if theirs is not None else 0
        print(f"{name}: {found}, PySceneDetect {beside}")
    cuts, gradual = (sum(len(LABELS[name][kind]) for name in names()) for kind in ("cuts", "gradual"))
    rows = [("here", total), *([("PySceneDetect", other)] if compared else [])]
    for who, (a, b, false) in rows:
        print(f"{who}: {a} of {cuts} cuts, {b} of {gradual} fades and dissolves, {false} that are none")


def pairs() -> None:
    count, worst, lengths = 0, 0.0, []
    for name in names():
        with Reading(videos() / name, PRESET) as reading:
            found = list(reading.pairs())
            shot_of = dict(enumerate(reading.shots))
            wanted = {frame for clip, *_ in found for frame in (clip.first, clip.last)}
        whole = {}
        with av.open(str(videos() / name)) as container:
            for index, frame in enumerate(container.decode(video=0)):
                if index in wanted:
                    whole[index] = frame
        for clip, first, last, _ in found:
            shot = shot_of[clip.shot]
            assert shot.first <= clip.first < clip.last < shot.stop, (name, clip)
            for index, pixels in ((clip.first, first), (clip.last, last)):
                height, width = pixels.shape[:2]
                frame = whole[index]
                matrix = 1 if frame.height >= 720 else None
                same = frame.reformat(width, height, "rgb24", src_colorspace=matrix).to_ndarray()
                worst = max(worst, float(np.abs(same.astype(int) - pixels).mean()))
            lengths.append(clip.seconds)
            count += 1
    full = sum(4.9 <= length <= 5.15 for length in lengths)
    print(f"{count} pairs, each within one shot; {full} of 4.9 to 5.15 s, the others {min(lengths):.2f} s or more")
    print(f"frames differ from an independent decoding by at most {worst:.2f} of 255 in the mean")


def rules() -> None:
    """How often pairs that were spoilt on purpose are refused, and good ones kept."""
    found = []
    for name in names():
        with Reading(videos() / name, PRESET) as reading:
            found += [(name, clip.shot, first, last) for clip, first, last, _ in reading.pairs()]
    good = [pair for pair in found if judge(pair[2], pair[3], PRESET["pair"])[1] is None]
    print(f"{len(found)} pairs, {len(good)} kept by the rules")
    for share in (0.004, 0.008, 0.016):
        refused = 0
        for _, _, first, last in good:
            image = Image.fromarray(last)
            soft = np.asarray(image.filter(ImageFilter.GaussianBlur(share * image.width)))
            refused += judge(first, soft, PRESET["pair"])[1] is not None
        print(f"last frame blurred with a radius of {share:.1%} of the width: {refused} of {len(good)} refused")
    for what, chosen in (
        ("neighbouring shots of one video", [(a, b) for a in good for b in good if a[0] == b[0] and b[1] == a[1] + 1]),
        ("two videos", [(a, b) for a in good for b in good if a[0] < b[0]][::7]),
    ):
        refused = 0
        for a, b in chosen:
            size = (a[2].shape[1], a[2].shape[0])
            refused += judge(a[2], np.asarray(Image.fromarray(b[3]).resize(size)), PRESET["pair"])[1] is not None
        print(f"pairs made of {what}: {refused} of {len(chosen)} refused")
    still = sum(judge(first, first, PRESET["pair"])[1] == ("still", 0.0) for _, _, first, _ in good)
    print(f"a frame with itself: {still} of {len(good)} refused as still")


def command(out: Path, *more: str) -> list[str]:
    options = ["--out", str(out), "--undescribed", "--workers", "2", "--shard-videos", "1", *more]
    return [sys.executable, "-m", "duogen_core", "data", "video", str(videos()), *options]


def speed(place: Path) -> None:
    figures = place / "figures.json"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command(place / "speed", "--json", str(figures)), check=True)
    after, found = resource.getrusage(resource.RUSAGE_CHILDREN), json.loads(figures.read_text())
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{found['videos']} videos, {found['seconds']:.0f} s: {found['kept']} pairs of {found['clips']} clips")
    print(f"{found['elapsed']:.0f} s on the wall: {found['elapsed'] / found['seconds']:.2f} of real time, two workers")
    print(f"{spent:.0f} s of processor time: {spent / found['seconds']:.3f} for each second of video")


def kills(place: Path, count: int = 20) -> None:
    started = time.monotonic()
    subprocess.run(command(place / "whole", "--quiet"), check=True)
    whole, rng, done = time.monotonic() - started, random.Random(0), 0
    while done < count:
        child = subprocess.Popen(command(place / "killed", "--quiet"))
        try:
            child.wait(rng.uniform(0.2, 0.3 * whole))
            break
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            done += 1
    subprocess.run(command(place / "killed", "--quiet"), check=True)
    left = list((place / "killed").rglob("*.duogen-tmp"))
    same = "the same bytes as" if digest(place / "killed") == digest(place / "whole") else "OTHER BYTES THAN"
    print(f"killed {done} times, then finished: {same} the undisturbed run; {len(left)} half-written files left")


def main() -> None:
    every = ("shots", "pairs", "rules", "speed", "kills")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*every, []], metavar="PART", help=f"default: all of {every}")
    with tempfile.TemporaryDirectory() as name:
        for part in parser.parse_args().parts or every:
            print(f"== {part}", flush=True)
            {"shots": shots, "pairs": pairs, "rules": rules}.get(part, lambda: None)()
            if part in ("speed", "kills"):
                {"speed": speed, "kills": kills}[part](Path(name))


if __name__ == "__main__":
    main()
