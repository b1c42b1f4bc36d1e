"""A run that is stopped or killed, at whatever moment, ends with the same files as an unbroken one, bit for bit."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from duogen_core.cli import main
from duogen_core.document import Document, Picture, Text
from duogen_core.document.store import save_document
from duogen_core.sketchbook import pretrain, vae
from duogen_core.training import run as run_module
from duogen_core.training import stage1, stage2, stage2_data
from duogen_core.training.checkpoints import finish_swap, replaced, swap
from duogen_core.training.lora import LoraSettings
from duogen_core.training.metrics import read_lines
from duogen_core.training.stage1 import Stage1Config
from duogen_core.training.stage2_data import Stage2Config
from tests.core.runs import losses, stopped_in
from tests.core.sample_sets import guide, write_jsonl
from tests.core.sketchbook.test_pretrain import TINY
from tests.core.tiny import random_components

SHARED = {"steps": 4, "warmup": 1, "log_every": 1, "bf16": False, "tensorboard": False, "sample_minutes": 0.0}
LORA = LoraSettings(rank=2, dropout=0.5)
KINDS = ["stage1", "stage1 with LoRA", "stage2", "stage2 with LoRA", "vae"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """An MLLM, a VAE, a DiT that answers something, and documents."""
    root = tmp_path_factory.mktemp("inputs")
    components = random_components()
    components.mllm.save_pretrained(root / "mllm")
    components.vae.model.save_pretrained(root / "vae")
    components.dit.save_pretrained(root / "init" / "dit")
    components.connector.save_pretrained(root / "init" / "connector")
    write_jsonl(root / "train.jsonl", [guide(k) for k in range(7)])
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
        drawn = Document().begin_turn("user", [Text("Draw it.")]).begin_turn("assistant")
        for picture in pixels[: 1 + number % 2]:
            drawn = drawn.append(Text("Here.")).append(Picture(picture))
        save_document(drawn, root / "documents" / f"{number}")
    return root


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(run_module, "plot_metrics", lambda folder: None)
    monkeypatch.setattr(stage2_data, "SHARD", 4)


def trainer(kind: str, inputs: Path):
    """(train, config) of a run of four steps."""
    lora = LORA if "LoRA" in kind else None
    if kind == "vae":
        return vae.train, vae.VaeConfig(base_dim=4, batch=2, calibration_crops=32, **SHARED)
    if kind.startswith("stage1"):
        data = [f"jsonl:{inputs / 'train.jsonl'}"]
        return stage1.train, Stage1Config(
            init=inputs / "mllm", data=data, eval_data=data, eval_cases=1, batch=2, lora=lora, **SHARED
        )
    init = inputs / "init" if lora else None
    return stage2.train, Stage2Config(
        mllm=inputs / "mllm", vae=inputs / "vae", init=init, data=[f"documents:{inputs / 'documents'}"], lora=lora,
        layers=2, heads=2, cross_width=32, shards=1, tokens=400, precision="float32", lr=0.02, **SHARED,
    )  # fmt: skip


def weights(folder: Path) -> dict[str, bytes]:
    """Every file of tensors: prepared documents, exports, adapters, checkpoints with their averages and moments."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


@pytest.fixture(scope="module")
def unbroken(inputs, tmp_path_factory):
    """{kind: folder of a run that nothing stopped}, each trained when it is first asked for."""
    done: dict[str, Path] = {}

    def folder_of(kind: str) -> Path:
        if kind not in done:
            out = tmp_path_factory.mktemp("unbroken") / "run"
            train, config = trainer(kind, inputs)
            assert train(replace(config, out=out)).finished
            done[kind] = out
        return done[kind]

    return folder_of


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_ends_with_the_files_of_an_unbroken_one(kind, inputs, unbroken, tmp_path):
    """Scores, samples and exports that the clock asks for in between change nothing either, LoRA's dropout included."""
    whole = unbroken(kind)
    train, config = trainer(kind, inputs)
    often = {"eval_minutes": 0.0} if kind.startswith("stage1") else {}
    broken = replace(config, out=tmp_path / "run", sample_minutes=1e-9, **often)
    for step in (0, 2):
        with stopped_in(step):
            assert train(broken).interrupted
    assert train(broken).finished
    assert losses(broken.out) == losses(whole) and len(set(losses(whole))) == 4
    found, wanted = weights(broken.out), weights(whole)
    assert found.keys() == wanted.keys() and ("adapter/adapter_model.safetensors" in found) == ("LoRA" in kind)
    assert [name for name in wanted if found[name] != wanted[name]] == []
    if "LoRA" in kind:  # what it hides matters: the comparison could fail
        undropped = replace(config, out=tmp_path / "undropped", lora=replace(LORA, dropout=0.0))
        train(undropped)
        assert losses(undropped.out) != losses(whole)


