"""Videos are read in a child process: the right frames come back upright, and hostile files end in a rule's name."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from duogen_core.data.pairs.video import reading as module
from duogen_core.data.pairs.video.reading import CHILD, ROOT, Reading, container_of
from duogen_core.data.runs.presets import load_preset
from tests.core.clips import HEIGHT, WIDTH, blend, scene, write_video

PRESET = load_preset("video")
ON_LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits are the system's")
STRETCH = b"".join(n.to_bytes(4, "big") for n in (0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000))
TURN = b"".join(n.to_bytes(4, "big") for n in (0, 0x10000, 0, 0xFFFF0000, 0, 0, 0, 0, 0x40000000))


def read(file: Path, preset=PRESET):
    """What a Reading says in the end, and its pairs."""
    with Reading(file, preset) as reading:
        pairs = list(reading.pairs())
    return reading, pairs


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    """Two shots of 6 and 3 seconds with a dissolve of a second between."""
    one, other = scene(1, 60), scene(2, 30)
    return write_video(tmp_path_factory.mktemp("video") / "two.mp4", [*one, *blend(one[-1], other[0], 10), *other])


def test_first_and_last_frames_are_those_of_the_video(video):
    import av

    with av.open(str(video)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    reading, pairs = read(video)
    assert reading.verdict is None
    assert (reading.facts["frames"], reading.facts["width"], reading.facts["height"]) == (100, WIDTH, HEIGHT)
    assert len(reading.shots) == 2
    assert [clip.shot for clip, *_ in pairs] == [0, 1]
    for clip, first, last, interlaced in pairs:
        assert np.abs(first.astype(int) - frames[clip.first]).mean() < 2
        assert np.abs(last.astype(int) - frames[clip.last]).mean() < 2
        assert not interlaced
    assert (pairs[0][0].begin, pairs[0][0].end) == (0.1, 5.1)


def test_pixels_that_are_not_square_are_made_square(tmp_path):
    _, pairs = read(write_video(tmp_path / "wide.mp4", scene(1, 30), ratio="4/3"))
    assert pairs[0][1].shape == (HEIGHT, WIDTH * 4 // 3, 3)


def test_a_video_that_was_filmed_upright_comes_upright(tmp_path, video):
    data = video.read_bytes()
    assert data.count(STRETCH) == 2  # of the movie and of its track
    place = data.rindex(STRETCH)
    turned = tmp_path / "turned.mp4"
    turned.write_bytes(data[:place] + TURN + data[place + len(TURN) :])
    _, plain = read(video)
    _, pairs = read(turned)
    assert np.array_equal(pairs[0][1], np.rot90(plain[0][1], -1))  # the matrix turns clockwise


def test_large_frames_are_stored_smaller(video):
    _, pairs = read(video, load_preset("video", settings=["store.side=96"]))
    assert pairs[0][1].shape == (56, 96, 3)


@pytest.mark.parametrize(
    ("setting", "rule"),
    [
        ("load.max_bytes=1000", "too_many_bytes"),
        ("load.max_pixels=1000", "too_many_pixels"),
        ("load.max_minutes=0.1", "too_long"),
        ("load.max_frames=50", "too_long"),
        ("clip.min_side=200", "small"),
    ],
)
def test_caps(video, setting, rule):
    reading, pairs = read(video, load_preset("video", settings=[setting]))
    assert reading.verdict[0] == rule
    assert not pairs


def test_a_video_of_high_dynamic_range_is_refused(tmp_path):
    reading, _ = read(write_video(tmp_path / "hlg.ts", scene(1, 30), codec="mpeg2video", rate=25, transfer=18))
    assert reading.verdict == ("hdr", 18)


@ON_LINUX
def test_a_video_that_takes_too_much_memory_is_refused(tmp_path):
    file = write_video(tmp_path / "large.mp4", [np.zeros((4000, 6000, 3), np.uint8)] * 2)
    reading, _ = read(file, load_preset("video", settings=["load.max_memory_mb=360", "load.max_pixels=30000000"]))
    assert reading.verdict[0] == "too_much_memory"


PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (PLAYLIST.encode(), "unknown_format"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "unknown_format"),
        (b"", "unknown_format"),
        (b"\x1a\x45\xdf\xa3" + b"\xff" * 5000, "broken"),
        (b"RIFF\x00\x10\x00\x00AVI LIST" + bytes(4000), "broken"),
        (b"\x00\x00\x00\x18ftypmp42" + bytes(3000), "broken"),
    ],
)
def test_what_is_no_video_is_refused(tmp_path, data, rule):
    file = tmp_path / "it.mp4"
    file.write_bytes(data)
    reading, pairs = read(file)
    assert reading.verdict[0] in (rule, "no_video")
    assert not pairs


def test_a_missing_file_is_a_rule(tmp_path):
    assert read(tmp_path / "gone.mp4")[0].verdict[0] == "unreadable"


def test_cut_off_and_damaged_files_end_in_a_rule_or_in_fewer_clips(tmp_path, video):
    data, rng = video.read_bytes(), np.random.default_rng(0)
    damaged = bytearray(data)
    for place in rng.integers(200, len(data), 60):
        damaged[place] ^= int(rng.integers(1, 256))
    for name, content in (("cut.mp4", data[: len(data) // 2]), ("damaged.mp4", bytes(damaged))):
        (tmp_path / name).write_bytes(content)
        reading, pairs = read(tmp_path / name)
        assert reading.verdict is None or reading.verdict[0] in ("broken", "no_frames", "no_video", "crashed")
        assert all(first.shape == last.shape for _, first, last, _ in pairs)
    assert read(tmp_path / "cut.mp4")[0].verdict[0] == "broken"  # its index was at the end


@ON_LINUX
def test_the_child_can_open_neither_files_nor_sockets():
    code = (
        f"import sys, runpy, socket; sys.argv = ['child', {str(ROOT)!r}, 'mov', '{{}}']\n"
        f"child = runpy.run_path({str(CHILD)!r})\n"
        "child['limit']({'max_seconds': 60, 'max_memory_mb': 2048})\n"
        "for attempt in (lambda: open('/etc/hostname'), lambda: socket.socket(), lambda: open('/tmp/x', 'w')):\n"
        "    try: attempt(); print('opened')\n"
        "    except OSError: print('refused')\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["refused"] * 3


BUSY = f"""
import importlib.util, sys, time
sys.argv = ["child", {str(ROOT)!r}, "mov", {json.dumps(PRESET)!r}]
spec = importlib.util.spec_from_file_location("child", {str(CHILD)!r})
child = importlib.util.module_from_spec(spec)
spec.loader.exec_module(child)
child.Video.facts = lambda self: (print("busy", flush=True), time.sleep(60))
child.main()
"""
ENGINE = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a process there keeps the id of its parent")
def test_the_child_does_not_outlive_a_killed_engine():
    engine = subprocess.Popen([sys.executable, "-c", ENGINE, BUSY], stdout=subprocess.PIPE, text=True)
    child = int(engine.stdout.readline())
    engine.kill()
    engine.wait()
    for _ in range(450):  # by itself it would end after 60 seconds
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    pytest.fail("it was still there after 45 seconds")


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        ("import os; os._exit(3)", "crashed"),
        ("print('not json')", "crashed"),
        ("print('[1, 2]')", "crashed"),
        ("print('{\"bytes\": 99999999999}')", "crashed"),
        ("print('{\"bytes\": 50}')", "crashed"),
        ('print(\'{"facts": 3, "shots": [], "clips": [{"evil": 1}], "bytes": 0}\')', "crashed"),
        ('print(\'{"rule": ["x"], "value": {}, "facts": {"frames": "many"}, "bytes": 0}\')', "crashed"),
        ('print(\'{"rule": "<b>", "facts": {}, "bytes": 0}\')', "crashed"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGXCPU)", "too_slow"),
    ],
)
def test_nothing_the_child_says_is_believed(tmp_path, video, monkeypatch, body, rule):
    if rule == "too_slow" and sys.platform == "win32":
        pytest.skip("there is no such signal")
    liar = tmp_path / "liar.py"
    liar.write_text(body)
    monkeypatch.setattr(module, "CHILD", liar)
    reading, pairs = read(video)
    assert reading.verdict[0] == rule
    assert not pairs


def test_containers_are_known_by_their_first_bytes(tmp_path):
    for ending, name in (("mkv", "matroska"), ("avi", "avi"), ("mov", "mov"), ("ts", "mpegts")):
        file = write_video(tmp_path / f"it.{ending}", scene(1, 30))
        assert container_of(file.read_bytes()[:512]) == name
        renamed = file.rename(tmp_path / f"{ending}.mp4")
        reading, pairs = read(renamed)
        assert reading.verdict is None, ending
        assert len(pairs) == 1
