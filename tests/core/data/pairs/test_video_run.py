"""data video from the command line: Documents, descriptions by a model, resume, and what check and stats say."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from duogen_core.cli import main
from duogen_core.data.pairs.video.engine import VideoEngine, VideoResult, check
from duogen_core.data.pairs.video.reading import Reading, about
from duogen_core.data.runs.presets import load_preset
from duogen_core.data.runs.run import begin, open_run, work
from duogen_core.data.sources import open_source
from duogen_core.data.sources.base import Sample
from duogen_core.llm.answers import AnswerError
from tests.core.clips import scene, write_video
from tests.core.endpoint_server import completion, endpoint_server, refusing

SAID = {
    "object": "a dark square on a coloured ground",
    "action": "it slides to the right edge",
    "camera": "the camera stays still",
    "instruction": "Move the square to the right edge of the picture and leave everything else alone.",
}


def video(*arguments: object) -> int:
    return main(["data", "video", *map(str, arguments), "--quiet"])


def results(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for name in ("shards", "logs") for path in sorted((out / name).iterdir())}


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Two videos with one good clip each, one in which nothing moves, and a file that is none."""
    folder = tmp_path_factory.mktemp("clips")
    write_video(folder / "a.mp4", scene(1, 30), comment="made by somebody at 48.2, 16.3")
    write_video(folder / "deep" / "b.avi", scene(2, 30))
    (folder / "deep" / "b.json").write_text(json.dumps({"webpage_url": "https://example.com/b", "license": "CC-BY"}))
    write_video(folder / "c.mp4", scene(3, 30, 0))
    (folder / "d.mp4").write_bytes(b"<html>not found</html>")
    return folder


def test_videos_become_documents_that_stage_two_can_read(clips, tmp_path, capsys):
    out = tmp_path / "out"
    assert video(clips, "--out", out, "--undescribed", "--json", tmp_path / "figures.json") == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert "2 pairs of 3 clips" in first
    assert video(clips, "--out", out, "--undescribed") == 0
    again = capsys.readouterr().out.splitlines()[0]
    assert again == f"{first.rpartition(', ')[0]} (all done before):"
    assert json.loads((tmp_path / "figures.json").read_text())["videos"] == 4
    source = open_source(f"webdataset:{out / 'shards'}")
    documents = [source.load(index) for index in range(len(source))]
    assert [document.meta["video"] for document in documents] == ["a.mp4", "deep/b.avi"]
    for document in documents:
        user, assistant = document.turns
        assert (len(user.pictures), user.text) == (1, "Show the same scene 2.7 seconds later.")
        assert (len(assistant.pictures), assistant.text) == (1, "")
        assert document.meta["alignment"] is True
        assert document.meta["description"] == {"object": "", "action": "", "camera": ""}
    assert (documents[1].meta["url"], documents[1].meta["licence"]) == ("https://example.com/b", "CC-BY")
    assert isinstance(source.read(0), Sample)
    log = [json.loads(line) for line in (out / "logs" / "00000.jsonl").open()]
    assert [(entry["video"], entry.get("rule")) for entry in log] == [
        ("a.mp4", None),
        ("c.mp4", "no_clip_left"),
        ("d.mp4", "unknown_format"),
        ("deep/b.avi", None),
    ]
    still = log[1]["clips"][0]
    assert (still["rule"], still["kept"], still["value"]) == ("still", False, still["change"])
    assert main(["data", "check", f"webdataset:{out / 'shards'}", "--quiet"]) == 0
    assert "2 samples are alignment data" in capsys.readouterr().out
    assert main(["data", "stats", str(out)]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["videos", "4", "100.0%"] in table
    assert ["still", "-1", "33.3%"] in table


def test_a_run_that_keeps_nothing_says_which_rule_refused_most(clips, tmp_path, capsys):
    for _ in ("begun", "done before"):
        assert video(clips / "c.mp4", "--out", tmp_path / "out", "--undescribed") == 0
        told = capsys.readouterr().out
        assert "Nothing was kept: of 1 videos no_clip_left refused 1; of 1 clips still refused 1. `data stats" in told


def test_nothing_but_pixels_is_stored(clips, tmp_path):
    video(clips, "--out", tmp_path / "out", "--undescribed")
    data = (tmp_path / "out" / "shards" / "00000.tar").read_bytes()
    assert b"somebody" in (clips / "a.mp4").read_bytes()
    assert b"somebody" not in data
    start = data.index(b"\xff\xd8\xff")
    with Image.open(io.BytesIO(data[start:])) as image:
        assert not image.getexif()
        assert set(image.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}


def test_a_run_that_was_left_goes_on_and_ends_the_same(clips, tmp_path):
    video(clips, "--out", tmp_path / "whole", "--undescribed", "--shard-videos", 1, "--workers", 2)
    engine = VideoEngine(load_preset("video"), [str(clips)])
    run = begin(tmp_path / "parts", engine, 1)
    doing = work(run, engine)
    for _ in range(2):
        next(doing)
    doing.close()
    assert [run.is_done(shard) for shard in range(4)] == [True, False, False, False]
    written = run.log(0).stat().st_mtime_ns
    (tmp_path / "parts" / "shards" / ".00001.tar.99.duogen-tmp").write_bytes(b"half")
    assert video(clips, "--out", tmp_path / "parts", "--undescribed", "--shard-videos", 1) == 0
    assert results(tmp_path / "parts") == results(tmp_path / "whole")
    assert run.log(0).stat().st_mtime_ns == written
    assert open_run(tmp_path / "parts", "video").items == 4


def test_other_rules_in_the_same_folder_are_refused(clips, tmp_path, capsys):
    assert video(clips, "--out", tmp_path / "out", "--undescribed") == 0
    assert video(clips, "--out", tmp_path / "out", "--undescribed", "--set", "pair.min_change=30") == 2
    assert "was begun with other values of preset;" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "Give a vision-language model that describes the pairs"),
        (["--undescribed", "--endpoint", "http://127.0.0.1:9/v1", "--llm", "m"], "one of the two"),
        (["--endpoint", "http://127.0.0.1:9/v1"], "--llm is missing"),
        (["--undescribed", "--workers", "0"], "--workers is 0"),
        (["--undescribed", "--set", "clip.second=3"], "clip.second, which is not a rule"),
        (["--undescribed", "--shard-videos", "0"], "expected at least 1"),
    ],
)
def test_wrong_options_are_one_sentence(clips, tmp_path, capsys, options, words):
    assert video(clips, "--out", tmp_path / "out", *options) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_inputs_that_are_none(tmp_path, capsys):
    assert video(tmp_path / "gone", "--out", tmp_path / "out", "--undescribed") == 2
    assert "does not exist" in capsys.readouterr().err
    assert video(tmp_path, "--out", tmp_path / "out", "--undescribed") == 2
    assert "has no video" in capsys.readouterr().err


