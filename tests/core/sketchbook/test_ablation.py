"""The ablation: its table is sound, ideal work gets full marks, the command trains, measures, goes on and refuses."""

from __future__ import annotations

import json
from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from duogen_core.checkpoint import save_checkpoint
from duogen_core.cli import main
from duogen_core.data.sources import Limits, open_mixture
from duogen_core.document import Picture, Text
from duogen_core.picture_sampling import PictureSampler
from duogen_core.sampling import initial_noise
from duogen_core.settings import Settings
from duogen_core.sketchbook.ablation import command, measuring
from duogen_core.sketchbook.ablation.results import answer_to, difference, figure, markdown, over_seeds, table, verdict
from duogen_core.sketchbook.ablation.trainings import (
    QUESTIONS,
    START,
    TRAININGS,
    AblationConfig,
    needed,
    stage1_config,
    stage2_config,
    start_of,
)
from duogen_core.sketchbook.evaluation import cases
from duogen_core.training import stage2_data
from duogen_core.training.configuration import ConfigError
from tests.core.tiny import random_components, scripted

PAPER = {name: question for name, question in QUESTIONS.items() if not question.own}

# ---------------------------------------------------------------- the table of arms


def test_arms_differ_in_one_thing_that_training_knows(tmp_path):
    config = AblationConfig(out=tmp_path, steps=1)
    for name, training in TRAININGS.items():
        made, own = (stage2_config, "duogen") if training.stage == "stage2" else (stage1_config, "kept-out")
        one, other = made(config, name, 0), made(config, own, 0)
        changed = [f.name for f in fields(one) if getattr(one, f.name) != getattr(other, f.name)]
        assert [each for each in changed if each not in ("out", "documents")] == list(training.changes)
        assert len(training.changes) <= 1


def test_the_first_arm_of_a_question_is_duogens_own_and_all_trainings_are_used():
    used = set()
    for question in QUESTIONS.values():
        first, *others = question.arms
        assert not TRAININGS[first.training].changes and first.guidance is first.steps is None and others
        assert len({arm.name for arm in question.arms}) == len(question.arms)
        assert len({TRAININGS[arm.training].stage for arm in question.arms}) == 1
        used |= {arm.training for arm in question.arms}
    assert used == set(TRAININGS)


def test_only_the_trainings_of_the_chosen_questions_are_due():
    assert needed(AblationConfig(only=("connector",))) == [START, "duogen", "last-layer"]
    assert needed(AblationConfig(only=("draft",))) == ["kept-out"]
    paper = {arm.training for question in QUESTIONS.values() if not question.own for arm in question.arms}
    assert set(needed(AblationConfig())) == {START, *paper}
    assert needed(AblationConfig(only=("shape",))) == [
        START, "duogen", "start-wider", "wider", "start-deeper", "deeper", "start-small-patches", "small-patches"
    ]  # fmt: skip


def test_a_dit_of_another_shape_has_a_start_of_its_own(tmp_path):
    config = AblationConfig(out=tmp_path, steps=100, start=2.0)
    for name, (setting, value) in {
        "wider": ("heads", 6),
        "deeper": ("layers", 8),
        "small-patches": ("patch", 1),
    }.items():
        start, arm = (stage2_config(config, each, 0) for each in (start_of(name), name))
        assert getattr(start, setting) == getattr(arm, setting) == value and start.steps == 2 * arm.steps
        assert start.out != arm.out and set(start.families) == {"draw"} and start.documents != arm.documents
    assert start_of("x0") == START and set(stage2_config(config, START, 0).families) == {"draw"}


@pytest.mark.parametrize("question", ["shape", "references", "connector", "attention"])
def test_what_the_models_own_weights_cannot_answer_needs_a_start(question):
    with pytest.raises(ConfigError, match=f"'{question}' has arms that the model's weights do not fit"):
        AblationConfig(only=(question,), start=0)
    with pytest.raises(ConfigError, match="'start' is -1; expected 0 or more"):
        AblationConfig(start=-1)


def test_arms_that_read_other_documents_keep_their_own(tmp_path):
    config = AblationConfig(out=tmp_path, steps=1)
    assert stage2_config(config, "chains", 0).documents != stage2_config(config, "duogen", 0).documents
    assert stage2_config(config, "x0", 0).documents == stage2_config(config, "duogen", 0).documents


