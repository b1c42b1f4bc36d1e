"""`train bundled`: the parts in their order, side by side where they can be; what stops one stops all, and says why."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from duogen_core.cli import main
from duogen_core.dit.controlnet import PackedControlNet
from duogen_core.sketchbook import bundled
from duogen_core.sketchbook.bundled import CONTROL, DRAWING, LANGUAGE, PARTS, VAE, WRITING, command_of
from tests.core.tiny import random_components

ROOT = Path(__file__).parents[3]


@pytest.fixture
def started(monkeypatch):
    """{part: a program that stands in for its training}; without one it writes what a training would leave."""
    programs, order = {}, []

    def start(part, out, share, settings, cores, log):
        order.append(part.name)
        usual = f"import pathlib; pathlib.Path({str(out / part.name / 'export')!r}).mkdir(parents=True, exist_ok=True)"
        program = programs.get(part.name, usual)
        return subprocess.Popen([sys.executable, "-c", program], stdout=log, stderr=subprocess.STDOUT)

    monkeypatch.setattr(bundled, "start", start)
    monkeypatch.setattr(bundled, "assemble", lambda out: order.append("assemble"))
    return programs, order


@pytest.mark.parametrize("part", list(PARTS.values()), ids=list(PARTS))
def test_every_part_is_a_command_that_its_training_takes(part, tmp_path, capsys):
    settings = ["stage2.layers=4", "vae.base_dim=8"]
    command = command_of(part, tmp_path, 0.1, settings)
    assert main([*command, "--print-config"]) == 0
    config = capsys.readouterr().out
    full = main(["train", part.command, "--config", part.recipe, "--print-config"])
    assert full == 0
    steps = [int(text) for text in re.findall(r"^ *steps: (\d+)", capsys.readouterr().out, re.M)]
    assert [int(text) for text in re.findall(r"^ *steps: (\d+)", config, re.M)] == [round(0.1 * n) for n in steps]
    assert len(steps) == (2 if part.name == "pretrain" else 1)
    assert f"out: {tmp_path / part.name}" in config
    for name, place in part.inputs.items():
        assert f"{name}: {tmp_path / place}" in config
    assert ("layers: 4" in config) == (part.name == "stage2") and ("base_dim: 8" in config) == (part.name == "vae")


@pytest.mark.parametrize(
    ("cores", "gpus", "launched", "threads"), [(1, 0, False, 1), (2, 0, True, 1), (16, 0, True, 8), (16, 1, False, 16)]
)
def test_a_part_that_has_the_machine_to_itself_uses_all_of_it(tmp_path, monkeypatch, cores, gpus, launched, threads):
    monkeypatch.setattr(bundled.torch.cuda, "device_count", lambda: gpus)
    for part in PARTS.values():
        command = command_of(part, tmp_path, 1.0, [], cores)
        assert ("--launch" in command) == (launched and part in (WRITING, DRAWING))
        assert f"threads={threads if part.shared else cores}" in command


def test_what_a_part_reads_was_made_before_it():
    made = {bundled.MODEL}
    for line in (VAE, (LANGUAGE, WRITING, DRAWING), (CONTROL,)):
        for part in line:
            assert {place.removesuffix("/export") for place in part.inputs.values()} <= made
            made.add(part.name)


def test_two_lines_run_side_by_side_and_the_rest_after_them(tmp_path, started, capsys):
    _, order = started
    net = PackedControlNet.of_dit(random_components().dit, 1)
    net.save_pretrained(tmp_path / "controlnet" / "export")
    assert main(["train", "bundled", "--out", str(tmp_path)]) == 0
    assert set(order[:2]) == {"vae", "pretrain"} and order[-4:] == ["stage1", "stage2", "assemble", "controlnet"]
    assert sorted(order) == sorted([*PARTS, "assemble"])
    added = PackedControlNet.from_pretrained(tmp_path / "model" / "controlnet", dtype=None)
    for name, weight in net.state_dict().items():  # in half precision
        assert torch.equal(added.state_dict()[name], weight.half())
    assert f"Finished: {tmp_path / 'model'}" in capsys.readouterr().out


def test_both_stages_have_all_cores_and_the_lines_before_them_half(tmp_path, started, monkeypatch):
    ran = []
    told = lambda lines, *rest: ran.append([([part.name for part in each.parts], each.cores) for each in lines])  # noqa: E731
    monkeypatch.setattr(bundled, "run_lines", told)
    monkeypatch.setattr(bundled.os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    bundled.train_parts(tmp_path, 1.0, [])
    assert ran == [
        [(["vae", "vae-decoder"], 4), (["pretrain"], 4)],
        [(["stage1", "stage2"], 8)],
        [(["controlnet"], 8)],
    ]


def test_a_part_that_fails_stops_the_other_and_says_why(tmp_path, started, capsys):
    programs, order = started
    programs["vae"] = "import sys; print('Error: The disk is full.'); sys.exit(2)"
    programs["pretrain"] = "import time; time.sleep(60)"
    begun = time.monotonic()
    assert main(["train", "bundled", "--out", str(tmp_path)]) == 2
    assert time.monotonic() - begun < 50
    said = capsys.readouterr().err
    assert "vae did not finish: The disk is full." in said and "vae.log has all that it said" in said
    assert sorted(order) == ["pretrain", "vae"]


TRAINING = """
import pathlib, signal, sys, time
out = pathlib.Path(next(word for word in sys.argv if word.startswith("out="))[4:])
out.mkdir(parents=True, exist_ok=True)
asked = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: asked.append(number))
(out / "begun").touch()
while not asked:
    time.sleep(0.05)
time.sleep(1)  # a checkpoint is written
(out / "stopped").write_text(str(len(asked)))
sys.exit(130)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_is_passed_on_once_so_that_every_part_can_save(tmp_path, number):
    program = (
        "import sys; from duogen_core.sketchbook import bundled; from duogen_core.cli import main\n"
        f"bundled.PROGRAM = ('-c', {TRAINING!r}); sys.exit(main(['train', 'bundled', '--out', {str(tmp_path)!r}]))"
    )
    whole = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True, cwd=ROOT
    )
    parts = [tmp_path / name for name in ("vae", "pretrain")]
    until = time.monotonic() + 120
    while not all((part / "begun").exists() for part in parts):
        assert time.monotonic() < until and whole.poll() is None
        time.sleep(0.1)
    os.killpg(whole.pid, number)  # as a terminal does
    said, _ = whole.communicate(timeout=60)
    assert whole.returncode == 130 and "The same command goes on from there" in said
    assert [(part / "stopped").read_text() for part in parts] == ["1", "1"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stage3.lr=1"], "'stage3' is not known; did you mean 'stage2'?"),
        (["stage2.lr"], "'stage2.lr' is no setting of a part; expected stage2.NAME=VALUE."),
        (["--share", "0"], "--share is 0; expected a number above 0"),
    ],
)
def test_what_it_cannot_do_is_said_before_anything_begins(tmp_path, started, capsys, words, said):
    assert main(["train", "bundled", "--out", str(tmp_path / "runs"), *words]) == 2
    assert said in capsys.readouterr().err
    assert not started[1] and not (tmp_path / "runs").exists()