@pytest.mark.parametrize(("setting", "rule"), [("clip.interlaced=false", "interlaced"), ("clip.interlaced=true", None)])
def test_interlaced_frames_are_refused_unless_they_are_asked_for(clips, monkeypatch, setting, rule):
    pairs = Reading.pairs
    monkeypatch.setattr(Reading, "pairs", lambda self: ((*pair[:3], True) for pair in pairs(self)))
    (judged,) = VideoEngine(load_preset("video", settings=[setting])).clips(clips / "a.mp4", VideoResult())
    assert (judged.verdict and judged.verdict[0]) == rule


def test_a_video_that_ends_too_soon_keeps_what_it_gave(tmp_path, monkeypatch):
    def pairs(self):
        yield next(whole(self))
        self.verdict = ("too_slow", 1)

    whole = Reading.pairs
    monkeypatch.setattr(Reading, "pairs", pairs)
    write_video(tmp_path / "in" / "long.mp4", scene(1, 110, 0.5))
    assert video(tmp_path / "in", "--out", tmp_path / "out", "--undescribed") == 0
    (entry,) = [json.loads(line) for line in (tmp_path / "out" / "logs" / "00000.jsonl").open()]
    assert (entry["kept"], entry["ended_by"]) == (True, {"rule": "too_slow", "value": 1})
    assert [clip.get("rule") for clip in entry["clips"]] == [None, "too_slow", "short"]


def described(clips: Path, out: Path, url: str, *more: object) -> int:
    options = ["--endpoint", url, "--llm", "seer", "--workers", 1, "--parallel", 1, *more]
    return video(clips / "a.mp4", clips / "deep" / "b.avi", "--out", out, *options)