def test_budget_and_data_are_the_same_for_all_arms(tmp_path):
    config = AblationConfig(out=tmp_path, steps=100, start=2.5)
    arms = [stage2_config(config, name, 3) for name, each in TRAININGS.items() if each.stage == "stage2"]
    changed = {name for each in TRAININGS.values() if each.stage == "stage2" for name in each.changes}
    for one in arms:
        same = {f.name for f in fields(one) if getattr(one, f.name) == getattr(arms[0], f.name)}
        assert {f.name for f in fields(one)} - same <= {"out", "documents", *changed}
    start = stage2_config(config, START, 3)
    assert (start.steps, arms[0].steps, start.drop_text) == (250, 100, 0.0)
    assert start.documents != arms[0].documents and set(start.families) == {"draw"}


def test_both_arms_of_stage_1_are_given_wordless_edits_and_one_reads_them(tmp_path):
    config = AblationConfig(out=tmp_path, steps=1, alignment=3, alignment_share=0.75)
    arms = {name: stage1_config(config, name, 0) for name in ("kept-out", "mixed-in")}
    assert arms["kept-out"].data == arms["mixed-in"].data
    read = {}
    for name, one in arms.items():
        limits = Limits(alignment=one.include_alignment)
        mixture = open_mixture(one.data, 0, limits=limits, on_bad=lambda bad: pytest.fail(bad.sentence))
        documents = [mixture.draw(k).document for k in range(40)]
        read[name] = [document for document in documents if not document.last_turn.text]
    assert not read["kept-out"] and 20 < len(read["mixed-in"]) < 39
    for document in read["mixed-in"]:
        user, answer = document.turns
        assert user.text and len(user.pictures) == 1 and len(answer.parts) == 1 and answer.pictures
        assert answer.pictures[0] != user.pictures[0]


# ---------------------------------------------------------------- figures


def test_differences_are_taken_case_by_case():
    reference = [0.1, 0.5, 0.9, 0.3]
    better = [value + 0.02 for value in reference]
    found = difference(better, reference)
    assert found["mean"] == found["low"] == found["high"] == 0.02 and found["n"] == 4
    assert verdict("edit.kept", found) == "better" and verdict("loss", found) == "worse"
    noisy = difference([0.5, 0.1, 0.9, 0.35], reference)
    assert noisy["low"] < 0 < noisy["high"] and verdict("edit.kept", noisy) == ""
    assert difference([1.0], [1.0, 0.0]) is None


def test_yes_or_no_differences_keep_their_doubt():
    found = difference([1.0] * 6, [1.0] * 6)
    assert found["mean"] == 0 and found["low"] < -0.1 and found["high"] > 0.1
    assert verdict("draw.right", difference([1.0] * 40, [0.0] * 40)) == "better"


def test_intervals_of_shares_and_of_decibels():
    share, decibels = figure("draw.right", [1.0] * 10), figure("psnr", [20.0, 22.0, 24.0])
    assert share["mean"] == 1 and 0.6 < share["low"] < 0.75 and share["high"] == 1
    assert decibels["mean"] == 22 and decibels["high"] - 22 == pytest.approx(1.96 * 2 / 3**0.5, abs=1e-3)
    assert figure("psnr", [20.0])["low"] is None


def test_seeds_are_averaged_case_by_case():
    merged = over_seeds([{"right": [0.0, 1.0], "seconds": [1.0]}, {"right": [1.0, 1.0], "seconds": [3.0, 5.0]}])
    assert merged == {"right": [0.5, 1.0], "seconds": [1.0, 3.0, 5.0]}


def test_the_table_says_which_arm_is_worse():
    question = QUESTIONS["draft"]
    with_picture, _, without = question.arms
    measured = {with_picture.name: {"draft.answer": [1.0] * 20, "undrafted.answer": [0.0] * 20}}
    measured[without.name] = measured[with_picture.name]
    answer = answer_to("draft", question, measured)
    assert [arm["name"] for arm in answer["arms"]] == [with_picture.name, without.name]
    assert answer["arms"][1]["figures"]["draft.answer"]["mean"] == 0
    row = table(answer).splitlines()[-1]
    assert row.startswith("| `draft.answer` | 1.00 (") and "−0.91" not in row and "**worse** |" in row


