"""data make sketchbook, and the things that training never shows: what is made, and that nothing else is."""

from __future__ import annotations

import random

import pytest
from PIL import Image

from duogen_core.cli import main
from duogen_core.data.sources import open_source
from duogen_core.errors import DuoGenError
from duogen_core.sketchbook.evaluation import cases
from duogen_core.sketchbook.scores import score
from duogen_core.sketchbook.tasks import evaluation_case, training_case
from duogen_core.sketchbook.things import NOVEL, THINGS, ideal_picture, parse_step, thing_named


def make(*arguments: str) -> int:
    return main(["data", "make", "sketchbook", *arguments])


def documents(folder) -> list:
    source = open_source(f"documents:{folder}")
    return [source.load(index) for index in range(len(source))]


def test_training_never_shows_a_novel_thing():
    assert not set(NOVEL) & set(THINGS)
    shown = " ".join(turn.text for k in range(400) for turn in training_case(random.Random(k)).document.turns).lower()
    assert not any(name in shown for name in NOVEL)


@pytest.mark.parametrize("name", NOVEL)
def test_a_novel_thing_is_asked_for_by_name(name):
    thing = thing_named(name)
    for seed in range(20):
        for family in ("guide", "continue"):
            case = evaluation_case(family, random.Random(seed), thing=name)
            assert case.truth["thing"] == name
            answer = case.document.last_turn
            steps = [parse_step(part.text, name) for part in answer.parts[:-1:2]]
            assert [step.part for step in steps] == [part.name for part in thing.parts[case.truth.get("done", 0) :]]
            ideal = ideal_picture(name, case.truth["colours"], thing.steps, answer.pictures[-1].size)
            assert (answer.pictures[-1].pixels == ideal).all()
            assert set(score(case, case.document).checks.values()) == {1.0}
    with pytest.raises(DuoGenError, match="is not about one thing"):
        evaluation_case("draw", random.Random(0), thing=name)


@pytest.mark.slow
def test_the_documents_are_read_back_and_are_not_those_of_the_evaluation(tmp_path, capsys):
    assert make("--thing", "snow globe", "--count", "30", "--out", str(tmp_path / "some/globes")) == 0
    assert capsys.readouterr().out.startswith("30 documents (")
    made = documents(tmp_path / "some/globes")
    assert len(made) == 30 and {document.meta["family"] for document in made} == {"guide", "continue"}
    assert all("snow globe" in document.text or document.meta["family"] == "continue" for document in made)
    assert all(document.last_turn.pictures for document in made)
    asked = {tuple(turn.text for turn in document.turns) for document in made}
    for seed in range(3):
        measured = cases(60, seed, ("guide", "continue"), "snow globe")
        assert not asked & {tuple(turn.text for turn in case.document.turns) for _, case in measured}
    with Image.open(tmp_path / "some/globes/overview.png") as sheet:
        assert sheet.height > 1000
    again, other = ("--out", str(tmp_path / "again")), ("--seed", "1", "--out", str(tmp_path / "other"))
    assert make("--thing", "snow globe", "--count", "30", *again) == 0
    assert make("--thing", "snow globe", "--count", "30", *other) == 0
    assert documents(tmp_path / "again") == made != documents(tmp_path / "other")


def test_documents_of_any_task(tmp_path):
    assert make("--count", "40", "--out", str(tmp_path / "all")) == 0
    assert len({document.meta["family"] for document in documents(tmp_path / "all")}) >= 5
    assert make("--count", "12", "--families", "draw, plan", "--out", str(tmp_path / "two")) == 0
    assert {document.meta["family"] for document in documents(tmp_path / "two")} == {"draw", "plan"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--out", "x", "--thing", "snow glob"], "did you mean 'snow globe'?"),
        (["--out", "x", "--count", "0"], "--count must be at least 1, not 0"),
        (["--out", "x", "--families", "gide"], "did you mean 'guide'?"),
        (["--out", "x", "--families", ""], "the task '' is not known"),
        (["--out", "x", "--thing", "house", "--families", "draw"], "give guide or continue"),
        (["--out", "full"], "has something in it"),
        (["--out", "full/file"], "must be the name of a folder"),
        (["--out", "full/file/x"], "cannot be made"),
        (["--out", ""], "must be the name of a folder"),
        (["--count", "3"], "required: --out"),
    ],
)
def test_bad_input_is_one_sentence_and_makes_nothing(arguments, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("mine")
    assert make(*arguments) == 2
    errors = capsys.readouterr().err
    assert sentence in errors and "Traceback" not in errors and errors.count("\n") == 1
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["full", "file"]


def test_what_cannot_be_written_leaves_nothing(tmp_path, monkeypatch, capsys):
    from duogen_core.document import store

    whole, calls = store.save_document, []

    def full(document, path, **options):
        calls.append(path)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        return whole(document, path, **options)

    monkeypatch.setattr(store, "save_document", full)
    assert make("--count", "9", "--out", str(tmp_path / "x")) == 2
    assert "No space left on device" in capsys.readouterr().err and not list(tmp_path.iterdir())
