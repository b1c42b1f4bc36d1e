"""review, and generate --critic: what is drawn again, kept beside the answer, said, and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from duogen_core import checkpoint
from duogen_core.checkpoint import save_checkpoint
from duogen_core.cli import main
from duogen_core.document.pending import placeholder
from duogen_core.document.reading import load_document
from duogen_core.document.store import discard_tries, save_document, save_try
from duogen_core.errors import DuoGenError
from duogen_core.review import TRIES, Review
from tests.core.documents import picture
from tests.core.endpoint_server import completion, endpoint_server
from tests.core.tiny import random_components, request, scripted

GUIDE = (("Step 1. A wall.", "picture"), ("Step 2. A roof.", "picture"), ("Done.", "end"))
ONCE = ("--redraws", "1", "--steps", "1")
BAD = Review(False, wrong="It is \x1b[2J too dark.", score=0.25)


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return str(save_checkpoint(random_components(), tmp_path_factory.mktemp("models") / "tiny"))


class Scripted:
    def __init__(self, says) -> None:
        self.says, self.asked = list(says), []

    def review(self, asked):
        self.asked.append(asked)
        says = self.says.pop(0) if self.says else Review(True)
        if isinstance(says, BaseException):
            raise says
        return says


@pytest.fixture
def critic(monkeypatch):
    """Makes a scripted critic the one that the options open."""

    def make(*says):
        made = Scripted(says)
        monkeypatch.setattr("duogen_core.sketchbook.critic.SketchbookCritic", lambda: made)
        return made

    return make


@pytest.fixture
def scene(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)

    def load(_name):
        components = random_components()
        scripted(components, *GUIDE, *GUIDE)
        return components

    monkeypatch.setattr(checkpoint, "load_checkpoint", load)
    known = ["--model", model, "--critic", "sketchbook"]
    return lambda command, *args: main([command, *args, *known])


def tries_in(folder: str) -> set[str]:
    return {file.stem for file in Path(folder, "tries").glob("*")}


def named(document) -> set[str]:
    return {one["image"] for each in document.pictures for one in each.meta[TRIES] if "image" in one}


def test_generate_keeps_refused_images_beside_the_answer(scene, critic, capsys):
    critic(BAD, BAD, Review(True), BAD)
    assert scene("generate", "Draw a house.", "--out", "answer", "--redraws", "3", "--steps", "1") == 0
    document = load_document("answer")
    assert [len(each.meta[TRIES]) for each in document.pictures] == [3, 2]
    assert tries_in("answer") == named(document) and len(named(document)) == 3
    err = capsys.readouterr().err
    assert "image 1: try 2 of 4, refused (0.25): It is �[2J too dark." in err and "\x1b" not in err
    assert "image 2: try 2 of 4, good" in err


def test_refused_images_of_an_earlier_answer_go_and_files_of_the_user_stay(scene, critic):
    critic(BAD)
    assert scene("generate", "Draw a house.", "--out", "answer", "--redraws", "1", "--steps", "1") == 0
    old = tries_in("answer")
    Path("answer", "tries", "mine.png").write_bytes(b"mine")
    critic(BAD)
    assert scene("generate", "Draw a barn.", "--out", "answer", "--redraws", "1", "--steps", "1", "--seed", "9") == 0
    assert tries_in("answer") == named(load_document("answer")) | {"mine"} and not old & tries_in("answer")
    critic()
    assert scene("generate", "Draw a barn.", "--out", "answer", "--steps", "1") == 0
    assert tries_in("answer") == {"mine"}


def test_each_of_many_requests_has_its_own(scene, critic):
    critic(BAD)
    Path("requests.txt").write_text("Draw a house.\nDraw a barn.\n", "utf-8")
    assert scene("generate", "--requests", "requests.txt", "--out", "all", "--batch", "1", *ONCE) == 0
    assert tries_in("all/0001") == named(load_document("all/0001")) and named(load_document("all/0001"))
    assert load_document("all/0002").pictures and not Path("all/0002/tries").exists()


@pytest.fixture
def answer(scene):
    turn = [picture(1, (48, 32), seed=3), picture(2, (32, 48), seed=4)]
    document = request("Two dots.").begin_turn("assistant", turn).replace_generation(seed=3, stop_reason="end")
    save_document(document, "given")
    return document


def test_a_look_alone_writes_nothing(scene, critic, answer, capsys):
    looks = critic(Review(True, score=0.9), BAD)
    before = sorted(Path().rglob("*"))
    assert scene("review", "given") == 0
    out, _ = capsys.readouterr()
    assert [line.split()[:3] for line in out.splitlines()[1:]] == [["1", "yes", "0.90"], ["2", "no", "0.25"]]
    assert "\x1b" not in out and sorted(Path().rglob("*")) == before
    assert [len(asked.earlier) for asked in looks.asked] == [0, 1] and looks.asked[1].request == "Two dots."


def test_a_look_as_json(scene, critic, answer, capsys):
    critic(Review(True, score=0.9), DuoGenError("nobody there"))
    assert scene("review", "given", "--json") == 0
    out, err = capsys.readouterr()
    first, second = json.loads(out)["images"]
    assert first["image"] == 1 and first["shows"] and "shows" not in second and "nobody there" in err


def test_what_is_refused_is_drawn_again_in_its_size_and_what_is_good_stays(scene, critic, answer, capsys):
    looks = critic(Review(True), BAD, Review(True))
    assert scene("review", "given", "--redraws", "2", "--out", "better") == 0
    document = load_document("better")
    one, two = document.pictures
    assert one.digest == answer.pictures[0].digest and one.meta["seed"] == 3
    assert two.digest != answer.pictures[1].digest and two.size == answer.pictures[1].size
    assert two.meta[TRIES][0]["seed"] == 4 and two.meta[TRIES][1]["kept"] and two.meta["seed"] != 4
    assert tries_in("better") == named(document) == {answer.pictures[1].digest[:32]}
    assert load_document("given") == answer and Path("better", "document.html").is_file()
    assert len(looks.asked) == 3 and "better" in capsys.readouterr().out


def test_a_stop_leaves_what_was_finished(scene, critic, answer, monkeypatch, capsys):
    looks = critic(BAD, BAD)
    monkeypatch.setattr("duogen_core.interrupt.requested", lambda: len(looks.asked) >= 1)
    assert scene("review", "given", "--redraws", "2", "--out", "better") == 130
    assert len(load_document("better").pictures) == 2 and "Stopped" in capsys.readouterr().err


def test_pending_images_are_passed_over(scene, critic, capsys):
    document = request("Dots.").begin_turn("assistant", [picture(1), placeholder((16, 16), "a dot")])
    save_document(document, "given")
    looks = critic()
    assert scene("review", "given") == 0 and len(looks.asked) == 1


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (["review", "given", "--critic", "sketchbook", "--redraws", "2"], "--out"),
        (["review", "given", "--critic", "sketchbook", "--out", "x"], "--redraws"),
        (["review", "given", "--critic", "sketchbook", "--redraws", "101", "--out", "x"], "between 0 and 100"),
        (["review", "empty", "--critic", "sketchbook"], "no answer that has images"),
        (["review", "given", "--critic", "sketchbook", "--critic-model", "x"], "is no server"),
        (["review", "given", "--critic", "no-such-model"], "no-such-model"),
        (["generate", "Draw.", "--out", "x", "--redraws", "2"], "name one with --critic"),
        (["generate", "Draw.", "--out", "x", "--critic-model", "m"], "name one with --critic"),
    ],
)
def test_bad_options_are_one_sentence(scene, answer, capsys, args, match):
    save_document(request("Dots."), "empty")
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("Error: ") and err.count("\n") == 1 and match in err
    assert not Path("x").exists()


def test_a_server_as_critic(scene, answer, capsys):
    says = {"seen": "A dot.", "wrong": "It is grey.", "shows": False, "same_cast": True, "score": 3, "prompt": "A dot."}
    with endpoint_server(completion(json.dumps(says))) as server:
        assert main(["review", "given", "--critic", server.url, "--critic-model", "looker", "--json"]) == 0
    images = json.loads(capsys.readouterr().out)["images"]
    assert [(one["score"], one["wrong"]) for one in images] == [(0.3, "It is grey.")] * 2


def test_names_of_tries_lead_nowhere_else(tmp_path):
    with pytest.raises(ValueError, match="hexadecimal"):
        save_try(tmp_path, picture(1), "../x")
    (tmp_path / "real").mkdir()
    (tmp_path / "tries").symlink_to(tmp_path / "real")
    (tmp_path / "real" / f"{'0' * 32}.png").write_bytes(b"mine")
    discard_tries(tmp_path, set())
    assert (tmp_path / "real" / f"{'0' * 32}.png").exists()


def test_a_critic_is_shown_what_the_painter_was_shown(scene, critic):
    turn = [picture(1), picture(2), picture(3, looks_at=[1])]
    save_document(request("Three dots.").begin_turn("assistant", turn).replace_generation(stop_reason="end"), "given")
    for more, wanted in (((), Review(True)), (("--redraws", "1", "--out", "better"), Review(True))):
        looks = critic(*[wanted] * 3)
        assert scene("review", "given", *more) == 0
        assert [[one.digest for one in each.earlier] for each in looks.asked][2] == [picture(1).digest]


@pytest.mark.parametrize("tries", [None, 5, ["x", 7, {"image": ["a"]}, {}], "text"])
def test_what_a_file_says_of_tries_is_never_an_error(scene, critic, tries):
    turn = [picture(1, tries=tries)]
    save_document(request("A dot.").begin_turn("assistant", turn).replace_generation(stop_reason="end"), "given")
    critic()
    args = ["generate", "Draw a house.", "--document", "given", "--out", "answer", "--steps", "1", "--max-images", "0"]
    assert scene(*args) == 0 and load_document("answer").pictures[0].meta["tries"] == tries