# ---------------------------------------------------------------- measuring


@pytest.fixture(scope="module")
def tiny():
    return random_components()


def test_spots_are_the_same_for_every_arm_and_hold_back_the_picture():
    chosen = measuring.spots(("guide", "edit"), 4, seed=1)
    again = measuring.spots(("guide", "edit"), 4, seed=1)
    assert [spot.index for spot in chosen] == [spot.index for spot in again]
    assert {spot.index for spot in chosen[1::2]} == {0}
    assert 0 not in (indices := {spot.index for spot in chosen[::2]}) and len(indices) > 1
    for spot in chosen:
        before = spot.case.document.pictures.index(spot.ideal)
        assert spot.context.pictures == spot.case.document.pictures[:before]
        assert isinstance(spot.context.last_turn.parts[-1], Text)


def test_ideal_pictures_are_right_and_the_true_velocity_has_no_error(tiny, monkeypatch):
    chosen = measuring.spots(("guide", "draw", "edit"), 2, seed=1)
    ideals = {spot.context.text: spot.ideal for spot in chosen}
    monkeypatch.setattr(PictureSampler, "draw", lambda self, document, seed: ideals[document.text].pixels)
    found = measuring.drawn_in_context(tiny, Settings(), chosen)
    assert found["psnr"] == [60.0] * 6
    assert found["guide.right"] == found["draw.right"] == found["edit.kept"] == [1.0, 1.0]

    def truth(self, document, shape):
        x0 = self.latent(ideals[document.text])
        number = [spot.context.text for spot in chosen].index(document.text)
        velocities = lambda x, t: [initial_noise(number, tuple(shape)) - x0 + offset]  # noqa: E731
        return SimpleNamespace(velocities=velocities, device=torch.device("cpu"))

    monkeypatch.setattr(PictureSampler, "prepare", truth)
    for offset in (0.0, 0.5):
        assert np.allclose(measuring.velocity_errors(tiny, chosen)["loss"], offset**2)


def ideal_script(case) -> list[tuple[str, str]]:
    script, text = [], ""
    for part in case.document.last_turn.parts:
        if isinstance(part, Picture):
            script.append((text, "picture"))
            text = ""
        else:
            text += part.text
    return [*script, (text, "end")]


@pytest.mark.parametrize(
    ("family", "check"), [("guide", "guide.structure"), ("edit", "edit.words"), ("draft", "draft.answer")]
)
def test_ideal_words_are_right_with_ideal_pictures_put_in(family, check, monkeypatch):
    [(_, case)] = cases(1, 5, [family])
    components = random_components()
    scripted(components, *ideal_script(case))
    monkeypatch.setattr(measuring, "cases", lambda *_: [(family, case)])
    found = measuring.written(lambda case, _: measuring.with_ideal_pictures(components.mllm, case), 1, 5)
    assert found[check] == [1.0]


def test_an_answer_that_never_ends_its_drawing_is_cut_off():
    [(_, case)] = cases(1, 5, ["describe"])
    components = random_components()
    scripted(components, *[("Look.", "picture")] * 9)
    document = measuring.with_ideal_pictures(components.mllm, case)
    assert document.generation["stop_reason"] == "picture" and len(document.last_turn.pictures) == 2