class Killed(BaseException):
    """Stands for a kill: from its moment on nothing is written, renamed or cleaned up."""


def dying(patch: pytest.MonkeyPatch, last: int) -> list[str]:
    """Renames and removals of the process from now on; the one numbered `last`, and all after it, kill it."""
    calls: list[str] = []

    def watch(module, name: str) -> None:
        original = getattr(module, name)

        def call(path, *args, **kwargs):
            if name == "replace" or os.path.exists(path):
                calls.append(f"{name} {Path(path).name}")
                if len(calls) >= last:
                    raise Killed(calls[-1])
            return original(path, *args, **kwargs)

        patch.setattr(module, name, call)

    watch(os, "replace")
    watch(shutil, "rmtree")
    return calls


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_killed_at_any_moment_after_its_last_step_is_exported_by_the_next(kind, inputs, unbroken, tmp_path):
    """The last step has an export before it, of a step that is not the last, as long runs have."""
    wanted = weights(unbroken(kind))
    train, config = trainer(kind, inputs)
    start = replace(config, out=tmp_path / "start")
    with stopped_in(2):
        train(start)
    export = start.out / "export"
    if not export.exists():  # stage 1 exports when it is scored
        with stopped_in(2):
            train(replace(start, out=tmp_path / "scored", eval_minutes=0.0))
        for name in ("export", "adapter"):
            if (tmp_path / "scored" / name).exists():
                shutil.copytree(tmp_path / "scored" / name, start.out / name)
    older = weights(export)
    moments = []
    for last in range(1, 60):
        run = replace(config, out=tmp_path / f"{last}")
        shutil.copytree(start.out, run.out)
        with pytest.MonkeyPatch.context() as patch:
            calls = dying(patch, last)
            try:
                train(run)
            except Killed as killed:
                moments.append(str(killed))
            else:
                break  # there are no more such moments
        places = [folder for folder in (run.out / "export", run.out / "export.old") if folder.exists()]
        assert any(weights(folder) in (older, weights(unbroken(kind) / "export")) for folder in places), moments[-1]
        assert train(run).finished
        assert weights(run.out) == wanted, moments[-1]  # and nothing is left of .new and .old
        shutil.rmtree(run.out)
    assert {"replace export", "replace export.new", "rmtree export.old", "replace checkpoint.new"} <= set(moments)
    assert len(moments) == len(calls) and moments[-1] == "replace .state.json.duogen-tmp"


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_done_is_only_read(kind, inputs, unbroken, tmp_path, capsys):
    train, config = trainer(kind, inputs)
    run = replace(config, out=tmp_path / "run", sample_minutes=0.5)
    shutil.copytree(unbroken(kind), run.out)
    metrics = (run.out / "metrics.jsonl").read_text("utf-8")
    moments = {path: path.stat().st_mtime_ns for path in run.out.rglob("*.safetensors")}
    train(run)
    assert moments == {path: path.stat().st_mtime_ns for path in run.out.rglob("*.safetensors")}
    changed = '"changed": {"sample_minutes": [0.0, 0.5]}'
    assert [line for line in (run.out / "metrics.jsonl").read_text("utf-8").splitlines() if changed not in line] == (
        metrics.splitlines()
    )
    assert not (run.out / "samples").exists()
    shutil.rmtree(run.out / "export")
    train(run)  # the export was taken away: there is another one
    assert weights(run.out) == weights(unbroken(kind))


