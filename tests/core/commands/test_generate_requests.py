"""generate --requests: a folder for each answer, one batch, stopped and started again; bad lines are named."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from duogen_core import checkpoint, files, interrupt, picture_sampling, pipeline
from duogen_core.checkpoint import save_checkpoint
from duogen_core.cli import main
from duogen_core.document.reading import load_document
from tests.core.tiny import drawing, random_components


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_checkpoint(random_components(), tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture
def run(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoint, "load_checkpoint", lambda _: drawing(random_components()))

    def start(lines, *more):
        (tmp_path / "requests.jsonl").write_text("\n".join(lines), "utf-8")
        how = ("--steps", "1", "--max-images", "2", "--max-tokens", "9", "--temperature", "0.9")
        return main(["generate", "--requests", "requests.jsonl", "--out", "answers", "--model", model, *how, *more])

    return start


LINES = ["Draw a star.", "", '{"prompt": "And a house?", "seed": 5, "out": "house"}', '{"prompt": "Blue.", "seed": 3}']


def test_every_answer_has_a_folder_and_is_the_one_it_has_alone(run, tmp_path, capsys, model):
    assert run(LINES, "--seed", "2", "--batch", "2") == 0
    out, err = capsys.readouterr()
    assert out == "answers\n" and "3 of 3: 0004, 2 images" in err
    assert sorted(each.name for each in (tmp_path / "answers").iterdir()) == ["0001", "0004", "house"]
    for name, prompt, seed in (("0001", "Draw a star.", 2), ("house", "And a house?", 5), ("0004", "Blue.", 3)):
        document = load_document(tmp_path / "answers" / name)
        assert (tmp_path / "answers" / name / "document.html").is_file()
        how = ("--steps", "1", "--max-images", "2", "--max-tokens", "9", "--temperature", "0.9", "--quiet")
        assert main(["generate", prompt, "--out", f"alone-{name}", "--model", model, "--seed", str(seed), *how]) == 0
        alone = load_document(tmp_path / f"alone-{name}")
        assert document.text == alone.text and document.generation == alone.generation
        assert len(document.pictures) == len(alone.pictures) == 2


def test_the_folders_of_a_batch_are_held_while_it_is_answered(run, tmp_path, monkeypatch):
    """Another command that names one of them is told, in the place of writing over it."""
    held, many = [], pipeline.generate_many

    def watched(*arguments, **options):
        held.append({place.name for place in files._held if place.is_relative_to(tmp_path)})
        return many(*arguments, **options)

    monkeypatch.setattr(pipeline, "generate_many", watched)
    assert run(LINES, "--batch", "2") == 0
    assert held == [{"answers", "0001", "house"}, {"answers", "0004"}]
    assert not any(place.is_relative_to(tmp_path) for place in files._held)


def test_the_run_says_where_it_computes_and_with_how_many_threads(run, capsys):
    before = torch.get_num_threads()
    try:
        assert run(LINES[:1], "--threads", "1") == 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert "Images are computed on cpu, in float32." in capsys.readouterr().err
    assert run(LINES[:1], "--threads", "0", "--seed", "8") == 2
    assert "--threads must be at least 1, not 0" in capsys.readouterr().err


def test_images_of_a_request_lie_beside_the_file(run, tmp_path):
    Image.fromarray(np.full((32, 32, 3), 200, np.uint8)).save(tmp_path / "a.png")
    assert run(['{"prompt": "Add a star.", "images": ["a.png"], "out": "added"}']) == 0
    first = load_document(tmp_path / "answers" / "added").turns[0]
    assert len(first.pictures) == 1 and first.text == "Add a star."


def test_a_stopped_run_goes_on(run, tmp_path, monkeypatch, capsys):
    """What is finished stays byte for byte; what is not, or answers another request, is answered anew."""
    drawn = []
    monkeypatch.setattr(interrupt, "requested", lambda: len(drawn) >= 5)
    own = picture_sampling.with_picture
    monkeypatch.setattr(pipeline, "with_picture", lambda *how: drawn.append(1) or own(*how))
    assert run(LINES, "--batch", "2") == interrupt.EXIT_CODE
    assert "What was finished is in answers" in capsys.readouterr()[1]
    monkeypatch.setattr(interrupt, "requested", lambda: False)
    finished = tmp_path / "answers" / "house" / "document.json"
    before, stopped = finished.stat().st_mtime_ns, load_document(tmp_path / "answers" / "0004")
    assert stopped.generation["stop_reason"] == "interrupted" and len(stopped.pictures) == 1
    assert run(LINES, "--batch", "2", "--json") == 0
    out, err = capsys.readouterr()
    assert "2 of 3 are finished already." in err and [each["pictures"] for each in json.loads(out)] == [2, 2, 2]
    assert finished.stat().st_mtime_ns == before
    assert load_document(tmp_path / "answers" / "0004").generation["stop_reason"] != "interrupted"
    changed = [LINES[0], LINES[1], LINES[2].replace("5", "6"), LINES[3].replace("Blue", "Red")]
    assert run(changed) == 0 and "1 of 3 are finished already." in capsys.readouterr()[1]
    assert load_document(tmp_path / "answers" / "house").generation["seed"] == 6
    assert run(changed) == 0 and "3 of 3 are finished already." in capsys.readouterr()[1]


@pytest.mark.parametrize(
    "line, match",
    [
        ('{"prompt": "x"', "line 2"),
        ('{"prompt": ""}', "line 2 has no prompt"),
        ('{"text": "x"}', "line 2 has 'text', which is not known"),
        ('{"prompt": "x", "seed": "7"}', "line 2: seed is '7'; expected a whole number"),
        ('{"prompt": "x", "seed": -1}', "line 2: seed is -1"),
        ('{"prompt": "x", "images": ["none.png"]}', "line 2: The image none.png does not exist"),
        ('{"prompt": "x", "images": [1]}', "line 2: images must be names"),
        ('{"prompt": "x", "out": "../x"}', "line 2: out is '../x'"),
        ('{"prompt": "x", "out": "a/b"}', "line 2: out is 'a/b'"),
        ('{"prompt": "x", "out": ".x"}', "line 2: out is '.x'"),
        ('{"prompt": "x", "out": "0001"}', "line 2: out is '0001', as in line 1"),
    ],
)
def test_a_bad_line_is_named(run, capsys, tmp_path, line, match):
    assert run(["Draw.", line]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and match in err.replace(str(tmp_path) + "/", "")
    assert not (tmp_path / "answers").exists()


def test_what_does_not_go_together_is_refused(run, tmp_path, capsys):
    for lines, more, match in (
        (["x"], ["A prompt."], "leave out the prompt"),
        (["x"], ["--batch", "0"], "--batch must be at least 1"),
        ([""], [], "has no requests"),
        (["x"], ["--requests", "nowhere.txt"], "nowhere.txt does not exist"),
    ):
        assert run(lines, *more) == 2
        assert match in capsys.readouterr()[1]
    (tmp_path / "answers" / "0001").mkdir(parents=True)
    (tmp_path / "answers" / "0001" / "mine.txt").write_text("mine")
    assert run(["x"]) == 2 and "not an earlier answer" in capsys.readouterr()[1]