# ---------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny):
    return save_checkpoint(tiny, tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(stage2_data, "SHARD", 6)
    monkeypatch.setattr(command, "LIMITS", Settings(max_images=1, max_new_tokens=3))
    monkeypatch.setattr(measuring, "TOKENS", 3)


def arguments(out, model, *more: str) -> list[str]:
    return ["ablation", f"out={out}", f"model={model}", "steps=2", "cases=1", "shards=1", "layers=1", "heads=1",
            "tokens=400", "batch=2", "draw_steps=1", "alignment=2", "own=1", "log_every=1", "warmup=1",
            *more]  # fmt: skip


@pytest.mark.slow
def test_every_arm_is_trained_measured_and_written_and_then_only_read(tmp_path, model, small, monkeypatch, capsys):
    assert main(arguments(tmp_path, model)) == 0
    report = json.loads((tmp_path / "ablation.json").read_text("utf-8"))
    assert [question["key"] for question in report["questions"]] == list(PAPER)
    for question, told in zip(PAPER.values(), report["questions"]):
        assert [arm["name"] for arm in told["arms"]] == [arm.name for arm in question.arms]
        for arm in told["arms"]:
            assert arm["figures"], (question.title, arm["name"])
    steps = {one["name"]: one["steps"] for one in report["trainings"]}
    assert steps == {START: 8, **dict.fromkeys(needed(AblationConfig())[1:], 2)}
    text = (tmp_path / "ablation.md").read_text("utf-8")
    assert text == markdown(report) and all(question.title in text for question in PAPER.values())
    assert (tmp_path / "ablation.png").stat().st_size > 10_000
    config = json.loads((tmp_path / "seed-0/no-references/export/dit/config.json").read_text("utf-8"))
    assert config["references"] is False
    begin = [path.read_bytes() for path in (tmp_path / "seed-0").glob("*/init/dit/*.safetensors")]
    assert len(begin) == 5 and len(set(begin)) == 1  # one start for all arms

    monkeypatch.setattr(command, "train", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(command, "components", lambda *_: pytest.fail("measured again"))
    (tmp_path / "ablation.json").unlink()
    assert main(arguments(tmp_path, model)) == 0
    assert json.loads((tmp_path / "ablation.json").read_text("utf-8")) == report

    capsys.readouterr()
    assert main(arguments(tmp_path, model, "lr=0.1")) == 2
    assert "were made with lr 0.003, not 0.1" in capsys.readouterr().err


@pytest.mark.parametrize("start", [4, 0], ids=["a start", "the model's own"])
def test_what_limits_a_picture_is_asked_by_name(tmp_path, model, small, start):
    assert main(arguments(tmp_path, model, "only=[loss,data,steps]", f"start={start}")) == 0
    report = json.loads((tmp_path / "ablation.json").read_text("utf-8"))
    assert [question["key"] for question in report["questions"]] == ["loss", "data", "steps"]
    assert [one["name"] for one in report["trainings"]] == [
        *([START] if start else []), "duogen", "x0", "edges", "decoder", "noisy-references", "own-references",
        "chains",
    ]  # fmt: skip
    config = json.loads((tmp_path / "seed-0/x0/config.json").read_text("utf-8"))["config"]
    assert config["init"] == str(tmp_path / "seed-0/x0/init" if start else model)
    for told in report["questions"]:
        assert len(told["arms"]) == len(QUESTIONS[told["key"]].arms)
        for arm in told["arms"]:
            assert {"psnr", "edit_chain.right"} <= set(arm["figures"])
    measured = {path.stem for path in (tmp_path / "seed-0" / "measured").iterdir()}
    assert {"duogen-with-chains", "duogen-steps-4-with-chains", "duogen-guidance-1-with-chains"} <= measured


def test_a_stopped_ablation_goes_on(tmp_path, model, small, monkeypatch):
    asked = []

    def train(config, name, seed):
        asked.append(name)
        return type("Run", (), {"interrupted": True})

    monkeypatch.setattr(command, "train", train)
    assert main(arguments(tmp_path, model, "only=[connector]")) == 130
    assert main(arguments(tmp_path, model, "only=[connector]")) == 130
    assert asked == [START, START]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("only=[conector]", "no question 'conector'"),
        ("cases=0", "'cases' is 0; expected 1 or more"),
        ("alignment_share=1", "'alignment_share' is 1.0; expected a number between 0 and 1"),
        ("leyers=2", "did you mean 'layers'"),
        ("model=nowhere", "There is no model 'nowhere'"),
    ],
)
def test_bad_settings_are_named(tmp_path, setting, said, capsys):
    assert main(["ablation", f"out={tmp_path / 'run'}", "steps=1", setting]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_budget_is_needed(tmp_path, capsys):
    assert main(["ablation", f"out={tmp_path}"]) == 2
    assert "needs the budget of an arm" in capsys.readouterr().err