def test_more_steps_for_a_run_that_is_done_are_exported(inputs, unbroken, tmp_path):
    train, config = trainer("stage1", inputs)
    run = replace(config, out=tmp_path / "run", steps=5)
    shutil.copytree(unbroken("stage1"), run.out)
    assert train(run).step == 5
    found = weights(run.out)
    assert found["export/model.safetensors"] != weights(unbroken("stage1"))["export/model.safetensors"]
    shutil.rmtree(run.out / "export")
    train(run)
    assert weights(run.out) == found


@pytest.mark.slow
def test_pretraining_killed_at_any_moment_of_its_end_ends_as_unbroken(tmp_path):
    config = replace(TINY, eval_cases=0, tensorboard=False, sample_minutes=1.0, out=tmp_path / "whole")
    pretrain.train(config)
    wanted = weights(config.out)
    start = replace(config, out=tmp_path / "start")
    with stopped_in(3):
        pretrain.train(start)
    with stopped_in(0):  # of the tower, which has two steps
        pretrain.train(start)
    moments = []
    for last in range(1, 60):
        run = replace(config, out=tmp_path / f"{last}")
        shutil.copytree(start.out, run.out)
        with pytest.MonkeyPatch.context() as patch:
            dying(patch, last)
            try:
                pretrain.train(run)
                break
            except Killed as killed:
                moments.append(str(killed))
        assert pretrain.train(run).finished
        assert weights(run.out) == wanted, moments[-1]
        pages = [path.relative_to(run.out).as_posix() for path in run.out.glob("vision/samples/*/*.html")]
        assert "vision/samples/000002/edit.html" in pages, moments[-1]
        shutil.rmtree(run.out)
    assert {"replace export.new", "replace checkpoint.new"} <= set(moments)


def test_the_command_exports_what_a_kill_between_checkpoint_and_export_left(inputs, unbroken, tmp_path):
    """`train finetune` ended with "stage1/export is not a Hugging Face model folder"."""
    _, config = trainer("stage1", inputs)
    run = replace(config, out=tmp_path / "run")
    shutil.copytree(unbroken("stage1"), run.out)
    os.rename(run.out / "export", run.out / "export.new")
    state = (run.out / "checkpoint" / "state.json").read_text("utf-8")
    (run.out / "checkpoint" / "state.json").write_text(state.replace(', "complete": true', ""), "utf-8")
    settings = [f"{name}={value}" for name, value in SHARED.items()]
    settings += [f"init={config.init}", f"data=[{config.data[0]}]", f"eval_data=[{config.data[0]}]", "eval_cases=1"]
    assert main(["train", "stage1", f"out={run.out}", "batch=2", *settings]) == 0
    assert weights(run.out) == weights(unbroken("stage1"))
    scores = [line["step"] for line in read_lines(run.out / "metrics.jsonl") if "eval" in line]
    assert scores == sorted(set(scores)) != [], "the scores of the last step stand there once"


def test_a_swap_after_a_kill_between_the_two_renames_of_the_one_before(tmp_path):
    """The old folder is all there is: it must not go before the new one has its place."""
    (tmp_path / "export.old").mkdir()
    (tmp_path / "export.new").mkdir()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        dying(patch, 1)
        swap(tmp_path / "export.new", tmp_path / "export")
    assert (tmp_path / "export.old").is_dir()
    swap(tmp_path / "export.new", tmp_path / "export")
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_what_a_kill_left_of_a_swap_is_put_right(tmp_path):
    folder = tmp_path / "export"
    for left in (["old"], ["old", "new"], ["old", ""], ["", "new"], ["old", "", "new"]):
        for name in left:
            (tmp_path / f"export.{name}".rstrip(".")).mkdir()
        finish_swap(folder)
        assert [path.name for path in tmp_path.iterdir()] == ["export"]
        folder.rmdir()
    finish_swap(folder)
    assert not any(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_leaves_the_one_before(tmp_path):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "a").write_text("before")
    with pytest.raises(OSError), replaced(tmp_path / "export") as new:
        (new / "a").write_text("half")
        raise OSError("no space left")
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    assert (tmp_path / "export" / "a").read_text() == "before"
