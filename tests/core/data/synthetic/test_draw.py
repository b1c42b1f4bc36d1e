"""Documents of the synthetic engine: shards, resume, kills, painters that fail, the commands."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from duogen_core.cli import main
from duogen_core.data.runs.log import rule_of
from duogen_core.data.runs.presets import load_preset
from duogen_core.data.runs.run import begin, work
from duogen_core.data.sources import open_source
from duogen_core.data.synthetic.drawing import DrawEngine
from duogen_core.data.synthetic.painter import Painter, PainterError, Wanted
from duogen_core.document import Text
from duogen_core.errors import DuoGenError
from duogen_core.picture_sampling import picture_seed
from tests.core.comfyui_server import comfyui_server, drawn
from tests.core.synthetic_plans import entries, write_plans

ROOT = Path(__file__).parents[4]
NODES = {
    "1": {"class_type": "CLIPTextEncode", "inputs": {"text": "${prompt}"}},
    "2": {"class_type": "KSampler", "inputs": {"seed": "${seed}"}},
    "3": {"class_type": "PreviewImage", "inputs": {}},
}
EDIT = {**NODES, "4": {"class_type": "LoadImage", "inputs": {"image": "${earlier_1}"}}}


class Scribbler(Painter):
    """Draws noise of the prompt's and the seed's own; `trouble` may raise or draw something else in its place."""

    def __init__(self, trouble=lambda wanted: None):
        self.trouble, self.asked = trouble, []

    def identity(self):
        return {"painter": "scribbler"}

    def paint(self, wanted: Wanted) -> np.ndarray:
        self.asked.append(wanted)
        found = self.trouble(wanted)
        if found is not None:
            return found
        seed = [wanted.seed, len(wanted.earlier), sum(map(ord, wanted.prompt))]
        return np.random.default_rng(seed).integers(0, 256, (64, 80, 3), dtype=np.uint8)


def draw(folder: Path, painter: Painter | None = None, count: int = 5, size: int = 2, part=(1, 1)):
    """Does the run in this folder; yields the entries of its log."""
    plans = write_plans(folder.parent / "plans", entries(count)) / "plans.jsonl"
    engine = DrawEngine(plans, load_preset("synthetic"), lambda: painter or Scribbler(), folder / "drawn")
    return work(begin(folder, engine, size), engine, part=part, give_up=3)


def results(folder: Path) -> dict[str, bytes]:
    """All that a run wrote and that may not differ between two runs."""
    return {path.name: path.read_bytes() for name in ("shards", "logs") for path in sorted((folder / name).iterdir())}


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for file in sorted((folder / "logs").iterdir()) for line in file.open()]


def test_documents_have_texts_and_pictures_in_turn_and_say_where_they_come_from(tmp_path, capsys):
    assert sum(entry["kept"] for entry in draw(tmp_path / "run")) == 5
    source = open_source(f"webdataset:{tmp_path / 'run' / 'shards'}")
    assert len(source) == 5
    document, entry = source.read(1).document, entries()[1]
    assert document.turns[0].text == entry.request.text
    kinds = [isinstance(part, Text) for part in document.turns[1].parts]
    assert kinds == [True, False, True, False, True, False, True]
    assert document.turns[1].parts[2].text == entry.plan.steps[1].text
    meta = document.meta
    assert (meta["source"], meta["domain"], meta["subcategory"], meta["seed"]) == ("synthetic", "Knots", "Loops", 100)
    assert meta["request"]["by"] == "tiny" and meta["request"]["digest"] == entry.request.digest
    assert meta["writer"] == {"model": "tiny", "prompt": "ab12"} and meta["painter"] == {"painter": "scribbler"}
    assert [each.meta["seed"] for each in document.pictures] == [picture_seed(100, k) for k in range(3)]
    assert document.pictures[2].meta["prompt"] == entry.plan.steps[2].picture
    assert main(["data", "check", f"webdataset:{tmp_path / 'run' / 'shards'}", "--quiet"]) == 0
    assert main(["data", "stats", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out.split()
    assert said[said.index("documents") + 1] == "5" and said[said.index("pictures", 5) + 1] == "15"


def test_a_painter_sees_the_request_and_the_earlier_pictures_with_their_prompts(tmp_path):
    painter = Scribbler()
    (entry,) = draw(tmp_path / "run", painter, count=1)
    plan = entries()[0].plan
    assert [wanted.request for wanted in painter.asked] == [entries()[0].request.text] * 3
    assert [len(wanted.earlier) for wanted in painter.asked] == [0, 1, 2]
    assert [each.meta["prompt"] for each in painter.asked[2].earlier] == list(plan.prompts[:2])
    assert [each.digest[:16] for each in painter.asked[2].earlier] == [each["digest"] for each in entry["pictures"][:2]]


def test_a_run_that_was_left_paints_nothing_twice_and_ends_the_same(tmp_path):
    whole = Scribbler()
    list(draw(tmp_path / "whole", whole))
    first = Scribbler()
    running = draw(tmp_path / "parts", first)
    for _ in range(3):  # a whole shard and half of the next
        next(running)
    running.close()
    assert sorted(file.name for file in (tmp_path / "parts" / "shards").iterdir()) == ["00000.tar"]
    assert len(list((tmp_path / "parts" / "drawn").iterdir())) == 3
    second = Scribbler()
    list(draw(tmp_path / "parts", second))
    assert results(tmp_path / "parts") == results(tmp_path / "whole")
    assert len(whole.asked) == len(first.asked) + len(second.asked) == 15
    assert list((tmp_path / "parts" / "drawn").iterdir()) == []
    third = Scribbler()
    assert list(draw(tmp_path / "parts", third)) == [] and third.asked == []


def test_a_kept_picture_that_is_damaged_is_painted_anew(tmp_path):
    list(draw(tmp_path / "whole"))
    running = draw(tmp_path / "parts")
    next(running)
    running.close()
    for file in (tmp_path / "parts" / "drawn").iterdir():
        file.write_bytes(file.read_bytes()[:50])
    list(draw(tmp_path / "parts"))
    assert results(tmp_path / "parts") == results(tmp_path / "whole")


def test_parts_of_several_machines_are_the_whole(tmp_path):
    list(draw(tmp_path / "whole", size=1))
    for part in (2, 1, 3):
        list(draw(tmp_path / "parts", size=1, part=(part, 3)))
    assert results(tmp_path / "parts") == results(tmp_path / "whole")


def test_another_identity_is_refused(tmp_path):
    list(draw(tmp_path / "run"))
    with pytest.raises(DuoGenError, match="was begun with other values of shard"):
        list(draw(tmp_path / "run", size=3))


def fixed(pixels):
    return lambda wanted: pixels


NOISE = np.random.default_rng(0).integers(0, 256, (70, 70, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("pixels", "rule", "pictures"),
    [
        (np.zeros((64, 80, 3), np.uint8), "blank", 1),
        (NOISE[:40], "small", 1),
        (np.tile(NOISE, (80, 1, 1)), "large", 1),
        (NOISE, "same_picture", 2),
    ],
)
def test_picture_rules(tmp_path, pixels, rule, pictures):
    assert [rule_of(entry) for entry in draw(tmp_path / "run", Scribbler(fixed(pixels)), count=1)] == [rule]
    (line,) = log(tmp_path / "run")
    assert (line["kept"], line["rule"]) == (False, rule) and len(line["pictures"]) == pictures
    assert line["pictures"][-1]["rule"] == rule and line["request"] == entries()[0].request.text


def test_one_failure_is_logged_and_several_in_a_row_stop_the_run(tmp_path):
    def second(wanted):
        if wanted.request == entries()[1].request.text:
            raise PainterError("The node broke.")

    outcomes = list(draw(tmp_path / "one", Scribbler(second)))
    assert [rule_of(entry) for entry in outcomes] == ["", "painter_failed", "", "", ""]
    assert log(tmp_path / "one")[1]["value"] == "The node broke."

    def always(wanted):
        raise PainterError("The node broke.")

    with pytest.raises(DuoGenError, match="3 documents in a row failed, the last with: The node broke"):
        list(draw(tmp_path / "all", Scribbler(always), size=5))
    assert list((tmp_path / "all" / "shards").iterdir()) == []


def test_a_painter_that_is_gone_stops_the_run_at_once_and_the_run_goes_on(tmp_path):
    list(draw(tmp_path / "whole"))

    def gone(wanted):
        if wanted.seed == picture_seed(200, 1):
            raise PainterError("The server cannot be reached.", stop=True)

    with pytest.raises(PainterError, match="cannot be reached"):
        list(draw(tmp_path / "parts", Scribbler(gone)))
    list(draw(tmp_path / "parts"))
    assert results(tmp_path / "parts") == results(tmp_path / "whole")


# ---------------------------------------------------------------- the commands


@pytest.fixture
def planned(tmp_path) -> Path:
    return write_plans(tmp_path / "run")


def comfyui_arguments(folder: Path, url: str) -> list[str]:
    for name, nodes in (("text", NODES), ("edit", EDIT)):
        (folder / f"{name}.json").write_text(json.dumps(nodes))
    files = [f"--workflow={folder / name}.json" for name in ("text", "edit")]
    return ["data", "synthetic", "draw", str(folder), "--painter", "comfyui", "--server", url, "--shard", "2", *files]


def test_drawing_on_a_comfyui_server_from_the_command_line(planned, tmp_path, capsys):
    with comfyui_server() as server:
        assert main([*comfyui_arguments(planned, server.url), "--json", str(tmp_path / "r.json")]) == 0
        assert len(server.queued) == 15 and len(server.uploads) == 10
        said = capsys.readouterr()
        assert main(comfyui_arguments(planned, server.url)) == 0
        assert "5 documents with 15 pictures (all done before); refused: none:" in capsys.readouterr().out
        assert len(server.queued) == 15
    assert "5 documents with 15 pictures in" in said.out and said.out.strip().endswith("shards")
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["documents"], report["pictures"], report["in_all"]) == (5, 15, 5)
    document = open_source(f"webdataset:{planned / 'draw' / 'shards'}").read(0).document
    assert document.meta["painter"]["painter"] == "comfyui" and document.pictures[1].size == (96, 64)
    assert main([*comfyui_arguments(planned, "http://127.0.0.1:1"), "--quiet"]) == 0  # all is done
    assert main([*comfyui_arguments(planned, "http://127.0.0.1:1"), "--size", "64x64", "--quiet"]) == 2
    assert "was begun with other values of painter" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_command_goes_on_to_the_same_bytes(planned, tmp_path):
    def slow(nodes):
        time.sleep(0.05)
        return drawn(nodes)

    with comfyui_server() as server:
        main([*comfyui_arguments(planned, server.url), "--out", str(tmp_path / "whole"), "--quiet"])
    with comfyui_server(slow) as server:
        arguments = [*comfyui_arguments(planned, server.url), "--out", str(tmp_path / "parts"), "--quiet"]
        for pictures in (4, 9):
            child = subprocess.Popen([sys.executable, "-m", "duogen_core", *arguments], cwd=ROOT)
            end = time.monotonic() + 300
            while len(server.queued) < pictures and time.monotonic() < end and child.poll() is None:
                time.sleep(0.01)
            child.send_signal(signal.SIGKILL)
            child.wait()
        assert 9 <= len(server.queued) < 15
        assert main(arguments) == 0
        assert len(server.queued) <= 15 + 2  # at most the picture of each kill was drawn twice
    assert results(tmp_path / "parts") == results(tmp_path / "whole")


def test_ctrl_c_is_one_sentence(planned, tmp_path, monkeypatch, capsys):
    def interrupted(nodes):
        raise KeyboardInterrupt

    from duogen_core.data.synthetic import comfyui

    monkeypatch.setattr(comfyui.Server, "view", lambda self, file: interrupted(file))
    with comfyui_server() as server:
        assert main(comfyui_arguments(planned, server.url)) == 130
    said = capsys.readouterr().err
    assert "Stopped after 0 of 5 documents; the same command goes on." in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["draw"], "plans.jsonl does not exist"),
        (["draw", "--part", "3/2"], "--part is '3/2'"),
        (["draw", "--shard", "0"], "A shard has 0 documents"),
        (["answer", "--limit", "0"], "--limit is 0"),
        (["answer", "--part", "x"], "--part is 'x'"),
        (["answer", "--size", "big"], "--size is 'big'"),
        (["answer", "--model", "nowhere"], "nowhere"),
        (["answer", "--dit", "a.safetensors"], "A model is --model, or all of"),
    ],
)
def test_wrong_commands_get_a_sentence(arguments, words, tmp_path, capsys):
    assert main(["data", "synthetic", arguments[0], str(tmp_path / "run"), *arguments[1:], "--quiet"]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


def test_workflows_need_the_painter_they_are_for(planned, capsys):
    assert main(["data", "synthetic", "draw", str(planned), "--workflow", "w.json", "--quiet"]) == 2
    assert "--workflow is for --painter comfyui" in capsys.readouterr().err