def test_a_model_describes_the_pairs_and_answers_are_asked_for_once(clips, tmp_path, capsys):
    talks = {**SAID, "instruction": "The last frame of the clip has the square at the right."}
    with endpoint_server(
        completion("It moves."), completion(json.dumps(talks)), completion(json.dumps(SAID))
    ) as server:
        assert described(clips, tmp_path / "out", server.url) == 0
        assert len(server.asked) == 4  # prose, talk of frames, a good answer; the second pair's good one
        content = server.asked[0][2]["messages"][-1]["content"]
        assert [part["type"] for part in content] == ["text", "image_url", "image_url"]
        assert "2.7 seconds apart" in content[0]["text"]
        source = open_source(f"webdataset:{tmp_path / 'out' / 'shards'}")
        assert [source.load(index).turns[0].text for index in range(2)] == [SAID["instruction"]] * 2
        meta = source.load(0).meta
        assert meta["description"] == {name: SAID[name] for name in ("object", "action", "camera")}
        assert meta["described_by"]["model"] == "seer"
        whole = results(tmp_path / "out")
        (tmp_path / "out" / "logs" / "00000.jsonl").unlink()
        assert described(clips, tmp_path / "out", server.url) == 0
        assert len(server.asked) == 4
        assert results(tmp_path / "out") == whole


def test_a_pair_without_a_usable_description_is_refused(clips, tmp_path):
    with endpoint_server(completion("no"), completion("no"), completion(json.dumps(SAID))) as server:
        assert described(clips, tmp_path / "out", server.url, "--answers", 2) == 0
    (first, second) = [json.loads(line) for line in (tmp_path / "out" / "logs" / "00000.jsonl").open()]
    assert (first["clips"][0]["rule"], first["rule"]) == ("undescribed", "no_clip_left")
    assert "no usable answer in 2 attempts" in first["clips"][0]["value"]
    assert second["kept"]
    assert len(open_source(f"webdataset:{tmp_path / 'out' / 'shards'}")) == 1


def test_an_endpoint_that_refuses_stops_the_run_with_a_sentence(clips, tmp_path, capsys):
    with endpoint_server(refusing(401)) as server:
        assert described(clips, tmp_path / "out", server.url) == 2
        assert "refused with status 401" in capsys.readouterr().err
    assert not list((tmp_path / "out" / "logs").iterdir())
    assert not list((tmp_path / "out" / "shards").iterdir())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"instruction": "Draw it."}, "too short"),
        ({"instruction": "Draw the second image with the square at the right."}, "second image"),
        ({"camera": "see https://example.com"}, "camera has a link"),
        ({"object": "<script>alert(1)</script>"}, "object has a link or a tag"),
    ],
)
def test_descriptions_are_checked(change, words):
    check(SAID)
    with pytest.raises(AnswerError, match=words):
        check({**SAID, **change})


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"url": {"a": 1}}', "[" * 100_000])
def test_a_sidecar_that_says_nothing_is_nothing(tmp_path, text):
    (tmp_path / "v.json").write_text(text)
    assert about(tmp_path / "v.mp4") == {}


def test_the_report_shows_clips_by_rule(clips, tmp_path):
    video(clips, "--out", tmp_path / "out", "--undescribed")
    assert main(["data", "view", str(tmp_path / "out"), "--quiet"]) == 0
    html = (tmp_path / "out" / "report.html").read_text("utf-8")
    kept, still, *videos = html.split("<details>")[1:]
    assert kept.startswith("<summary>kept: 2 shown")
    assert kept.count("<img ") == 4
    assert kept.count("Show the same scene 2.7 seconds later.") == 2
    assert still.startswith("<summary>still: 1 shown")
    assert still.count("<img ") == 2
    assert any("d.mp4" in each and "unknown_format" in each for each in videos)


@pytest.mark.slow
def test_stage_two_trains_on_them(clips, tmp_path):
    from duogen_core.training import stage2
    from tests.core.runs import losses
    from tests.core.tiny import random_components

    video(clips, "--out", tmp_path / "out", "--undescribed")
    parts = random_components()
    parts.mllm.save_pretrained(tmp_path / "mllm")
    parts.vae.model.save_pretrained(tmp_path / "vae")
    values = {
        "out": tmp_path / "run", "vae": tmp_path / "vae", "mllm": tmp_path / "mllm", "steps": 1, "max_side": 64,
        "data": [f"webdataset:{tmp_path / 'out' / 'shards'}"], "layers": 2, "heads": 2, "cross_width": 32, "shards": 1,
        "batch": 2, "tokens": 600, "log_every": 1, "warmup": 1, "sample_minutes": 0.0, "bf16": False,
        "precision": "float32",
    }  # fmt: skip
    stage2.train(stage2.Stage2Config(**values))
    assert len(losses(tmp_path / "run")) == 1
    assert 0 < losses(tmp_path / "run")[0] < 100
    assert not (tmp_path / "run" / "bad_samples.jsonl").exists()
